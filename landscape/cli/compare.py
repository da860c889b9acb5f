"""The command for people who trained elsewhere: several checkpoints measured alike, and one page about how they differ."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import tyro
from torch import nn
from tqdm import tqdm

import sam_core
from landscape.cli.checkpoints import load_state
from landscape.cli.source import device_named, load, loss_named
from landscape.comparison import Sizes, compare
from landscape.comparison.plan import title
from landscape.comparison.sizes import seconds_of
from landscape.plots.tables import measures_table
from landscape.results import store
from landscape.results.errors import StoreError
from sam_core.training import build_data


@dataclass(frozen=True)
class Compare:
    """Measure checkpoints on the same examples, shards, draws and plane, and write one page about how they differ."""

    INTERRUPTED: ClassVar[str] = "; the same command goes on from what was saved"

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """State_dicts (.pt, .safetensors; also under "model" or "state_dict"), or runs of `landscape train`. Differences are from the first."""
    model: tuple[str, ...] = ()
    """Your model: package.module:factory, called without arguments, returns the torch.nn.Module; one for all, or one for each."""
    data: str | None = None
    """Your data: package.module:factory, returns (inputs, targets), a DataLoader or a list of batches."""
    test_data: str | None = None
    """Test data in the same way, for loss and accuracy beside those on --data."""
    loss: str = "cross_entropy"
    """cross_entropy, mse, or your own as package.module:function, called as loss(outputs, target) or loss(model, batch)."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page to write."""
    results: Path | None = None
    """Folder for the numbers; by default beside the page, such as report-results for report.html."""
    budget: str | None = None
    """Time for everything, such as 90s, 5m, 1h: the largest sizes are chosen that fit. Without it everything is measured in full."""
    names: tuple[str, ...] = ()
    """Names of the checkpoints in tables and pictures; by default their files' or folders'."""
    reference: str | None = None
    """Name of the checkpoint that the others are compared with and whose filters scale the plane; the first by default."""
    examples: int | None = None
    """Measure on so many examples, spread evenly over the data; all by default, or as many as the budget allows."""
    points: int = 51
    """Points along each axis of the plane; 0 for no surfaces."""
    measures: tuple[str, ...] = ("all",)
    """Measures of sharpness, or all; docs/sharpness.md says what there is."""
    batch_size: int | None = None
    """Examples per pass through the model; chosen by their size by default."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """Batch norm with its running statistics, or with those of each batch (then the batch size matters)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision to compute in."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    seed: int = 0
    """Seed of every random draw of the measurement."""

    def run(self) -> None:
        """Measure, print and write the page."""
        if not self.checkpoints:
            raise ValueError("give the checkpoints to compare: landscape compare a.pt b.pt --model package.module:factory --data ...")
        if self.budget is not None:
            seconds_of(self.budget)
        sizes = Sizes(examples=self.examples, points=self.points, between=25 if self.points else 0, measures=self.measures)
        names, device, loss = self._names(), device_named(self.device), loss_named(self.loss)
        if self.reference is not None and self.reference not in names:
            raise ValueError(f"--reference must be one of {', '.join(names)}, got {self.reference!r}")
        if self.out.is_dir():
            raise ValueError(f"--out {self.out} is a folder: name the page, such as {self.out / 'report.html'}")
        folder = self.results or self.out.with_name(f"{self.out.stem}-results")
        _check_places(self.out, folder)
        started = time.perf_counter()
        models, data, test_data = self._loaded(names, device)
        command = " ".join(["landscape", *map(shlex.quote, sys.argv[1:])]) if sys.argv[1:2] == ["compare"] else ""
        found = compare(
            models,
            loss,
            data,
            out=folder,
            test_data=test_data,
            sizes=sizes,
            budget=self.budget,
            seed=self.seed,
            reference=self.reference,
            commands=dict.fromkeys(names, command) if command else None,
            command=command,
            say=tqdm.write,
            batch_size=self.batch_size,
            batch_norm=self.batch_norm,
            dtype=getattr(torch, self.dtype),
            device=device,
        )
        page = found.report(self.out)
        print(f"\n{found.table()}")
        if len(models) > 1:
            print(f"\n{found.differences()}")
        elif (measures := measures_table(list(found.runs.values()))).rows:
            print(f"\n{measures.text()}")
        for (one, other), path in found.paths.items():
            anew = ", batch norm's statistics computed anew at every point" if path.curve.get("statistics") == "recompute" else ""
            print(f"on the straight line from {one} to {other}: {path.summary()}{anew}")
        for part, reason in found.left_out.items():
            print(f"{title(part)} was left out: {reason}")
        files = [*map(str, found.files.values()), *([str(folder / "pairs")] if len(models) > 1 else [])]
        print(f"\nresults   {', '.join(files)}\nreport    {page}\n\n{time.perf_counter() - started:.0f} s in all")

    def _names(self) -> list[str]:
        """Return a name for every checkpoint: its file's, its folder's where files are called alike, or its path."""
        if self.names:
            if len(self.names) != len(self.checkpoints):
                raise ValueError(f"--names must be one for each of the {len(self.checkpoints)} checkpoints, got {len(self.names)}")
            found = list(self.names)
        else:
            ways: list[Callable[[Path], str]] = [lambda p: p.name if p.is_dir() else p.stem, lambda p: p.resolve().parent.name, str]
            every = [[way(path) or str(path) for path in self.checkpoints] for way in ways]
            found = next((names for names in every if len(set(names)) == len(names)), every[-1])
        twice = next((name for name in found if found.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two checkpoints are called {twice!r}: give each its own name with --names")
        return found

    def _loaded(self, names: list[str], device: torch.device) -> tuple[dict[str, nn.Module], Any, Any]:
        """Return the models by name, and the data to measure on."""
        if len(self.model) not in (0, 1, len(self.checkpoints)):
            raise ValueError(
                f"--model must be one factory, or one for each of the {len(self.checkpoints)} checkpoints, got {len(self.model)}"
            )
        if self.model and self.data is None:
            raise ValueError("--model needs --data package.module:factory too: what is the loss to be measured on?")
        if self.model:
            factories = self.model if len(self.model) > 1 else self.model * len(self.checkpoints)
            models = {n: _made(f, path) for n, f, path in zip(names, factories, self.checkpoints, strict=True)}
            data, test_data = load(str(self.data)), None
        else:
            models, data, test_data = self._from_runs(names)
        if self.test_data is not None:
            test_data = load(self.test_data)
        return {name: model.to(device) for name, model in models.items()}, data, test_data

    def _from_runs(self, names: list[str]) -> tuple[dict[str, nn.Module], Any, Any]:
        for path in self.checkpoints:
            if path.is_file() and path.name != "checkpoint.pt":
                raise ValueError(
                    f"{path} is no run of `landscape train`: what model is it of? Give --model package.module:factory and --data"
                )
        saved = [sam_core.load_checkpoint(path) for path in self.checkpoints]
        models = {name: s.model for name, s in zip(names, saved, strict=True)}
        if self.data is not None:
            return models, load(self.data), None
        of_data = [{f.name: getattr(s.config, f.name) for f in dataclasses.fields(s.config) if f.name.startswith(_OF_DATA)} for s in saved]
        for name, other in zip(names[1:], of_data[1:], strict=True):
            differ = [key for key, value in other.items() if value != of_data[0][key]]
            if differ:
                print(f"{name} was trained with another {differ[0]} than {names[0]}: all are measured on the data of {names[0]}")
        built = build_data(saved[0].config)
        return models, built.train.tensors(), built.test.tensors()


_OF_DATA = ("data", "train_examples", "test_examples", "label_noise")


def _made(factory: str, path: Path) -> nn.Module:
    """Return a new model with the parameters of a checkpoint."""
    model = load(factory)
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {factory} must return a torch.nn.Module, it returned a {type(model).__name__}")
    load_state(model, path)
    return model


def _check_places(page: Path, folder: Path) -> None:
    """Find out before long work that the page and the results can be written."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--results {folder} is a file: name a folder")
    nearest = next(p for p in page.resolve().parents if p.exists())
    try:
        store.check_writable(nearest / ".landscape.h5")
    except StoreError as error:
        raise ValueError(f"cannot write {page}: {nearest} is no folder that can be written to") from error
