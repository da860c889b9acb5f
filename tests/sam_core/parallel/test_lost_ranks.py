"""What happens to one rank of two, against the run to which nothing happened: the same bits, one line that says what it was."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import assert_same, everything
from torch import Tensor

from landscape.cli import main
from sam_core.training import load_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")]

STEP = r"in step \d+; go on with --resume"
SAID = {
    "1:9": rf"landscape: rank 1 \(y\) was killed by signal 9, noticed by rank 0 \(x~\) {STEP}",
    "0:9": rf"landscape: rank 0 \(x~\) is gone, noticed by rank 1 \(y\) {STEP}",
    "1:19": rf"landscape: rank 1 \(y\) did not answer in time, noticed by rank 0 \(x~\) {STEP}",
    "0:19": rf"landscape: rank 0 \(x~\) did not answer in time, noticed by rank 1 \(y\) {STEP}",
    "1:2": "landscape: interrupted; go on with the same command and --resume",
}
CODES = {"1:9": 2, "0:9": -signal.SIGKILL, "1:19": 2, "0:19": 2, "1:2": 130}


def lives(folder: Path, ends: str, dropout: str, blows: list[str]) -> list[dict[str, Any]]:
    (folder / "tmp").mkdir()
    program = [sys.executable, str(Path(__file__).with_name("lives.py")), str(folder), ends, dropout, *blows]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(folder / "tmp")})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "lives.json").read_text())


def check(folder: Path, blows: list[str], *, ends: str, dropout: str) -> None:
    whole, *struck, last = lives(folder, ends, dropout, blows)
    assert whole["code"] == 0 and last["code"] == 0, whole["said"] + last["said"]
    for blow, found in zip(blows, struck, strict=True):
        assert re.fullmatch(SAID[blow] + "\n", found["said"]), f"{blow}: {found['said']}"
        assert found["code"] == CODES[blow], blow
        assert not found["orphan"] and not found["left"], blow
        assert found["seconds"] < 30, blow
    assert 0 < struck[-1]["step"] < 25 * (8 + 2 * len(blows)), "the blows came too late"
    if ends == "2":
        assert_same(folder / "whole", folder / "struck")
    else:  # random numbers, of which there are none, are drawn in another way in two processes
        one, other = ([(n, x) for n, x in everything(folder / name) if ".random." not in n] for name in ("whole", "struck"))
        assert [n for n, _ in one] == [n for n, _ in other]
        for (name, a), (_, b) in zip(one, other, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b or a != a, name


def test_killed_on_two_processes_as_undisturbed_on_one(tmp_path: Path) -> None:
    check(tmp_path, ["1:9", "0:9"], ends="1", dropout="0.0")


@pytest.mark.slow
def test_interrupted_on_two_processes_as_undisturbed_on_one(tmp_path: Path) -> None:
    check(tmp_path, ["1:2"], ends="1", dropout="0.0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    check(tmp_path, ["1:9", "0:9"] * 10, ends="2", dropout="0.2")


@pytest.mark.slow
def test_a_rank_that_hangs(tmp_path: Path) -> None:
    check(tmp_path, ["0:19", "1:19"], ends="2", dropout="0.2")


@pytest.mark.slow
@pytest.mark.parametrize(("blow", "said"), [(9, "was killed by signal 9"), (19, "did not answer in time")])
def test_of_four_processes_the_lost_one_is_named(blow: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "landscape.cli", "train", "--method", "sampa", "--devices", "cpu,cpu,cpu,cpu", "--timeout", "3"]
    command += ["--train-examples", "400", "--epochs", "200", "--checkpoint-steps", "5", "--out", str(tmp_path / "run"), "--model", "mlp"]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment) as process:
        while process.poll() is None and (not (tmp_path / "run/checkpoint.pt").exists() or load_checkpoint(tmp_path / "run").step < 10):
            time.sleep(0.05)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 3
        os.kill(children[2], blow)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(rf"landscape: rank 3 \(y\) {said}, noticed by rank \d \(\S+\) {STEP}\n$", errors), errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
    assert not list((tmp_path / "tmp").glob("landscape-*"))


@pytest.mark.slow
def test_started_by_torchrun(tmp_path: Path) -> None:
    small = ["--train-examples", "80", "--test-examples", "40", "--epochs", "2", "--batch-size", "16", "--model", "mlp", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += [
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "landscape.cli",
        "train",
        "--method",
        "msam",
        *small,
        "--out",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint ") == 1
    assert main(["train", "--method", "msam", "--m", "2", *small, "--out", str(tmp_path / "one")]) == 0
    one, two = (load_checkpoint(tmp_path / name) for name in ("one", "two"))
    assert two.config.m == 2
    for a, b in zip(one.model.state_dict().values(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert main(["train", "--method", "msam", "--m", "2", *small, "--out", str(tmp_path / "two"), "--resume"]) == 0


DEAF = """
import signal, sys, time
from sam_core.training import Hook, TrainConfig, train

class Hang(Hook):
    def after_step(self, run):
        if run.step == 5:
            if sys.argv[2] == "deaf":
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(100)

config = TrainConfig(method="sam", train_examples=128, batch_size=16, epochs=2, model="mlp", devices="cpu,cpu", timeout=2)
train(config, [Hang()], out=sys.argv[1], progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["listening", "deaf"])
def test_a_hook_that_never_returns(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    program = [sys.executable, "-c", DEAF, str(tmp_path / "run"), kind]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=90)
    assert done.returncode == 1
    assert "rank 0 did not answer in time, noticed by rank 1 in step 6" in done.stderr.splitlines()[-1], done.stderr
    assert not list((tmp_path / "tmp").glob("landscape-*"))
