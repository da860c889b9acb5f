"""`landscape sharpness --measures`: one table of everything, the same numbers as in Python, nothing measured twice."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import landscape
from landscape import sharpness
from landscape.cli import main
from landscape.objective import Objective
from landscape.sharpness.all_measures import MEASURES

OWN = """
import torch
from torch import nn

def net():
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator)
    return model

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=g), torch.randint(0, 3, (40,), generator=g)

def squared(model, batch):
    return (model(batch[0]) ** 2).mean()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "own_net_for_sharpness.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return ["sharpness", "--model", "own_net_for_sharpness:net", "--data", "own_net_for_sharpness:data", "--draws", "4"]


def test_all_measures_make_one_table_and_are_not_measured_twice(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, "--measures", "all"]) == 0
    printed = capsys.readouterr().out
    file = landscape.open("run.h5").sharpness
    assert {r.measure for r in file.values()} == set(MEASURES) - {"adaptive_average_case"} and len(file) == 16
    lines = [line for line in printed.splitlines() if line.split("  ")[0] in MEASURES]
    assert len(lines) == 16 and all(" s" in line and "batch norm eval" in line for line in lines)
    assert sum("±" in line for line in lines) == 15 and sum("(one shard)" in line for line in lines) == 1  # m = n = 40
    module = __import__("own_net_for_sharpness")
    objective = Objective(module.net(), cross_entropy, module.data(), dtype=torch.float32)
    same = sharpness.worst_case(objective, m=10, normalize_logits=True)
    assert [r.value for r in file.values() if r.measure == "worst_case"] == pytest.approx([same.value], rel=1e-6)
    created = {name: r.provenance.created_at for name, r in file.items()}
    seconds = {name: r.cost.seconds for name, r in file.items()}
    assert main([*own, "--measures", "all"]) == 0
    assert "16 of 16 were there already" in capsys.readouterr().out
    again = landscape.open("run.h5").sharpness
    assert {name: r.provenance.created_at for name, r in again.items()} == created
    assert {name: r.cost.seconds for name, r in again.items()} == seconds
    assert main([*own, "--measures", "low_pass", "--seed", "1"]) == 0
    assert "already" not in capsys.readouterr().out and len(landscape.open("run.h5").sharpness) == 17


def test_an_interrupted_table_keeps_what_was_measured(own: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("landscape.sharpness.all_measures.keskar", interrupted)
        assert main([*own, "--measures", "all"]) != 0
    kept = len(landscape.open("run.h5").sharpness)
    assert kept == 11  # what comes before in the table: three sizes of shards, five radii, gradient, Fisher, worst case
    assert main([*own, "--measures", "all"]) == 0


def test_what_a_loss_or_mode_does_not_have_is_left_out_and_said(own: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own, "--measures", "all", "--loss", "own_net_for_sharpness:squared", "--batch-norm", "batch", "--out", "b.h5"]) == 0
    printed = capsys.readouterr().out
    assert "fisher_trace was left out: labels='model' needs cross_entropy" in printed and "keskar" in printed
    assert main([*own, "--measures", "fisher_trace", "--batch-norm", "batch", "--out", "b.h5"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--measures", "sharp"], "measures must be 'all' or some of m_sharpness, sam_gap"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--draws", "2"], "--draws must be at least 3, got 2"),
    ],
)
def test_wrong_arguments_take_one_line(own: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*own[:-2], *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not Path("run.h5").exists()


def test_rows_without_an_error_bar_say_why() -> None:
    x, y = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
    found = sharpness.m_sharpness(Objective(nn.Linear(2, 2), cross_entropy, (x, y)), m=8)
    assert np.isnan(found.stderr) and "(one shard)" in sharpness.table([found])


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_of_torchrun_share_the_work_and_write_once(own: list[str], tmp_path: Path) -> None:
    options = [*own, "--measures", "m_sharpness", "worst_case", "average_case", "sam_gap", "--out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "landscape.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    done = [
        subprocess.run([*torchrun, *options, "two.h5"], capture_output=True, text=True, env=environment, cwd=tmp_path) for _ in range(2)
    ]
    assert all(run.returncode == 0 for run in done), done[0].stderr
    assert "there were already" not in done[0].stdout and "10 of 10 were there already" in done[1].stdout
    assert done[0].stdout.count("worst_case") == 1, "the first process alone prints"
    assert main([*options, "one.h5"]) == 0
    one, two = (landscape.open(name).sharpness for name in ("one.h5", "two.h5"))
    assert list(one) == list(two) and len(one) == 10
    for name in one:
        np.testing.assert_allclose(two[name].per_shard, one[name].per_shard, rtol=1e-4, atol=1e-6)
