"""The main job end to end: train sharp and flat minima on real digits, measure them, draw them."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch.nn.functional import cross_entropy

import sam_core
from landscape.cli.train import history_of, trace_hook, with_provenance
from landscape.comparison import Comparison, Sizes, compare
from landscape.plots.gallery import draw_all
from sam_core import TrainConfig
from sam_core.training.checkpoint import LATEST

# One radius for all three: the pictures show what a method does with it. (SAMPa's own default of rho is 0.1.)
METHODS: dict[str, dict[str, float | int]] = {
    "sgd": {},
    "sam": {"rho": 0.2},
    "msam": {"rho": 0.2, "m": 4},
    "sampa": {"rho": 0.2, "lam": 0.2},
}

# What takes a gradient or two; the others take tens.
_QUICK = ("m_sharpness", "gradient_norm")


def recipe(method: str, *, epochs: int = 25, seed: int = 0) -> TrainConfig:
    """Return how the demo trains: the digits, a small batch-norm network, small batches, no weight decay."""
    return TrainConfig(
        method=method, **METHODS[method], data="digits", model="small_cnn", epochs=epochs, batch_size=64,  # type: ignore[arg-type]
        lr=0.1, momentum=0.9, weight_decay=0.0, schedule="cosine", seed=seed, device="cpu",
    )  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """Train the digits with SGD, SAM, mSAM and SAMPa from the same start, measure the four minima, draw them, write a report."""

    INTERRUPTED: ClassVar[str] = "; the same command goes on from what was saved"

    out: Path = Path("results/demo")
    """Folder for everything; interrupted, the same command goes on from what is there."""
    quick: bool = False
    """Fewer epochs, points and examples: less than a minute."""
    seed: int = 0
    """Seed of the initial weights, the order of the data and every draw of the measurements."""
    fresh: bool = False
    """Forget what is in the folder and begin anew."""

    def run(self) -> None:
        """Do it all and print one table and the paths of what was written."""
        # The network is so small that threads wait for each other longer than they compute, and the more so beside other work.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> None:
        started = time.perf_counter()
        out = self.out / "quick" if self.quick else self.out
        if self.fresh and out.exists():
            _forget(out)
        comparison = self._compare(out)
        pictures = draw_all(list(comparison.runs.values()), out / "figures")
        report = comparison.report(out / "report.html")
        print(f"\n{comparison.table()}\n\n{comparison.differences()}\n")
        examples = next(iter(comparison.runs.values())).eigen.provenance.examples  # type: ignore[union-attr]
        print(f"Hessian, sharpness and train accuracy: on {examples} training digits, batch norm in eval mode")
        print(f"\nresults   {', '.join(str(path) for path in comparison.files.values())}")
        print(f"pictures  {len(pictures)} files in {out / 'figures'}")
        print(f"report    {report}\n\n{time.perf_counter() - started:.0f} s in all")

    def _compare(self, out: Path) -> Comparison:
        epochs, every = (6 if self.quick else 25), 10
        sizes = Sizes(surface_examples=256, density_probes=2, density_steps=16, draws=10)
        measured: int | None = None
        if self.quick:
            sizes = replace(sizes, points=13, between=9, density_probes=1, trace_tol=0.1, measures=_QUICK)
            measured = 256
        models, histories, traces, commands = {}, {}, {}, {}
        for method in METHODS:
            config = recipe(method, epochs=epochs, seed=self.seed)
            folder = out / method
            hooks = [trace_hook(config, every)] if method == "sampa" else []
            result = sam_core.train(config, hooks, out=folder, resume=(folder / LATEST).exists())
            models[method], data = result.model, result.data
            histories[method] = history_of(result)
            commands[method] = f"landscape demo --out {self.out}{' --quick' if self.quick else ''} --seed {self.seed}"
            for hook in hooks:
                traces[method] = with_provenance(hook, result)
        return compare(
            models, cross_entropy, data.train.take(measured).tensors(), test_data=data.test.tensors(), out=out, sizes=sizes, seed=self.seed,
            histories=histories, traces=traces, commands=commands,
        )  # fmt: skip


def _forget(out: Path) -> None:
    """Remove what the demo itself wrote, and nothing else."""
    for method in METHODS:
        shutil.rmtree(out / method, ignore_errors=True)
        (out / f"{method}.h5").unlink(missing_ok=True)
    (out / "plan.json").unlink(missing_ok=True)
    shutil.rmtree(out / "pairs", ignore_errors=True)
    shutil.rmtree(out / "figures", ignore_errors=True)
    (out / "report.html").unlink(missing_ok=True)
