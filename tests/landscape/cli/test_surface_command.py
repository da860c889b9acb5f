"""`landscape surface` with further metrics, on training and test data, in bfloat16; and what it refuses before any work."""

import sys
from pathlib import Path

import numpy as np
import pytest
from torch.nn import functional as F

import landscape
from landscape.cli import main
from landscape.surfaces import METRICS

OWN = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7))

def some(seed, count):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=g), torch.randint(0, 7, (count,), generator=g)

def train(): return some(0, 20)
def test(): return some(1, 12)
def largest(outputs, target): return outputs.amax(1).mean()
def slow(): raise RuntimeError("the model was loaded")
three = 3
"""
GRID = ["--x", "-1", "1", "5", "--y", "-0.5", "0.5", "3"]
MINE = ["surface", "--model", "ownsurface:net", "--data", "ownsurface:train", "--out", "run.h5", *GRID]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "ownsurface.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ownsurface", raising=False)
    return tmp_path


def test_metrics_and_test_data_are_those_of_the_function(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    also = ["--split", "both", "--test-data", "ownsurface:test", "--metrics", "top5", "ownsurface:largest", "--full"]
    assert main([*MINE, *also]) == 0
    said = capsys.readouterr().out
    assert "on test data  'plane-test' 5 x 3" in said and said.count("top5 0.") == said.count("largest 0.") == 2
    import ownsurface  # type: ignore[import-not-found]

    model = ownsurface.net()
    for name, data in (("plane", ownsurface.train()), ("plane-test", ownsurface.test())):
        found = landscape.open(folder / "run.h5").surfaces[name]
        objective = landscape.Objective(model, F.cross_entropy, data)
        plane = landscape.random_plane(objective, seed=0)
        metrics = {"top5": METRICS["top5"], "largest": ownsurface.largest}
        expected = landscape.loss_surface(objective, plane, (-1, 1, 5), (-0.5, 0.5, 3), metrics=metrics)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-6)
        for metric in metrics:
            np.testing.assert_allclose(found.metrics[metric], expected.metrics[metric], rtol=1e-5)
    assert main(["plot", "run.h5", "--only", "contours", "--formats", "png", "--no-html", "--out", "pictures"]) == 0
    assert {"contours-plane.png", "contours-plane-test.png"} <= {file.name for file in (folder / "pictures").iterdir()}


def test_bf16_says_how_far_it_is_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MINE, "--precision", "bf16", "--full"]) == 0
    plane = landscape.open(folder / "run.h5").surfaces["plane"].plane
    assert f"bf16: off by {100 * plane['precision_error']:.2g} % at most where looked at" in capsys.readouterr().out


REFUSED = [
    (["--plane", "missing.h5"], "missing.h5"),
    (["--metrics", "top3"], "--metrics must be of error, top5, confidence, brier, margin, or package.module:function, got 'top3'"),
    (["--metrics", "ownsurface:three"], "metrics: three must be a function"),
    (["--metrics", "error", "error"], "--metrics names error twice"),
    (["--split", "both"], "--split both with data of your own needs --test-data"),
    (["--test-data", "ownsurface:test"], "--test-data is for --split both"),
    (["--split", "both", "--test-data", "ownsurface:nothing"], "nothing"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ownsurface:slow" if word == "ownsurface:net" else word for word in MINE]
    assert main([*arguments, *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "the model was loaded" not in said
    assert not (folder / "run.h5").exists()


def test_both_is_for_surfaces(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hessian", "--model", "ownsurface:net", "--data", "ownsurface:train", "--split", "both"]) == 2
    assert "--split both is for landscape surface" in capsys.readouterr().err
