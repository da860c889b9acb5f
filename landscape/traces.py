"""How well grad f(y_t) stands in for grad f(x_t) while SAMPa trains: their cosine and distance, on the same batch, overall and by layer.

SAMPa (Xie, Pethick, Cevher 2024, arXiv 2410.10683) climbs along grad f(y_t), which it has computed in parallel, where SAM climbs along
grad f(x_t). The hook computes that second gradient now and then and leaves no trace of it in the training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.batches import untouched_random_state
from landscape.provenance import device_name, library_version, tensors_sha256
from landscape.results.types import Cost, GradientTrace, Provenance
from sam_core.training import Hook, Trainer

__all__ = ["GradientTraceHook"]


class GradientTraceHook(Hook):
    """Compares grad f(x_t) with SAMPa's grad f(y_t), both on batch t, before every k-th step.

    The first step has no y yet and is left out. One more gradient is computed for each comparison; training goes on to the same bits as
    without. With dropout the two gradients see different masks, and their cosine is lower for that alone.

    Args:
        every: compare at steps that are multiples of it.

    Raises:
        ValueError: `every` is no positive integer.
    """

    def __init__(self, every: int = 10) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a positive integer, a number of steps, got {every!r}")
        self.every = every
        self._steps: list[int] = []
        self._squares: list[Tensor] = []  # (3, L) each, of x, y and x - y; they stay on the device
        self._layers: tuple[str, ...] = ()
        self._owners: Tensor | None = None  # (parameters, L), one where the layer owns the parameter
        self._seconds, self._passes = 0.0, 0.0
        self._model: nn.Module | None = None

    def on_start(self, run: Trainer) -> None:
        """Look at the method and the layers.

        Raises:
            ValueError: the method has no grad f(y), or a continued run had other layers.
        """
        if not hasattr(run.optimizer, "y_gradient"):
            raise ValueError(
                f"GradientTraceHook compares SAMPa's two gradients; {type(run.optimizer).__name__} has no grad f(y): train with SAMPa"
            )
        self._model = run.model
        names: dict[Tensor, str] = {p: name for name, p in run.model.named_parameters()}
        owners = [_layer(names.get(p, "other")) for p in run.optimizer.parameters()]
        layers = tuple(dict.fromkeys(owners))
        if self._squares and layers != self._layers:
            raise ValueError("the trace that was begun has other layers than this model")
        self._layers = layers
        self._owners = torch.tensor(
            [[float(owner == layer) for layer in layers] for owner in owners], dtype=torch.float64, device=run.device
        )

    def before_step(self, run: Trainer) -> None:
        """Compare the gradients if it is time to."""
        if run.step % self.every:
            return
        y = run.optimizer.y_gradient  # type: ignore[attr-defined]
        if not y:
            return
        started = time.perf_counter()
        params = run.optimizer.parameters()
        with untouched_random_state(run.device), _untouched(run.model, params):
            run.closure()
            x = [p.grad for p in params]
        self._squares.append(self._compare(params, x, y))
        self._steps.append(run.step)
        self._passes += 1 / run.steps_per_epoch
        self._seconds += time.perf_counter() - started

    def _compare(self, params: Sequence[Tensor], x: Sequence[Tensor | None], y: Sequence[Tensor | None]) -> Tensor:
        assert self._owners is not None
        first, second = ([torch.zeros_like(p) if g is None else g.detach() for p, g in zip(params, gs, strict=True)] for gs in (x, y))
        rows = []
        for vectors in (first, second, list(torch._foreach_sub(first, second))):
            norms = torch._foreach_norm(vectors, 2, dtype=torch.float64)
            rows.append(torch.stack([norm.to(self._owners.device) for norm in norms]) ** 2)
        return torch.stack(rows) @ self._owners

    def result(self) -> GradientTrace:
        """Return what has been measured so far."""
        empty = torch.zeros(0, 3, len(self._layers), dtype=torch.float64)
        squares = (torch.stack(self._squares).cpu() if self._squares else empty).numpy()
        cosine, (norm_x, norm_y, distance) = _cosine(squares.sum(2))
        layer_cosine, (_, _, layer_distance) = _cosine(np.moveaxis(squares, 2, 1))
        return GradientTrace(
            step=np.array(self._steps, dtype=np.int64),
            cosine=cosine,
            distance=distance,
            norm_x=norm_x,
            norm_y=norm_y,
            layers=self._layers,
            layer_cosine=layer_cosine,
            layer_distance=layer_distance,
            cost=Cost(gradients=self._passes, seconds=self._seconds),
            provenance=Provenance() if self._model is None else _provenance(self._model),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has been measured so far, for a checkpoint."""
        return {
            "steps": list(self._steps),
            "squares": [squares.cpu() for squares in self._squares],
            "layers": list(self._layers),
            "seconds": self._seconds,
            "passes": self._passes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what `state_dict()` returned."""
        self._steps, self._squares = list(state["steps"]), list(state["squares"])
        self._layers, self._seconds, self._passes = tuple(state["layers"]), state["seconds"], state["passes"]


def _cosine(squares: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """From |x|^2, |y|^2 and |x - y|^2 in the last axis: the cosine, exact where x and y are close, and the three lengths."""
    x, y, apart = np.moveaxis(squares, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (x + y - apart) / (2 * np.sqrt(x * y))
    return np.clip(cosine, -1, 1), (np.sqrt(x), np.sqrt(y), np.sqrt(apart))


def _layer(name: str) -> str:
    """Return the module that owns a parameter; the parameter itself where that is the whole model."""
    return name.rpartition(".")[0] or name


@contextmanager
def _untouched(model: nn.Module, params: Sequence[Tensor]) -> Iterator[None]:
    """Give gradients and buffers back on leaving: the very tensors, with their values; gradients are empty inside."""
    gradients = [p.grad for p in params]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for p in params:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _provenance(model: nn.Module) -> Provenance:
    first = next(model.parameters())
    return Provenance(
        model=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        parameter_sha256=tensors_sha256(dict(model.named_parameters()) | dict(model.named_buffers())),
        batch_norm="batch",
        dtype=str(first.dtype).removeprefix("torch."),
        device=device_name(first.device),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        torch_version=torch.__version__,
        numpy_version=np.__version__,
        creation_library="landscape",
        creation_library_version=library_version(),
    )
