"""One result of every type, its numbers full of corner cases."""

import dataclasses
from typing import Any

import numpy as np
import torch

from landscape.results.types import (
    Cost,
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    PlaneRecord,
    Provenance,
    Result,
    Sharpness,
    SpectralDensity,
    Subsampled,
    Surface,
    TraceEstimate,
    TrainingHistory,
)

QUIET_NAN = np.array([0x7FF8000000000123], dtype=np.uint64).view(np.float64)[0]
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, QUIET_NAN, 5e-324, 1.7976931348623157e308, 0.1])
COST = Cost(forwards=2.5, gradients=3.0, hvps=1e-300, seconds=0.1)
PROVENANCE = Provenance(
    model="Net <b>é</b>",
    parameters=12,
    parameter_sha256="ab" * 32,
    data_sha256="cd" * 32,
    examples=7,
    batch_norm="batch",
    batch_size=3,
    varied_sha256="ef" * 32,
    loss_at_parameters=0.1 + 0.2,
    seed=2**64 - 1,
    dtype="float64",
    device="cpu (x86_64)",
    created_at="2030-01-01T00:00:00+00:00",
    torch_version="2.13.0",
    numpy_version="2.4",
    creation_library="landscape-sam",
    creation_library_version="0.1.0",
)
BOTH: dict[str, Any] = {"cost": COST, "provenance": PROVENANCE}
PLANE = {
    "kind": "random",
    "normalize": None,
    "ok": True,
    "norms": [1.5, -0.0, 1e-320],
    "sha256": ["ü", '"'],
    "deep": {"a": {"b": [[], {}]}},
}


def odd(*shape: int) -> np.ndarray:
    return np.resize(ODD, shape)


def surface(name: str = "filter", ny: int | None = 3, nx: int = 5, **changes: Any) -> Surface:
    shape = (nx,) if ny is None else (ny, nx)
    y = None if ny is None else np.linspace(-0.3, 1, ny)
    status = np.resize(np.array([0, 1, 2, 3], dtype=np.uint8), shape)
    values = {"loss": odd(*shape), "accuracy": odd(*shape)[::-1].copy(), "stderr": -odd(*shape), "status": status}
    return Surface(name, np.linspace(-1, 1, nx), y, **(values | {"plane": PLANE} | changes), **BOTH)


def history(epochs: int = 4) -> TrainingHistory:
    return TrainingHistory("SAMPa-0.2", np.arange(epochs), *(np.roll(odd(epochs), i) for i in range(8)), **BOTH)


def gradients(steps: int = 4, layers: tuple[str, ...] = ("conv.0", 'fc "é" <b>')) -> GradientTrace:
    per_layer = (odd(steps, len(layers)), odd(steps, len(layers))[::-1].copy())
    return GradientTrace(np.arange(steps) * 10, odd(steps), odd(steps), odd(steps), odd(steps), layers, *per_layer, **BOTH)


def curvature(epochs: int = 4, k: int = 2) -> CurvatureTrace:
    numbers = odd(epochs, k), odd(epochs, k)[::-1].copy(), odd(epochs), odd(epochs)
    return CurvatureTrace(np.arange(epochs), *numbers, np.arange(epochs) * 3, 0.01, **BOTH)


def sharpness(m: int = 16, rho: float = 0.05, measure: str = "m_sharpness", p: float = 2.0) -> Sharpness:
    return Sharpness(measure, -0.0, np.nan, odd(5), np.array([16.0, 16, 16, 16, 3]), rho, m, p, **BOTH)


def eigen(vectors: torch.Tensor | None = None, k: int = 3) -> Eigenpairs:
    return Eigenpairs(np.array([3.0, -2.0, 1e-9])[:k], np.array([1e-5, 0.1, np.nan])[:k], vectors, 17, False, 1e-4, "largest", **BOTH)


def path(n: int = 5) -> LossPath:
    more = {"gap": odd(n), "gap_stderr": odd(n)[::-1].copy()}
    return LossPath("a to b", np.linspace(0, 1, n), None, odd(n), odd(n), -odd(n), {"type": "linear", "deep": [None, {}]}, **more, **BOTH)


def every() -> list[Result]:
    generator = torch.Generator().manual_seed(0)
    return [
        history(),
        gradients(),
        curvature(),
        eigen(torch.randn(3, 11, generator=generator)),
        SpectralDensity(np.linspace(-1, 2, 9), odd(9), odd(9), odd(2, 4), odd(2, 4), 0.01, 8, odd(3), 0.02, **BOTH),
        TraceEstimate(12.5, np.inf, odd(6), 6, True, 0.05, "hutch++", **BOTH),
        Subsampled("top_eigenpairs", odd(3), odd(3), -odd(3), odd(4, 3), np.array([2.0, 2, 2, 1]), True, False, **BOTH),
        sharpness(),
        sharpness(m=1),
        sharpness(rho=0.1),
        dataclasses.replace(sharpness(rho=0.2), settings={"data": "é", "steps": 3, "seed": None}, steps=odd(3)),
        surface(),
        surface("adaptive", error_estimate=odd(3, 5), metric_names=("error", "top5"), metric_values=odd(2, 3, 5)),
        surface("line", ny=None),
        path(),
        LossPath("trajectory", None, np.arange(4) * 2, odd(4), odd(4)[::-1].copy(), odd(4), {"type": "trajectory"}, coordinates=odd(4, 2),
                 distance=odd(4), explained_variance=odd(2), **BOTH),
        PlaneRecord("shared", ("conv.0", 'fc "é"'), torch.randn(11, generator=generator), torch.randn(2, 11, generator=generator).double(),
                    {"shapes": [[5], [2, 3]]}, PLANE, **BOTH),
    ]  # fmt: skip


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Fail where two results differ in a bit, a type or a dtype."""
    assert type(one) is type(other), where
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert_same(one.numpy(), other.numpy(), where)
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.tobytes() == other.tobytes(), where
    elif isinstance(one, float):
        assert np.float64(one).tobytes() == np.float64(other).tobytes(), where
    else:
        assert repr(one) == repr(other), where
