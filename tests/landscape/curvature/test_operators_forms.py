"""Every form of a product against the plain one in float64, what may be rewritten, and what the kept graphs take of memory."""

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from oracles import dense_hessian
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from landscape import fastforms
from landscape.curvature import EmpiricalFisherOperator, GGNOperator, HessianOperator, MonteCarloFisherOperator, Operator, forms
from landscape.curvature.over_batches import OverBatches
from landscape.objective import Objective
from landscape.stateless import skeleton_of

FORMS = ("plain", "rewritten", "channels_last")


def probe(n: int, k: int = 3) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("kind", ["mlp", "cnn"])  # in others there is nothing to rewrite
@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator, EmpiricalFisherOperator, MonteCarloFisherOperator])
def test_every_form_gives_the_same_product(kind: str, operator: Callable[..., OverBatches], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_WORTH_COMPARING", float("inf"))  # as if all products were fast: the first candidate is taken
    problem = network(kind)
    objective = Objective(*problem, batch_size=6)
    v = probe(objective.size)
    expected = operator(objective, form="plain", memory_budget=0).matmat(v)
    assert expected.norm() > 0
    for form in (None, *FORMS):
        for budget in (None, 0):
            made = operator(objective, form=form, memory_budget=budget)
            assert relative(made.matmat(v), expected) < 1e-12
            assert relative(made.matvec(v[:, 0]), expected[:, 0]) < 1e-12
            assert made.form == (form or ("channels_last" if kind == "cnn" else "plain"))
    together = operator(objective, at_once=True)
    assert relative(together.matmat(v), expected) < 1e-12


def convolutions() -> list[nn.Module]:
    return [
        nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
        nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), dilation=(1, 2), bias=False), nn.BatchNorm2d(4, affine=False), nn.GELU(), nn.Flatten(), nn.LazyLinear(3)
        ),
        nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
        nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding="same"), nn.Softplus(), nn.Flatten(), nn.LazyLinear(3)),
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(3), nn.SiLU(inplace=True), nn.Flatten(), nn.LazyLinear(3)
        ),
    ]  # fmt: skip


SHAPES = ((4, 8), (2, 6, 6), (1, 4, 4, 4), (2, 5, 5), (2, 5, 5))


@pytest.mark.parametrize("which", range(5))
def test_convolutions_of_all_kinds_with_norms_before_and_behind(which: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(which)
        model, x = convolutions()[which].double(), torch.randn(7, *SHAPES[which], dtype=torch.float64)
        model(x)
        model(3 * x + 1)  # running statistics that are not the initial ones
        problem = (model, F.cross_entropy, (x, torch.randint(0, 3, (7,))))
    hessian = dense_hessian(*problem)
    v = probe(len(hessian))
    for form in FORMS:
        assert relative(HessianOperator(Objective(*problem), form=form).matmat(v), hessian @ v) < 1e-12
    frozen = HessianOperator(Objective(*problem, params=["*.weight"]), form="rewritten")
    assert relative(frozen.matmat(probe(frozen.size)), HessianOperator(frozen.objective, form="plain").matmat(probe(frozen.size))) < 1e-12


def test_third_derivatives_go_through_rewritten_convolutions() -> None:
    conv = nn.Sequential(nn.Conv2d(1, 2, 2)).double().eval()
    rewritten = copy.deepcopy(conv)
    assert fastforms.rewrite(rewritten) == 1
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def third(model: nn.Module) -> Tensor:
        d = model(x).pow(4).sum()
        for _ in range(2):
            d = torch.autograd.grad(d, x, create_graph=True)[0].pow(2).sum()
        return torch.autograd.grad(d, model[0].weight)[0]

    assert relative(third(rewritten), third(conv)) < 1e-12
    assert torch.autograd.gradgradcheck(lambda t: rewritten(t), x)


class Residual(nn.Module):
    """The convolution's output is used twice: its normalisation must not disappear into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.norm.running_mean.add_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Shared(Residual):
    """One normalisation behind two calls of one convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(2 * x))


