"""The p-norm ascent against its defining property: ||eps||_p = rho and <g, eps> = rho ||g||_q."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sam_core.optim.ascent import Adaptive, PNorm, Site, spare_biases

NORMS = (1.0, 1.05, 1.5, 2.0, 4.0, 20.0, math.inf)
shapes = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def draw(shapes: list[tuple[int, ...]], seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def flat(xs: list[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in xs])


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from(NORMS), st.integers(0, 10**6), st.sampled_from([1e-30, 1.0, 1e30]))
def test_norm_and_inner_product(shapes: list[tuple[int, ...]], p: float, seed: int, scale: float) -> None:
    g, rho = draw(shapes, seed, scale), 0.3
    q = math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
    eps = flat(PNorm(rho, p).perturbation(g, g))
    biggest = flat(g).abs().max()
    g_q = torch.linalg.vector_norm(flat(g) / biggest, q) * biggest
    torch.testing.assert_close(torch.linalg.vector_norm(eps, p).item(), rho, rtol=1e-9, atol=0)
    torch.testing.assert_close((flat(g) / biggest) @ eps, rho * g_q / biggest, rtol=1e-9, atol=0)


@settings(max_examples=30, deadline=None)
@given(shapes, st.sampled_from(NORMS), st.booleans(), st.integers(0, 10**6))
def test_training_form_equals_pure_form(shapes: list[tuple[int, ...]], p: float, adaptive: bool, seed: int) -> None:
    g, w = draw(shapes, seed), draw(shapes, seed + 1)
    ascent = PNorm(0.2, p, adaptive, eta=0.05 if adaptive else 0.0)
    radii = [0.1 * (i + 1) for i in range(len(g))]
    scaled = ascent.scales(w, None)
    for rho in (0.2, radii):
        pure = ascent.perturbation(g, w, rho)
        before = [x.clone() for x in g]
        site = Site(w, rho, scaled, torch.optim.SGD([nn.Parameter(x) for x in w], lr=1.0))
        for a, b in zip(ascent.climb([x.clone() for x in g], site), pure, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert all(torch.equal(a, b) for a, b in zip(g, before, strict=True))


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("adaptive", [False, True])
def test_no_gradient_no_perturbation(p: float, adaptive: bool) -> None:
    zero, w = [torch.zeros(3, 2), torch.zeros(2)], [torch.ones(3, 2), torch.ones(2)]
    ascent = PNorm(0.1, p, adaptive)
    site = Site(w, 0.1, ascent.scales(w, None), torch.optim.SGD([nn.Parameter(w[0])], lr=1.0))
    for eps in (ascent.perturbation(zero, w), ascent.climb([x.clone() for x in zero], site)):
        assert all(torch.equal(e, torch.zeros_like(e)) for e in eps)


def test_p_one_puts_everything_on_the_largest_entry() -> None:
    eps = PNorm(0.5, p=1).perturbation([torch.tensor([1.0, -3.0]), torch.tensor([2.0])], [torch.zeros(2), torch.zeros(1)])
    assert eps[0].tolist() == [0.0, -0.5] and eps[1].tolist() == [0.0]
    eps = PNorm(0.5, p=1).perturbation([torch.tensor([3.0, -3.0])], [torch.zeros(2)])
    assert eps[0].tolist() == [0.25, -0.25]


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("adaptive", [False, True])
def test_pure_form_under_vmap(p: float, adaptive: bool) -> None:
    g, w = draw([(5, 3, 2), (5, 4)], 0), draw([(3, 2), (4,)], 1)
    ascent = PNorm(0.1, p, adaptive)
    batched = torch.func.vmap(lambda a, b: tuple(ascent.perturbation([a, b], w)))(*g)
    for i in range(5):
        single = ascent.perturbation([x[i] for x in g], w)
        for a, b in zip(batched, single, strict=True):
            torch.testing.assert_close(a[i], b)


def test_half_precision_norms_do_not_overflow() -> None:
    g = [torch.full((100,), 3e4, dtype=torch.float16), torch.full((50,), 3e4, dtype=torch.float16)]
    for eps in (PNorm(0.5).perturbation(g, g), PNorm(0.5).climb([x.clone() for x in g], Site(g, 0.5, None, None))):  # type: ignore[arg-type]
        torch.testing.assert_close(flat(eps).float().norm().item(), 0.5, rtol=2e-3, atol=0)


def test_asam_scales_weights_and_gains_by_name_and_by_position() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8),
        nn.Embedding(5, 6),
        nn.LayerNorm(6),
        nn.TransformerEncoderLayer(6, 2, 6, batch_first=True),
        nn.Linear(6, 4),
    )
    names = [name for name, _ in model.named_parameters()]
    weights = list(model.parameters())
    expected = [w.dim() > 1 or "bias" not in name for name, w in model.named_parameters()]
    assert spare_biases(weights, names) == expected
    assert spare_biases(weights) == expected
    assert not all(expected) and any(expected)
    assert Adaptive(0.5).scales([torch.ones(3)], None) == [True]  # a lone vector is no bias
