"""The command that trains, and the trace that follows SAMPa's two gradients while it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import tyro
from torch.nn.functional import cross_entropy

import sam_core
from landscape.curvature.tracking import CurvatureHook
from landscape.objective import Objective
from landscape.results import store
from landscape.results.types import Cost, GradientTrace, Provenance, TrainingHistory
from landscape.traces import GradientTraceHook
from sam_core import TrainConfig
from sam_core.ranks import leads
from sam_core.training import TrainResult, build_data

Measuring = GradientTraceHook | CurvatureHook


@dataclass(frozen=True)
class Train:
    """Train a network with SGD, SAM or one of its relatives; leaves checkpoint.pt and run.h5 in the folder --out."""

    INTERRUPTED: ClassVar[str] = "; go on with the same command and --resume"

    config: TrainConfig
    out: Path
    """Folder of the run."""
    resume: bool = False
    """Go on with the run in --out, to the same bits as without the interruption."""
    overwrite: bool = False
    """Replace a run that is in --out already."""
    trace_every: int | None = None
    """With a SAMPa method: compare grad f(x) and grad f(y) at every so many steps (one more gradient each)."""
    curvature_every: int | None = None
    """Measure the largest Hessian eigenvalue and the trace every so many epochs, before the first and after the last."""
    curvature_examples: int = 512
    """Training examples on which they are measured."""

    def run(self) -> None:
        """Train, save and say how it went."""
        hooks: list[Measuring] = [] if self.trace_every is None else [trace_hook(self.config, self.trace_every)]
        if self.curvature_every is not None:
            hooks.append(curvature_hook(self.config, self.curvature_every, self.curvature_examples))
        path = self.out / "run.h5"
        if path.exists() and leads():
            store.check_writable(path)
        result = sam_core.train(self.config, hooks, out=self.out, resume=self.resume, overwrite=self.overwrite)
        if not result.leads:  # another process writes
            return
        save_training(path, result, hooks)
        last = result.history[-1]
        print(
            f"{self.config.method}: {last.epoch} epochs, train loss {last.train_loss:.4g}, accuracy {last.train_accuracy:.4f}; "
            f"test loss {last.test_loss:.4g}, accuracy {last.test_accuracy:.4f}; "
            f"{last.seconds:.1f} s, {last.gradients_computed:.0f} gradients"
        )
        print(f"checkpoint  {result.checkpoint}\nresults     {path}\nmeasure it with: landscape hessian {self.out}")


@dataclass(frozen=True)
class Trace:
    """Repeat a run with SAMPa (same network, start, data, schedule) and trace cosine and distance between its gradients at x and y."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint or run folder of `landscape train`; it is not changed."""
    every: int = 10
    """Compare the gradients at every so many steps (one more gradient each)."""
    epochs: int | None = None
    """Train for so many epochs; by default as long as the run did."""
    rho: float | None = None
    """Radius of the climb; by default the run's own, or SAMPa's."""
    lam: float | None = None
    """SAMPa's lambda; by default the run's own, or 0.2."""
    data_dir: Path | None = None
    """Where the run's data set lies now, if it has moved."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default the run's own."""
    out: Path | None = None
    """Result file to add to; by default run.h5 beside the checkpoint."""

    def run(self) -> None:
        """Train, save the trace and print it."""
        saved = sam_core.load_checkpoint(self.checkpoint)
        given = {"epochs": self.epochs, "rho": self.rho, "lam": self.lam, "data_dir": self.data_dir, "device": self.device}
        changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        if saved.config.method != "sampa":
            changes |= {"method": "sampa", "options": (), "m": None}
        config = dataclasses.replace(saved.config, **changes)  # type: ignore[arg-type]
        hook = trace_hook(config, self.every)
        path = self.out or saved.path.with_name("run.h5")
        store.check_writable(path)
        result = sam_core.train(config, [hook])
        trace = with_provenance(hook, result)
        store.save(path, trace)
        print(f"gradients  {trace.summary()}\nsaved in   {path}\ndraw it with: landscape plot {path}")