class Branching(Residual):
    """Its way depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if x.sum() > 0 else y


def absorbed(model: nn.Module) -> int:
    skeleton = skeleton_of(model, "eval")
    fastforms.rewrite(skeleton)
    return sum(isinstance(m, fastforms._Absorbed) for m in skeleton.modules())


def test_a_normalisation_is_absorbed_only_where_nobody_else_sees_the_convolution() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert absorbed(plain) == 1
    hooked = copy.deepcopy(plain)
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1)
    parametrized = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(1, 2, 3)), nn.BatchNorm2d(2))
    trained_statistics = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    others = [Residual(), Shared(), Branching(), hooked, parametrized, trained_statistics]
    assert [absorbed(model) for model in others] == [0] * 6
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for model in (plain, *others):
        objective = Objective(model.double(), F.mse_loss, (x, y))
        v = probe(objective.size)
        expected = HessianOperator(objective, form="plain").matmat(v)
        assert all(relative(HessianOperator(objective, form=form).matmat(v), expected) < 1e-12 for form in FORMS[1:])


def test_what_the_model_does_not_stand_is_not_chosen() -> None:
    """`view` refuses tensors with channels last."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x).view(len(x), -1))

    g = torch.Generator().manual_seed(0)
    data = (torch.randn(4, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (4,), generator=g))
    operator = HessianOperator(Objective(Viewing().double(), F.cross_entropy, data))
    operator.matvec(torch.ones(operator.size, dtype=torch.float64))
    assert operator.form == "rewritten"


def test_batch_statistics_are_not_rewritten() -> None:
    problem = network("cnn")
    objective = Objective(*problem, batch_norm="batch")
    v = probe(objective.size)
    expected = HessianOperator(objective, form="plain").matmat(v)
    assert relative(HessianOperator(objective).matmat(v), expected) < 1e-12
    assert relative(HessianOperator(Objective(*problem), form="plain").matmat(v), expected) > 1e-2


def test_a_loss_that_trains_its_model_gets_batch_statistics_in_every_form() -> None:
    model, _, data = network("cnn")

    def training(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model.train()(batch[0]), batch[1])

    objective = Objective(model, training, data)
    v = probe(objective.size)
    expected = HessianOperator(Objective(model, F.cross_entropy, data, batch_norm="batch")).matmat(v)
    for form in FORMS:
        assert relative(HessianOperator(objective, form=form).matmat(v), expected) < 1e-12


def test_the_bound_loss_has_the_same_forms() -> None:
    problem = network("cnn")
    objective = Objective(*problem, batch_size=5)
    batch = next(iter(objective.batches))
    before = copy.deepcopy(problem.model.state_dict())
    with torch.no_grad():
        expected, outputs = objective.batch_loss_and_outputs(objective.parameters, batch)
        for form in FORMS:
            loss, found = objective.bound(objective.parameters, form)(batch, 0)
            assert relative(found, outputs) < 1e-12 and torch.isclose(loss, expected, rtol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in problem.model.state_dict().items())
    assert type(problem.model[0]) is nn.Conv2d and type(problem.model[1]) is nn.BatchNorm2d


