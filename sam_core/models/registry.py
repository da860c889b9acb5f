"""Networks by name, the same bits from the same seed."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

Builder = Callable[..., nn.Module]
_Builder = TypeVar("_Builder", bound=Builder)

_BUILDERS: dict[str, Builder] = {}


def register(name: str) -> Callable[[_Builder], _Builder]:
    """Return a decorator that makes `builder(num_classes, in_channels, **options)` known as `name`.

    A builder that has an argument `image_size` is told the height of the (square) images.
    """

    def add(builder: _Builder) -> _Builder:
        assert name not in _BUILDERS, name
        _BUILDERS[name] = builder
        return builder

    return add


def names() -> list[str]:
    """Return the names of all networks."""
    return sorted(_BUILDERS)


def options(name: str) -> dict[str, Any]:
    """Return the options of a network with their defaults, without those that the data decide.

    Args:
        name: one of `names()`.

    Returns:
        Default by option name.
    """
    parameters = inspect.signature(_builder(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("num_classes", "in_channels", "image_size")}


def make(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    image_size: int | None = None,
    seed: int | torch.Generator = 0,
    device: str = "cpu",
    **keywords: Any,
) -> nn.Module:
    """Build a network.

    Args:
        name: one of `names()`.
        num_classes: number of outputs.
        in_channels: channels of the images.
        image_size: height and width of the images, for networks whose shape depends on it; None for their default.
        seed: decides the initial weights: a number, or a generator to draw that number from. No global generator is changed.
        device: where to build it; "meta" builds it without its numbers, to see whether the options are allowed.
        **keywords: the network's own options, see `options(name)`.

    Returns:
        The network in training mode, float32.

    Raises:
        ValueError: no network has this name, it has no such option, a value is not allowed, or memory does not suffice.
    """
    builder = _builder(name)
    for argument, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", image_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{argument} must be a positive whole number, not {value!r}")
    known = options(name)
    for keyword in keywords:
        if keyword not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"model {name!r} has no option {keyword!r}: {allowed}")
    if image_size is not None and "image_size" in inspect.signature(builder).parameters:
        keywords["image_size"] = image_size
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
    # Layers draw their first weights from the default generator: lend it to them and give it its state back.
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        try:
            return builder(num_classes, in_channels, **keywords)
        except (TypeError, RuntimeError, OverflowError, MemoryError) as error:  # a text where a number belongs; too large
            said = (str(error).splitlines() or ["it does not fit into memory"])[0]
            raise ValueError(f"model {name!r} with {keywords or 'its own options'} cannot be built: {said}") from error


def _builder(name: str) -> Builder:
    if name not in _BUILDERS:
        close = difflib.get_close_matches(str(name).lower(), names(), n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"unknown model {name!r}: {hint}there are {', '.join(names())}")
    return _BUILDERS[name]


def positive(name: str, value: int, most: int = 2**31 - 1) -> int:
    """Return `value` if it is a positive whole number, and not absurdly large.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, not {value}")
    return value
