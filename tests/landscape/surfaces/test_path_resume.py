"""Interrupted, killed and continued paths against uninterrupted ones, bit for bit."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import network
from torch import Tensor, nn
from torch.nn import functional as F

import landscape
from landscape.objective import Objective
from landscape.results.types import LossPath
from landscape.surfaces import connect_modes, linear_path, loss_trajectory
from landscape.surfaces.unfinished import file_of


class Interruptible(nn.Module):
    """Cross-entropy that is interrupted at one of its calls."""

    def __init__(self, at: int = -1, smoothing: float = 0.0, pause: float = 0.0) -> None:
        super().__init__()
        self.at, self.calls, self.smoothing, self.pause = at, 0, smoothing, pause

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        return F.cross_entropy(outputs, target, label_smoothing=self.smoothing)


def objective_with(loss: Interruptible, **change: Any) -> Objective:
    problem = network("cnn", dtype=torch.float32)
    at, loss.at = loss.at, -1
    objective = Objective(problem.model, loss, problem.data, **{"batch_size": 5, **change})
    objective.provenance()  # its pass over the data is behind us: calls and interruptions are those of the path
    loss.at, loss.calls = at, 0
    return objective


def points() -> list[nn.Module]:
    return [network("cnn", seed=seed, dtype=torch.float32).model for seed in (1, 2, 3)]


def linear(objective: Objective, **options: Any) -> LossPath:
    return linear_path(objective, *points()[:2], 4, **options)


def recomputed(objective: Objective, **options: Any) -> LossPath:
    return linear_path(objective, *points()[:2], 4, statistics="recompute", align=True, **options)


def connected(objective: Objective, **options: Any) -> LossPath:
    return connect_modes(objective, *points()[:2], bends=2, epochs=3, points=3, batch_size=4, weight_decay=0.01, lr=0.1, **options).path


def trajectory(objective: Objective, **options: Any) -> LossPath:
    return loss_trajectory(objective, points(), [0, 2, 5], **options)


def numbers(path: LossPath) -> dict[str, Any]:
    fields = {f.name: getattr(path, f.name) for f in dataclasses.fields(path) if f.name not in ("cost", "provenance")}
    return fields | {"forwards": path.cost.forwards, "gradients": path.cost.gradients}


def same(one: LossPath, other: LossPath) -> bool:
    a, b = numbers(one), numbers(other)
    for name in a:
        np.testing.assert_equal(a[name], b[name], err_msg=name)
    return True


# The calls of the loss: 3 batches at 4 points, the same after the statistics; for a connection 9 + 9 before the training, whose 9 steps go
# on counting in a copy of the loss, and 9 + 9 after it.
@pytest.mark.parametrize(
    ("measure", "ats"),
    [
        (linear, (1, 5, 12)),
        (recomputed, (2, 7, 13)),
        (connected, (8, 19, 22, 27, 30)),
        (trajectory, (4,)),
    ],
)
def test_an_interrupted_path_goes_on_to_the_same_bits(measure: Callable[..., LossPath], ats: tuple[int, ...], tmp_path: Path) -> None:
    loss = Interruptible()
    whole = measure(objective_with(loss))
    calls = loss.calls
    assert calls >= max(ats)
    for at in ats:
        out = tmp_path / f"{at}.h5"
        with pytest.raises(KeyboardInterrupt):
            measure(objective_with(Interruptible(at)), out=out, name="a")
        assert file_of(out, "a").exists() and not out.exists()
        rest = Interruptible()
        found = measure(objective_with(rest), out=out, name="a")
        assert same(found, dataclasses.replace(whole, name="a")) and rest.calls <= calls - min(at, 19) + 3
        assert not file_of(out, "a").exists() and same(landscape.open(out).paths["a"], found)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole = connected(objective_with(Interruptible()))
    for _ in range(100):
        try:
            found = connected(objective_with(Interruptible(5)), out=tmp_path / "run.h5", save_every=0)
        except KeyboardInterrupt:
            continue
        break
    assert same(found, whole) and found.cost.seconds > 0


def test_another_question_is_refused_by_what_differs(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    with pytest.raises(KeyboardInterrupt):
        linear(objective_with(Interruptible(5)), out=out)
    before = file_of(out, "linear").read_bytes()
    ends = points()
    changes: list[tuple[str, Callable[[], object]]] = [
        ("points", lambda: linear_path(objective_with(Interruptible()), *ends[:2], 5, out=out)),
        ("points", lambda: linear_path(objective_with(Interruptible()), *ends[1:], 4, out=out)),
        ("statistics of batch norm", lambda: linear(objective_with(Interruptible()), out=out, statistics="recompute")),
        ("options", lambda: linear(objective_with(Interruptible()), out=out, name="linear", align=True)),
        ("batch sizes", lambda: linear(objective_with(Interruptible(), batch_size=4), out=out)),
        ("dtypes", lambda: linear(objective_with(Interruptible(), dtype=torch.float64), out=out)),
        ("loss functions", lambda: linear(objective_with(Interruptible(smoothing=0.1)), out=out)),
    ]
    for words, call in changes:
        with pytest.raises(ValueError, match=rf"state of another path 'linear': the .*{words}.* differ.*resume=False"):
            call()
    assert file_of(out, "linear").read_bytes() == before
    loss = Interruptible()
    assert same(linear(objective_with(loss), out=out, resume=False), linear(objective_with(Interruptible()))) and loss.calls == 12


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_damaged_or_foreign_state_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = file_of("run.h5", "linear")
    for content in (b"", b"no state", pickle.dumps(Bomb())):
        place.write_bytes(content)
        with pytest.raises(ValueError, match="is no state of an unfinished path .*remove it"):
            linear(objective_with(Interruptible()), out="run.h5")
    torch.save({"question": Bomb(), "stages": {}}, place)
    with pytest.raises(ValueError, match="is no state of an unfinished path"):
        linear(objective_with(Interruptible()), out="run.h5")
    assert not Path("exploded").exists()


SLOW = """
import sys
sys.path.insert(0, {tests!r})
import test_path_resume as t
t.{measure}(t.objective_with(t.Interruptible(pause=0.02)), out={out!r}, name="a", save_every=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("measure", [linear, connected, trajectory])
def test_a_killed_process_loses_little(measure: Callable[..., LossPath], tmp_path: Path) -> None:
    out, here = tmp_path / "run.h5", Path(__file__).parent
    script = SLOW.format(tests=str(here), out=str(out), measure=measure.__name__)
    environment = os.environ | {"PYTHONPATH": str(here.parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 60
    while not file_of(out, "a").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.6 if measure is connected else 0.04)  # into the training of the bends
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    torch.set_num_threads(1)
    loss, rest = Interruptible(), Interruptible()
    whole = measure(objective_with(loss), name="a")
    assert same(measure(objective_with(rest), out=out, name="a"), whole) and rest.calls < loss.calls
