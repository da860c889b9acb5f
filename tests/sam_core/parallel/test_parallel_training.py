"""`train()` in several processes against `train()` in one: the same history, the same weights, one checkpoint for both."""

import copy
import math
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from torch import Tensor

from sam_core.parallel import RankLostError, start
from sam_core.parallel.team import Team, prepared
from sam_core.training import Hook, TrainConfig, Trainer, build_data, build_model, build_trainer, load_checkpoint, train

SMALL: dict[str, Any] = {
    "train_examples": 75, "test_examples": 40, "batch_size": 16, "epochs": 2, "model": "vit_tiny",
    "model_options": ("width=8", "depth=1", "heads=2"), "warmup_epochs": 0.5,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "sampa": {"method": "sampa", "rho": 0.1},
    "sampa, lam=0": {"method": "sampa", "lam": 0.0, "optimizer": "adamw", "lr": 0.01, "model": "mlp", "model_options": ()},
    "sam": {"method": "sam", "rho": 0.1},
    "msam": {"method": "msam", "rho": 0.1},
    "sgd": {"method": "sgd", "nesterov": True, "label_smoothing": 0.1},
    "mesa": {"method": "mesa", "options": ("start=2",)},
    "fsam": {"method": "fsam", "options": ("max_grad_norm=0.5",)},
    "sam-db": {"method": "sam-db"},
    "sampa, running statistics": {"method": "sampa", "model": "resnet8", "model_options": ("width=4",), "epochs": 1},
}
CONTINUED = ("sampa", "fsam")
"""Uneven last batches: 75 = 4 x 16 + 11."""


def numbers(run: Trainer) -> dict[str, Any]:
    return {
        "history": [asdict(record) for record in run.history],
        "weights": {name: value.clone() for name, value in run.model.state_dict().items()},
        "state": copy.deepcopy(run.state_dict()),
    }