def test_the_choice_is_measured_once_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "_WORTH_COMPARING", 0.0)
    monkeypatch.setattr(forms, "_measured", {})
    problem = network("cnn", examples=24, dtype=torch.float32)
    objective = Objective(*problem)
    first = HessianOperator(objective)
    first.matvec(torch.ones(first.size))
    assert set(first.seconds) == {"channels_last", "rewritten"} and all(s > 0 for s in first.seconds.values())
    assert f"form {first.form} (channels_last" in repr(first) and "1 graphs kept" in repr(first)
    for other in (HessianOperator(objective), HessianOperator(Objective(*problem))):
        other.matvec(torch.ones(first.size))
        assert (other.form, other.seconds) == (first.form, first.seconds)
    with pytest.raises(ValueError, match="form must be"):
        HessianOperator(objective, form="fastest")


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator])
def test_memory_does_not_grow_with_the_number_of_batches(operator: Callable[..., OverBatches]) -> None:
    """One batch's graphs are alive at a time, however many batches there are."""

    def peak(batches: int) -> int:
        problem = network("cnn", examples=8 * batches)
        alive: list[int] = []
        made: list[weakref.ref] = []
        objective = Objective(problem.model, problem.loss, problem.data, batch_size=8)
        whole = operator(objective, memory_budget=0, form="rewritten")
        build = whole._term

        def watched(*args):
            term = build(*args)
            made.append(weakref.ref(term))
            alive.append(sum(reference() is not None for reference in made))
            return term

        whole._term = watched
        for _ in range(2):
            whole.matmat(probe(whole.size))
        assert len(alive) == 2 * batches
        return max(alive)

    assert peak(2) == peak(9) == 1


def test_arithmetic_is_that_of_matrices() -> None:
    problem = network("mlp")
    objective = Objective(*problem)
    h, g = HessianOperator(objective), GGNOperator(objective)
    eye = torch.eye(91, dtype=torch.float64)
    hessian, ggn = h.matmat(eye), g.matmat(eye)
    cases: list[tuple[Operator, Tensor]] = [
        (h + 0.1, hessian + 0.1 * eye),
        (0.1 + h, hessian + 0.1 * eye),
        (h - 0.1, hessian - 0.1 * eye),
        (1 - h, eye - hessian),
        (2 * h, 2 * hessian),
        (h / 4, hessian / 4),
        (-h, -hessian),
        (h + g, hessian + ggn),
        (h - g, hessian - ggn),
        (3 * (h - 2 * g + 1) - h / 2 + 0.5, 3 * (hessian - 2 * ggn + eye) - hessian / 2 + 0.5 * eye),
        (g.block("0.*") + 0.2, ggn[:36, :36] + 0.2 * eye[:36, :36]),
    ]
    for operator, matrix in cases:
        v = probe(operator.size)
        assert relative(operator.matmat(v), matrix @ v) < 1e-13
        assert relative(operator.matvec(v[:, 0]), matrix @ v[:, 0]) < 1e-13
        assert operator.objective is objective and operator.point is not None
        assert relative(torch.from_numpy(operator.to_scipy() @ v.numpy()), matrix @ v) < 1e-13
    assert len((3 * (h - 2 * g + 1) - g).terms) == 3 and "+ 0.1 I>" in repr(h + 0.1)


def test_arithmetic_that_makes_no_sense_is_refused() -> None:
    h = HessianOperator(Objective(*network("mlp")))
    with pytest.raises(ValueError, match="same size"):
        h + h.block("0.*")
    with pytest.raises(ValueError, match="must be finite"):
        h + float("nan")
    with pytest.raises(TypeError):
        h * h
    with pytest.raises(TypeError):
        h + "0.1"


def test_a_named_form_that_is_another_function_is_refused():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3)
            self.norm.running_mean.fill_(0.5)

        def forward(self, x):
            return (self.norm(self.conv(x)).tanh() + self.conv.forward(x)).mean(2)  # the second use shows in no trace of modules

    x, y = torch.randn(6, 2, 7), torch.randint(0, 3, (6,))
    objective = Objective(Around(), F.cross_entropy, (x, y), dtype=torch.float64)
    v = torch.randn(objective.size, dtype=torch.float64)
    with pytest.raises(ValueError, match="form 'rewritten' of this model"):
        HessianOperator(objective, form="rewritten").matvec(v)
    chosen = HessianOperator(objective)
    assert torch.equal(chosen.matvec(v), HessianOperator(objective, form="plain").matvec(v)) and chosen.form == "plain"
