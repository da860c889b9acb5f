"""What the studies share: small images, networks trained on them in seconds, files that are not made twice, and the time left.

Digits come from one pool, so that few are enough to train on and many are left to test on; CIFAR-10 may be averaged to smaller images.
A file carries its configuration and, under "final", loss and accuracy of the trained weights on all training and test examples.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import __main__
import sam_core
from landscape import Objective
from landscape.results import store
from landscape.results.types import Result
from sam_core import data as datasets
from sam_core.data import Data, Examples
from sam_core.training import TrainResult
from sam_core.training.run import build_model, build_trainer

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 64, "schedule": "cosine", "device": "cpu"}


def command_line(doc: str | None, script: str, *, images: bool = True) -> argparse.ArgumentParser:
    """Return a parser with what every study has: --seeds, --quick, --out and, where it needs CIFAR-10, --data-dir."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that all is well; not for reading")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / Path(script).stem)
    if images:
        parser.add_argument("--data-dir", type=Path, required=True, help="folder with CIFAR-10 in its binary version")
    return parser


def digits(examples: int, noise: float = 0.0) -> Data:
    """Return so many digits to train on, a share `noise` of their labels wrong, and the rest of the 1,797 to test on."""
    data = datasets.load("digits")
    pool = Examples(*(torch.cat(both) for both in zip(data.train.tensors(), data.test.tensors(), strict=True)))
    every = pool.take(len(pool))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    train, test = (Examples(every.inputs[part], every.targets[part]) for part in (order[:examples], order[examples:]))
    return replace(data, train=with_noise(train, noise, data.num_classes), test=test)


def with_noise(examples: Examples, share: float, classes: int) -> Examples:
    """Return the examples with another class, drawn evenly, for a share of them; a larger share holds the smaller one."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randperm(len(examples), generator=generator)[: round(share * len(examples))]
    shift = torch.randint(1, classes, (len(examples),), generator=generator)
    targets = examples.targets.clone()
    targets[chosen] = (targets[chosen] + shift[chosen]) % classes
    return replace(examples, targets=targets)


def small_cifar(data_dir: Path, examples: int, test_examples: int = 4000, pixels: int = 16) -> Data:
    """Return so many images of CIFAR-10, normalised and averaged to `pixels` x `pixels`."""
    data = datasets.load("cifar10", data_dir)
    parts = []
    for part in (data.train.take(examples), data.test.take(test_examples)):
        images, targets = part.tensors()
        parts.append(Examples(F.avg_pool2d(images, 32 // pixels), targets))
    return replace(data, train=parts[0], test=parts[1], augmentation=None)


@dataclass(frozen=True)
class Trained:
    """A trained network, and what a result file says about it."""

    result: TrainResult
    config: dict[str, Any]

    def objective(self, examples: int | None = None) -> Objective:
        """Return the loss on the first training examples, all by default, batch norm in evaluation mode."""
        inputs, targets = self.result.data.train.tensors()
        return Objective(self.result.model, F.cross_entropy, (inputs[:examples], targets[:examples]))

    def save(self, path: Path, results: Iterable[Result]) -> None:
        """Write results into a file with the configuration and the command that repeats them; eigenvectors stay out."""
        typed = "python analyses/" + Path(getattr(__main__, "__file__", "study.py")).name
        if self.config["data"] != "digits":
            typed += " --data-dir data"  # wherever the folder was: files must not tell
        for result in results:
            result = replace(result, provenance=replace(result.provenance, command=typed))
            store.save(path, result, run={"config": self.config, "seed": self.config["seed"], "command": typed}, vectors=False)


def train(
    data: Data, method: str, *, hooks: Sequence[sam_core.Hook] = (), about: Mapping[str, Any] | None = None, **settings: Any
) -> Trained:
    """Train on these data with the studies' settings; `about` joins the configuration in the file."""
    config = sam_core.TrainConfig(method=method, data=data.name, data_dir=Path("data"), **(SETTINGS | settings))
    model = build_model(config, data)
    run = build_trainer(config, model, data, hooks=hooks, progress=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        run.fit()
    result = TrainResult(model.eval(), tuple(run.history), config, data, None, None)
    final: dict[str, float] = {"seconds": run.seconds}
    for name, part in (("train", data.train), ("test", data.test)):
        loss, accuracy = Objective(model, F.cross_entropy, part.tensors()).evaluate()
        final |= {f"{name}_loss": float(loss), f"{name}_accuracy": float(accuracy)}
    kept = {"train_examples": len(data.train), "test_examples": len(data.test), "pixels": data.image_size, "final": final}
    return Trained(result, config.to_dict() | kept | dict(about or {}))


def make_missing(jobs: Mapping[Path, Callable[[Path], None]]) -> None:
    """Make every file that is not there yet, and say after each how long the rest will take.

    A file gets its name when its job is done: interrupted, a study goes on with the first one missing.
    """
    missing = [path for path in jobs if not path.exists()]
    started = time.perf_counter()
    for done, path in enumerate(missing):
        unfinished = path.with_name(f"{path.stem}.unfinished")
        unfinished.unlink(missing_ok=True)
        jobs[path](unfinished)
        os.replace(unfinished, path)
        left = (time.perf_counter() - started) / (done + 1) * (len(missing) - done - 1)
        print(f"{path.name} ({done + 1} of {len(missing)}), about {left:.0f} s left", flush=True)