def trace_hook(config: TrainConfig, every: int) -> GradientTraceHook:
    """Return a hook that compares SAMPa's gradients, or say why there are none to compare."""
    if every < 1:
        raise ValueError(f"the gradients can be compared at every 1, 2, 3, ... steps, not at every {every}")
    if not config.method.lower().startswith("sampa"):
        raise ValueError(f"method {config.method!r} has no gradient at a second point y to compare; use --method sampa")
    return GradientTraceHook(every=every)


def curvature_hook(config: TrainConfig, every: int, examples: int) -> CurvatureHook:
    """Return a hook that follows the curvature on the first training examples."""
    if every < 1:
        raise ValueError(f"the curvature can be measured every 1, 2, 3, ... epochs, not every {every}")
    if examples < 1:
        raise ValueError(f"--curvature-examples must be at least 1, not {examples}")
    train = build_data(config).train
    return CurvatureHook(train.take(min(examples, len(train))).tensors(), every=every, seed=config.seed)


def save_training(path: Path, result: TrainResult, hooks: Sequence[Measuring]) -> None:
    """Write the history of a run, and what was traced in it, into the run's file; numbers of earlier weights move aside."""
    history = history_of(result)
    _move_aside(path, history.provenance.parameter_sha256)
    store.save(path, history, run={"config": result.config.to_dict() | {"final": _final(result)}})
    for hook in hooks:
        store.save(path, hook.result() if isinstance(hook, CurvatureHook) else with_provenance(hook, result))


def _move_aside(path: Path, parameter_sha256: str) -> None:
    """Rename a file whose measurements are of the weights before this training, so that nobody takes them for those of the new ones."""
    if not path.exists():
        return
    held = [store.load(path, group, vectors=False).provenance.parameter_sha256 for group in store.groups(path) if "partial/" not in group]
    old = next((sha for sha in held if sha not in ("", parameter_sha256)), None)
    if old is not None:
        aside = path.with_name(f"{path.stem}-{old[:8]}{path.suffix}")
        path.replace(aside)
        print(f"results of the weights before moved to {aside}")


def _final(result: TrainResult) -> dict[str, float]:
    """Return loss and accuracy of the trained weights; those in the history were taken while they moved."""
    found: dict[str, float] = {}
    for part, examples in (("train", result.data.train), ("test", result.data.test)):
        loss, accuracy = Objective(result.model, cross_entropy, examples.tensors(), device=_device(result)).evaluate()
        found |= {f"{part}_loss": float(loss), f"{part}_accuracy": float(accuracy)}
    return found


def _device(result: TrainResult) -> torch.device:
    return next(result.model.parameters()).device


def with_provenance(hook: GradientTraceHook, result: TrainResult) -> GradientTrace:
    """Return the trace of a finished run, with the data and the seed that the hook does not know."""
    return dataclasses.replace(hook.result(), provenance=dataclasses.replace(_provenance(result), batch_norm="batch"))


def history_of(result: TrainResult) -> TrainingHistory:
    """Return the epochs of a training run as columns."""

    def column(name: str) -> np.ndarray:
        return np.array([getattr(record, name) for record in result.history], dtype=np.float64)

    steps = -(-len(result.data.train) // result.config.batch_size)
    last = result.history[-1]
    return TrainingHistory(
        method=result.config.method,
        epoch=column("epoch").astype(np.int64),
        **{
            name: column(name)
            for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "rho", "seconds", "gradients_computed")
        },
        cost=Cost(gradients=last.gradients_computed / steps, seconds=last.seconds),
        provenance=_provenance(result),
    )


def _provenance(result: TrainResult) -> Provenance:
    return Objective(result.model, cross_entropy, result.data.train.tensors(), device=_device(result)).provenance(result.config.seed)
