"""Curvature while a network trains: the largest eigenvalues of the Hessian and its trace, every few epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from landscape.curvature.eigen import top_eigenpairs
from landscape.curvature.trace import hessian_trace
from landscape.objective import Objective
from landscape.results.types import Cost, CurvatureTrace, Provenance
from sam_core.training import Hook, Trainer

__all__ = ["CurvatureHook"]

_PROBES = 100  # at most, for a trace: near zero, no relative error is ever small
_COSTS = ("forwards", "gradients", "hvps", "seconds")


class CurvatureHook(Hook):
    """Measures the k largest eigenvalues (and the trace) before the first epoch and after every `every`-th, and after the last.

    Lanczos starts from the eigenvectors of the time before, mixed with a random vector so that one that has come up since is seen, too:
    a few products track an eigenvalue that moves slowly. Training goes on to the same bits as without.

    Args:
        data: what the loss is measured on, in any form that `Objective` takes; some hundred examples are enough to follow a trend.
        loss: see `Objective`.
        every: epochs between measurements.
        k: number of eigenvalues, the largest in absolute value.
        tol: bound on the residuals relative to the largest |lambda|.
        trace_tol: relative standard error of the trace; None leaves the trace out.
        seed: of random vectors.
        **options: further arguments of `Objective`.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        data: Any,
        loss: Callable[..., Tensor] = cross_entropy,
        *,
        every: int = 1,
        k: int = 1,
        tol: float = 1e-2,
        trace_tol: float | None = 0.1,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, count in (("every", every), ("k", k)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} must be a positive integer, got {count!r}")
        for name, value in (("tol", tol), ("trace_tol", trace_tol)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
        self.data, self.loss, self.every, self.k, self.tol, self.trace_tol, self.seed = data, loss, every, k, tol, trace_tol, seed
        self._options = options
        self._rows: list[dict[str, Any]] = []
        self._vectors: Tensor | None = None  # of the last measurement, on the CPU
        self._cost = dict.fromkeys(_COSTS, 0.0)
        self._provenance = Provenance()

    def on_start(self, run: Trainer) -> None:
        """Measure the network as it begins."""
        if run.step == 0 and not self._rows:
            self._measure(run, 0)

    def after_epoch(self, run: Trainer) -> None:
        """Measure if it is time to."""
        epoch = run.epoch + 1
        if epoch % self.every == 0 or epoch == run.epochs:
            self._measure(run, epoch)

    def _measure(self, run: Trainer, epoch: int) -> None:
        objective = Objective(run.model, self.loss, self.data, **self._options)
        meter = objective.meter()
        eigen = top_eigenpairs(objective, self.k, tol=self.tol, seed=self.seed + epoch, start=self._start(objective, epoch), progress=False)
        assert eigen.vectors is not None
        row: dict[str, Any] = {"epoch": epoch, "values": eigen.values.tolist(), "residuals": eigen.residuals.tolist()}
        trace, stderr, matvecs = np.nan, np.nan, eigen.matvecs
        if self.trace_tol is not None:
            found = hessian_trace(
                objective, tol=self.trace_tol, max_matvecs=_PROBES, seed=self.seed + epoch, eigenpairs=eigen, progress=False
            )
            trace, stderr, matvecs = found.value, found.stderr, matvecs + found.matvecs
        self._rows.append(row | {"trace": float(trace), "trace_stderr": float(stderr), "matvecs": matvecs})
        self._vectors = eigen.vectors.cpu()
        spent = meter.cost()
        self._cost = {name: self._cost[name] + getattr(spent, name) for name in _COSTS}
        self._provenance = objective.provenance(self.seed)

    def _start(self, objective: Objective, epoch: int) -> Tensor | None:
        """Return the last eigenvectors with a tenth of a random vector, or None at the first time."""
        if self._vectors is None or self._vectors.shape[1] != objective.size:
            return None
        generator = torch.Generator().manual_seed(self.seed + epoch)
        drawn = torch.randn(objective.size, generator=generator).to(self._vectors)
        return self._vectors.sum(0) / len(self._vectors) ** 0.5 + 0.1 * drawn / torch.linalg.vector_norm(drawn)

    def result(self) -> CurvatureTrace:
        """Return what has been measured so far."""

        def column(name: str, *shape: int) -> Any:
            return np.array([row[name] for row in self._rows], dtype=np.float64).reshape(len(self._rows), *shape)

        k = len(self._rows[0]["values"]) if self._rows else self.k
        return CurvatureTrace(
            epoch=column("epoch").astype(np.int64),
            values=column("values", k),
            residuals=column("residuals", k),
            trace=column("trace"),
            trace_stderr=column("trace_stderr"),
            matvecs=column("matvecs").astype(np.int64),
            tol=self.tol,
            cost=Cost(**self._cost),
            provenance=dataclasses.replace(self._provenance, seed=self.seed),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what has been measured so far, for a checkpoint."""
        return {"rows": list(self._rows), "vectors": self._vectors, "cost": dict(self._cost)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what `state_dict()` returned."""
        self._rows, self._vectors, self._cost = list(state["rows"]), state["vectors"], dict(state["cost"])
