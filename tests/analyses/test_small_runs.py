"""What the studies share: splits and wrong labels against counts, work that goes on, networks without shortcuts against their formula."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, relu

import landscape

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "analyses"))
    yield lambda name: runpy.run_path(str(ROOT / "analyses" / f"{name}.py"))
    for name in ("small_runs", "skip_connections"):
        sys.modules.pop(name, None)


def test_digits_are_split_without_loss_and_so_many_labels_are_wrong(study) -> None:
    digits = study("small_runs")["digits"]
    clean = digits(600)
    images = torch.cat([clean.train.inputs, clean.test.inputs]).flatten(1)
    assert len(clean.train) == 600 and len(images) == 1797
    everything = torch.cat([part.tensors()[0] for part in (landscape_digits().train, landscape_digits().test)]).flatten(1)
    assert torch.equal(images.sort(0).values, everything.sort(0).values)
    wrong = {share: digits(600, share).train.targets != clean.train.targets for share in (0.2, 0.6)}
    assert [int(of.sum()) for of in wrong.values()] == [120, 360]
    assert (wrong[0.6] | ~wrong[0.2]).all(), "the larger share holds the smaller one"
    noisy = digits(600, 0.6)
    assert torch.equal(noisy.test.targets, clean.test.targets), "tested on true labels"
    assert set(noisy.train.targets.tolist()) <= set(range(10))


def landscape_digits():
    from sam_core import data

    return data.load("digits")


def test_an_interrupted_study_goes_on_with_what_is_missing(study, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_missing = study("small_runs")["make_missing"]
    made: list[str] = []

    def job(path: Path) -> None:
        made.append(path.stem)
        path.write_text("half")
        if path.stem == "b" and made.count("b") == 1:
            raise KeyboardInterrupt
        path.write_text("whole")

    jobs = {tmp_path / f"{name}.h5": job for name in "abc"}
    with pytest.raises(KeyboardInterrupt):
        make_missing(jobs)
    assert (tmp_path / "a.h5").exists() and not (tmp_path / "b.h5").exists()
    make_missing(jobs)
    assert made == ["a", "b", "b", "c"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(["a.h5", "b.h5", "c.h5"], "whole")
    assert "s left" in capsys.readouterr().out


def test_a_network_without_shortcuts_is_a_chain(study) -> None:
    study("skip_connections")
    from sam_core import models

    network = models.make("plain20", 10, 3, width=4, seed=3).eval()
    assert [p.shape for p in network.parameters()] == [p.shape for p in models.make("resnet20", 10, 3, width=4).parameters()]
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    h = relu(network.bn1(network.conv1(x)))
    for stage in network.stages:
        for block in stage:
            h = relu(block.bn2(block.conv2(relu(block.bn1(block.conv1(h))))))
    torch.testing.assert_close(network(x), network.classifier(h.mean((2, 3))))


def test_extreme_eigenvalues_over_a_plane_against_dense_hessians(study) -> None:
    extremes = study("convexity")["extremes"]
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    data = torch.randn(20, 3, generator=generator, dtype=torch.float64), torch.arange(20) % 3
    objective = landscape.Objective(model, cross_entropy, data)
    plane, before = landscape.random_plane(objective, "filter", seed=0), [p.clone() for p in model.parameters()]
    x, y = np.array([-0.5, 0.5]), np.array([-1.0, 0.0, 1.0])
    found = extremes(objective, plane, x, y, tol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for i, (b, a) in enumerate((b, a) for b in y for a in x):
        point = plane.at(a, b)
        w1, b1, w2, b2 = (t.detach() for t in point.values())
        blocks = torch.autograd.functional.hessian(
            lambda w1, b1, w2, b2: cross_entropy(torch.tanh(data[0] @ w1.T + b1) @ w2.T + b2, data[1]), (w1, b1, w2, b2)
        )
        sizes = [t.numel() for t in point.values()]
        rows = [
            torch.cat([block.reshape(n, m) for block, m in zip(row, sizes, strict=True)], 1) for row, n in zip(blocks, sizes, strict=True)
        ]
        dense = torch.linalg.eigvalsh(torch.cat(rows)).numpy()
        np.testing.assert_allclose(found.values[i], dense[[-1, 0]], rtol=1e-6)