def fitted(config: TrainConfig, team: Team | None = None, at: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train in float64, from the beginning or from a saved state."""
    held = build_data(config)
    torch.manual_seed(0)
    run = build_trainer(config, build_model(config, held).double(), held, team=team, progress=False)
    if at is not None:
        run.model.load_state_dict(at["weights"])
        run.load_state_dict(copy.deepcopy(at["state"]))
    saved: list[dict[str, Any]] = []
    run.fit(lambda r: saved.append(numbers(r)), 3)
    return {**saved[-1], "on the way": saved[0]}


def in_float64(rank: int, world: int) -> dict[str, Any]:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    result = {}
    for name, fields in RUNS.items():
        if world == 4 and "running" in name:  # each would normalise its own part of a batch
            continue
        config, place = prepared(TrainConfig(**{**SMALL, **fields}, device="cpu"))
        team = Team(start("cpu", roles=place.roles), config)
        result[name] = fitted(config, team)
        if name in CONTINUED:
            result[f"{name}, continued"] = fitted(config, team, fitted(config)["on the way"])
    return result


def close(one: Any, other: Any, where: str) -> None:
    """Compare to 1e-12; where one side has nothing (the parts of a state that time decides) nothing is compared."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in ("seconds", "random", "draws"):
                close(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            close(a, b, f"{where}.{i}")
    elif isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text: f"{where}: {text}")
    elif isinstance(one, float) and math.isfinite(one):
        assert one == pytest.approx(other, rel=1e-12, abs=1e-12), where
    else:
        assert one == other or one != one, where


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_kind_of_method_trains_as_in_one_process(world: int, tmp_path: Path) -> None:
    found = together(world, in_float64, tmp_path)
    for name, fields in RUNS.items():
        pieces = world // 2 if fields["method"] == "sampa" else world
        alone = {"m": pieces} if fields["method"] == "msam" else {}
        if name not in found[0]:
            continue
        config = TrainConfig(**{**SMALL, **fields, **alone}, device="cpu")
        reference = fitted(config)
        if name in CONTINUED:
            close(fitted(config, at=found[1][name]["on the way"])["weights"], reference["weights"], f"{name}, continued by one process")
            close(found[1][f"{name}, continued"]["weights"], reference["weights"], f"{name}, continued by {world} processes")
        for rank in range(world):
            close(found[rank][name], reference, f"{name}, rank {rank}")
            for key, value in found[0][name]["weights"].items():
                assert torch.equal(found[rank][name]["weights"][key], value), f"{name}, {key} of rank {rank}"
            ours, theirs = (f[name]["history"] for f in (found[rank], found[0]))
            assert [{**r, "seconds": 0} for r in ours] == [{**r, "seconds": 0} for r in theirs]


class Steps(Hook):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def after_step(self, run: Trainer) -> None:
        self.seen.append(run.step)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


@pytest.mark.distributed
@pytest.mark.parametrize("method", ["sampa", pytest.param("msam", marks=pytest.mark.slow)])
def test_a_run_on_two_devices_goes_on_on_one(method: str, tmp_path: Path) -> None:
    alone = {**SMALL, "method": method, "m": 2 if method == "msam" else None}
    one = train(TrainConfig(**alone), out=tmp_path / "one", progress=False)
    hook = Steps()
    two = train(TrainConfig(**alone, devices="cpu,cpu"), [hook], out=tmp_path / "two", progress=False)
    assert hook.seen == list(range(1, 11)) and two.leads and two.config.m == alone["m"]
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    again = train(TrainConfig(**alone), [Steps()], out=tmp_path / "two", resume=True, progress=False)
    assert again.resumed_from == 10 and again.history == two.history
    assert load_checkpoint(tmp_path / "two").config.devices == "cpu,cpu"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"devices": "cpu"}, "devices must be at least two of a kind, like cuda:0,cuda:1 or cpu,cpu, not 'cpu'"),
        ({"devices": "cpu,cuda:0"}, "at least two of a kind"),
        ({"devices": "cuda:0,cuda:1,cuda:0,cuda:1"}, "names a GPU twice"),
        ({"devices": "cpu, cpu"}, "not 'cpu, cpu'"),
        ({"devices": "cpu,cpu", "device": "cpu"}, "device='cpu' and devices='cpu,cpu' exclude each other"),
        ({"devices": "cpu,cpu", "method": "msam", "m": 4}, "m=4 must be the number of devices, 2"),
        ({"devices": "cpu,cpu,cpu", "method": "sampa"}, "which 3 devices cannot share equally"),
        ({"devices": "cpu,cpu", "method": "saf"}, "holds examples to their own past"),
        ({"devices": "cpu,cpu", "method": "sampa", "options": ("per_shard=true",)}, "per_shard=true"),
        ({"devices": "cpu,cpu", "method": "sampa", "options": ("scope=local",)}, "scope=local: SAMPa carries"),
        ({"timeout": 0}, r"timeout must be a number in \(0, inf\), not 0"),
        ({"timeout": math.nan}, "timeout must be a number"),
    ],
)
def test_devices_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrainConfig(**fields)


def test_what_cannot_be_shared_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leaves a last batch of 1 examples, which 2 processes cannot share"):
        train(TrainConfig(**{**SMALL, "train_examples": 65}, devices="cpu,cpu"), out=tmp_path / "run")
    with pytest.raises(ValueError, match="device 'cuda:70' is not there"):
        train(TrainConfig(**SMALL, devices="cuda:70,cuda:71"))
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_start_is_reported_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'Traceback (most recent call last):' >&2\necho 'ImportError: no torch here' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(RankLostError, match=r"^rank 1 \(y\) could not start: ImportError: no torch here, noticed by rank 0 \(x~\)$"):
        train(TrainConfig(**SMALL, method="sampa", devices="cpu,cpu"), out=tmp_path / "run")
    assert not list(tmp_path.glob("landscape-*")) and not (tmp_path / "run").exists()
