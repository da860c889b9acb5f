"""What a measuring command measures: a checkpoint of `landscape train`, or anybody's own model and data."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

import sam_core
from landscape.cli.checkpoints import load_state
from landscape.objective import Objective
from landscape.results.types import GradientTrace, Result
from sam_core.training import build_data

_LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}


@dataclass(frozen=True)
class Source:
    """The model and the data to measure."""

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    """Checkpoint or run folder of `landscape train`; with --model its state_dict (.pt, .safetensors), or nothing if it comes trained."""
    model: str | None = None
    """Your own model: package.module:factory, called without arguments, returns the torch.nn.Module."""
    data: str | None = None
    """Your own data: package.module:factory, returns (inputs, targets), a DataLoader or a list of batches."""
    loss: str = "cross_entropy"
    """cross_entropy, mse, or your own as package.module:function, called as loss(outputs, target) or loss(model, batch)."""
    split: Literal["train", "test", "both"] = "train"
    """Which part of the checkpoint's data set to measure on; both is for `landscape surface`, and gives two."""
    data_dir: Path | None = None
    """Where the checkpoint's data set lies now, if it has moved."""
    examples: int | None = None
    """Measure on so many examples only, the same ones for every model; all by default."""
    batch_size: int | None = None
    """Examples per pass through the model; chosen by their size by default. Results do not depend on it."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """Batch norm with its running statistics, or with those of each batch (then the batch size matters)."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision to compute in."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""
    out: Path | None = None
    """Result file to add to; by default run.h5 beside the checkpoint."""
    seed: int = 0
    """Seed of every random draw of the measurement."""

    def objective(self) -> Objective:
        """Return the loss of the model on the data.

        Returns:
            The objective that every measurement asks.

        Raises:
            ValueError: a file, factory or option is not what it should be.
        """
        if self.split == "both":
            raise ValueError("--split both is for landscape surface: give train or test")
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"--examples must be at least 1, got {self.examples}")
        device = device_named(self.device)
        if self.model is None:
            model, data, loss = self._from_checkpoint()
        else:
            model, data, loss = self._from_factories()
        data = self._cut(data)
        return Objective(
            model.to(device),
            loss,
            data,
            batch_size=self.batch_size,
            batch_norm=self.batch_norm,
            dtype=getattr(torch, self.dtype),
            device=device,
        )

    def results_file(self) -> Path:
        """Return the file that results are added to."""
        if self.out is not None:
            return self.out
        if self.checkpoint is None:
            return Path("run.h5")
        return (self.checkpoint if self.checkpoint.is_dir() else self.checkpoint.parent) / "run.h5"

    def data_beside(self, test_data: str | None) -> Any:
        """Return the test data of the checkpoint's data set, or your own: package.module:factory.

        Args:
            test_data: your own; None for the checkpoint's.

        Returns:
            Data that an objective takes.

        Raises:
            ValueError: there are none.
        """
        if test_data is not None:
            return dataclasses.replace(self, data=test_data)._cut(load(test_data))
        if self.model is not None or self.data is not None:
            raise ValueError("--split both with data of your own needs --test-data package.module:factory too")
        return dataclasses.replace(self, split="test")._from_checkpoint()[1]

    def _cut(self, data: Any) -> Any:
        """Return data of the user's own cut to --examples; those of a checkpoint come so."""
        return (
            first_examples(data, self.examples) if self.examples is not None and (self.model is not None or self.data is not None) else data
        )

    def _from_checkpoint(self) -> tuple[nn.Module, Any, Callable[..., Tensor]]:
        if self.checkpoint is None:
            raise ValueError("give a checkpoint of `landscape train`, or --model package.module:factory and --data package.module:factory")
        saved = sam_core.load_checkpoint(self.checkpoint)
        if self.data is not None:
            return saved.model, load(self.data), loss_named(self.loss)
        config = saved.config if self.data_dir is None else dataclasses.replace(saved.config, data_dir=self.data_dir)
        data = build_data(config)
        examples = (data.train if self.split == "train" else data.test).take(self.examples, "--examples")
        return saved.model, examples.tensors(), loss_named(self.loss)

    def _from_factories(self) -> tuple[nn.Module, Any, Callable[..., Tensor]]:
        if self.data is None:
            raise ValueError("--model needs --data package.module:factory too: what is the loss to be measured on?")
        assert self.model is not None
        model = load(self.model)
        if not isinstance(model, nn.Module):
            raise ValueError(f"--model {self.model} must return a torch.nn.Module, it returned a {type(model).__name__}")
        if self.checkpoint is not None:
            load_state(model, self.checkpoint)
        return model, load(self.data), loss_named(self.loss)


def check_one_model(path: Path, results: Sequence[Result], parameter_sha256: str | None = None) -> None:
    """Refuse to mix numbers of two models in one file. A gradient trace may be of another run: it follows training, not a model."""
    found = {r.provenance.parameter_sha256 for r in results if not isinstance(r, GradientTrace) and r.provenance.parameter_sha256}
    if parameter_sha256 is not None and found - {parameter_sha256}:
        raise ValueError(f"{path} holds results of other weights than these: give --out another file")
    if len(found) > 1:
        raise ValueError(f"{path} holds results of {len(found)} models: measure each into a file of its own")


def device_named(name: str) -> torch.device:
    """Return a device by name, or say what there is."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def loss_named(name: str) -> Callable[..., Tensor]:
    """Return a loss by its short name or as package.module:function."""
    if name in _LOSSES:
        return _LOSSES[name]
    if ":" not in name:
        raise ValueError(f"--loss must be one of {', '.join(_LOSSES)}, or package.module:function, got {name!r}")
    loss = resolve(name)
    if not callable(loss):
        raise ValueError(f"--loss {name} is a {type(loss).__name__}, not a function")
    return loss if not isinstance(loss, type) else loss()


def resolve(reference: str) -> Any:
    """Return the object that package.module:name means; modules are also looked for in the current folder.

    Args:
        reference: such as "mypackage.models:small_net".

    Returns:
        The object.

    Raises:
        ValueError: it cannot be imported or does not exist.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ValueError(f"{reference!r} must have the form package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ValueError(f"{reference}: cannot import {module_name!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{reference}: {error}") from error
    return found


def load(reference: str) -> Any:
    """Return what a factory given as package.module:name makes."""
    made = resolve(reference)
    if not callable(made) or isinstance(made, nn.Module):
        return made
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise ValueError(f"{reference} is called without arguments: {error}") from error
    except ValueError:  # it has no signature
        pass
    return made()


def first_examples(data: Any, count: int | None) -> Any:
    """Return data cut to its first `count` examples where it is given as tensors; other data must be cut by who gives it."""
    if count is None:
        return data
    if isinstance(data, tuple) and all(isinstance(t, Tensor) for t in data):
        return tuple(t[:count] for t in data)
    raise ValueError("--examples cuts data given as a tuple of tensors; let your --data factory return fewer examples instead")
