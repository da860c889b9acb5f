"""Oracles: parameter counts from the papers' tables and by hand, the definition of option A, equal seeds, finite differences."""

import pytest
import torch
from torch import Tensor, nn

from sam_core import models


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet8", {"width": 8, "shortcut": "conv"}, 19_954),
        ("resnet20", {}, 269_722),
        ("resnet32", {}, 464_154),
        ("resnet56", {}, 853_018),
        ("mlp", {"in_channels": 1, "image_size": 8}, 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
        ("small_cnn", {"in_channels": 1}, 9 * (16 + 16 * 16 + 16 * 32 + 32 * 32) + 2 * (16 + 16 + 32 + 32) + 32 * 10 + 10),
    ],
)
def test_parameter_counts(name: str, options: dict, parameters: int) -> None:
    assert count(models.make(name, 10, **options)) == parameters


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_every_model_takes_both_image_sizes_and_gets_a_gradient_everywhere(name: str, channels: int, size: int) -> None:
    if name in ("resnet110", "resnet44") and size == 32:
        pytest.skip("the same code as the smaller ones, only slower")
    model = models.make(name, 7, channels, image_size=size, seed=1)
    logits = model(torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())


@pytest.mark.parametrize("name", ["small_cnn", "mlp", "resnet8", "vit_tiny"])
def test_the_seed_alone_decides_the_weights_and_global_state_stays(name: str) -> None:
    def weights(seed: int | torch.Generator) -> Tensor:
        return nn.utils.parameters_to_vector(models.make(name, 10, 1, image_size=8, seed=seed).parameters())

    before = torch.get_rng_state()
    first = weights(3)
    torch.rand(5)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))
    generator = torch.Generator().manual_seed(9)
    drawn, next_drawn = weights(generator), weights(generator)
    assert not torch.equal(drawn, next_drawn), "a generator moves on"
    assert torch.equal(drawn, weights(torch.Generator().manual_seed(9)))
    torch.set_rng_state(before)
    models.make(name, 10, 1, image_size=8, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_option_a_shortcut_halves_the_image_and_adds_empty_channels() -> None:
    from sam_core.models.resnet import Pad

    x = torch.arange(2 * 4 * 6 * 6.0).reshape(2, 4, 6, 6)
    y = Pad(4, 8)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_attention_is_softmax_attention() -> None:
    from sam_core.models.vit import Attention

    torch.manual_seed(0)
    layer = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in layer.qkv(x).split(12, -1))
    expected = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(layer(x), layer.out(expected))


@pytest.mark.parametrize("name", ["small_cnn", "vit_tiny"])
def test_second_derivatives_match_finite_differences(name: str) -> None:
    model = models.make(name, 10, 1, image_size=8, seed=0).double().eval()
    parameters = list(model.parameters())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=generator)
    v = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in parameters]

    def gradient(create_graph: bool) -> tuple[Tensor, ...]:
        loss = nn.functional.cross_entropy(model(x), torch.arange(4))
        return torch.autograd.grad(loss, parameters, create_graph=create_graph)

    product = torch.autograd.grad(sum((g * u).sum() for g, u in zip(gradient(True), v, strict=True)), parameters)
    h, sides = 1e-8, []  # a longer step crosses kinks of the ReLUs
    for sign in (1, -1):
        torch._foreach_add_([p.data for p in parameters], v, alpha=sign * h)
        sides.append(gradient(False))
        torch._foreach_add_([p.data for p in parameters], v, alpha=-sign * h)
    for exact, plus, minus in zip(product, *sides, strict=True):
        torch.testing.assert_close(exact, (plus - minus) / (2 * h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet21",), "unknown model 'resnet21': did you mean"),
        (("vgg",), "there are mlp"),
        (("resnet20", 0), "num_classes must be a positive whole number, not 0"),
        (("resnet20", 10, -1), "in_channels must be a positive whole number, not -1"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.make(*arguments)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet20", {"depth": 3}, "model 'resnet20' has no option 'depth': it has width, shortcut"),
        ("resnet20", {"width": 0}, "width must be a positive whole number, not 0"),
        ("resnet20", {"shortcut": "b"}, "shortcut must be 'pad'"),
        ("vit_tiny", {"patch": 5}, "patch must divide the image size 32, 5 does not"),
        ("vit_tiny", {"heads": 3}, "heads must divide width=64, 3 does not"),
        ("vit_tiny", {"dropout": 1.5}, r"dropout must be in \[0, 1\), not 1.5"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.make(name, **options)


def normalised(x: Tensor) -> Tensor:
    """Batch norm with gain 1 and bias 0, in training mode."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_small_cnn_written_out() -> None:
    model = models.make("small_cnn", 5, 2, width=3).double()
    w = [p for p in model.parameters() if p.ndim == 4]
    x = images = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for i, kernel in enumerate(w):
        x = normalised(nn.functional.conv2d(x, kernel, padding=1)).clamp(min=0)
        if i == 1:
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    expected = x.mean((2, 3)) @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("channels", "out", "stride", "shortcut"), [(4, 4, 1, "pad"), (4, 8, 2, "pad"), (4, 8, 2, "conv")])
def test_residual_block_written_out(channels: int, out: int, stride: int, shortcut: str) -> None:
    from sam_core.models.resnet import Block

    torch.manual_seed(0)
    block = Block(channels, out, stride, shortcut).double()
    x = torch.randn(3, channels, 6, 6, dtype=torch.float64)
    y = normalised(nn.functional.conv2d(x, block.conv1.weight, stride=stride, padding=1)).clamp(min=0)
    y = normalised(nn.functional.conv2d(y, block.conv2.weight, padding=1))
    if stride == 1:
        side = x
    elif shortcut == "pad":
        side = torch.zeros_like(y)
        side[:, 2:6] = x[:, :, ::2, ::2]
    else:
        side = normalised(nn.functional.conv2d(x, block.shortcut[0].weight, stride=stride))
    torch.testing.assert_close(block(x), (y + side).clamp(min=0), rtol=1e-10, atol=1e-12)


def test_initial_weights_have_the_variance_of_their_scheme() -> None:
    resnet = models.make("resnet8", 10, 3, width=32)
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:  # He, fan out
            assert float(module.weight.detach().var()) * module.out_channels * 9 == pytest.approx(2.0, rel=0.1)
            assert abs(float(module.weight.detach().mean())) < 0.05 * float(module.weight.detach().std())
    vit = models.make("vit_tiny", 10, 3)
    for module in vit.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 4000:  # Glorot, uniform
            assert float(module.weight.detach().var()) * sum(module.weight.shape) == pytest.approx(2.0, rel=0.1)
            assert not module.bias.any()
    assert float(vit.positions.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_vit_classifies_by_the_class_token() -> None:
    model = models.make("vit_tiny", 10, 1, image_size=8, width=8, depth=1, heads=2).double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patches = model.embed(x).flatten(2).transpose(1, 2)
    tokens = model.layers(torch.cat([model.token.expand(2, 1, 8), patches], 1) + model.positions)
    torch.testing.assert_close(model(x), model.classifier(model.norm(tokens[:, 0])), rtol=1e-10, atol=1e-12)
    torch.nn.init.zeros_(model.layers[0].attention.out.weight)  # the token hears nothing of the image any more
    alone = model(x)
    torch.testing.assert_close(alone[0], alone[1], rtol=0, atol=1e-12)
