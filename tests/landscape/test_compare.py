"""compare() against the single measurements, and what it does with a folder that has results already."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.plots import RunReport

SIZES = landscape.Sizes(eigenpairs=2, points=5, shards=(1, 7, 100), density_probes=1, density_steps=6, surface_examples=10, trace_tol=0.2)


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=g), torch.randint(0, 3, (20,), generator=g)


@pytest.fixture
def models() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight.mul_(1.5)
    return {"sgd": first, "a/b <script>": second}


def test_each_number_is_that_of_the_single_call(models, data, tmp_path: Path) -> None:
    found = landscape.compare(models, F.cross_entropy, data, out=tmp_path, sizes=SIZES, test_data=data)
    for name, model in models.items():
        run, objective = found.runs[name], landscape.Objective(model, F.cross_entropy, data)
        np.testing.assert_allclose(run.eigen.values, landscape.top_eigenpairs(objective, k=2, tol=1e-3).values, rtol=1e-6)
        assert run.sharpness[7].value == pytest.approx(landscape.m_sharpness(objective, m=7).value, rel=1e-6)
        assert list(run.sharpness) == [1, 7, 20]  # m = 100 is more than there are
        assert run.attributes["test_accuracy"] == pytest.approx(float(objective.evaluate().accuracy))
        assert landscape.open(found.files[name]).eigen.values.tolist() == run.eigen.values.tolist()
        small = landscape.Objective(model, F.cross_entropy, tuple(t[:10] for t in data))
        assert run.surfaces["plane"].loss[2, 2] == pytest.approx(small.loss(), rel=1e-6)
    planes = [run.surfaces["plane"].plane["direction_sha256"] for run in found.runs.values()]
    assert planes[0] == planes[1], "all models lie on planes of the same directions"
    assert "sgd" in found.table() and repr(found) == found.table()
    page = found.report(tmp_path / "report.html").read_text()
    assert "a/b &lt;script&gt;" in page and "a/b <script>" not in page
    assert {p.parent for p in found.files.values()} == {tmp_path}


def test_what_is_there_is_not_measured_again_but_another_question_is(models, data, tmp_path: Path) -> None:
    once = landscape.compare(models, F.cross_entropy, data, out=tmp_path, sizes=SIZES)
    again = landscape.compare(models, F.cross_entropy, data, out=tmp_path, sizes=SIZES)
    assert again.runs["sgd"].eigen.provenance.created_at == once.runs["sgd"].eigen.provenance.created_at
    assert again.runs["sgd"].eigen.cost.seconds == once.runs["sgd"].eigen.cost.seconds
    more = landscape.compare(models, F.cross_entropy, data, out=tmp_path, sizes=landscape.Sizes(**{**vars(SIZES), "eigenpairs": 3}))
    assert len(more.runs["sgd"].eigen.values) == 3


def test_another_loss_is_another_question(models, data, tmp_path: Path) -> None:
    one = {"sgd": models["sgd"]}
    once = landscape.compare(one, lambda o, t: 1 * F.cross_entropy(o, t), data, out=tmp_path / "a", sizes=SIZES)
    before = (tmp_path / "a" / "sgd.h5").read_bytes()
    with pytest.raises(ValueError, match="another loss: choose another folder"):
        landscape.compare(one, lambda o, t: 3 * F.cross_entropy(o, t), data, out=tmp_path / "a", sizes=SIZES)
    fresh = landscape.compare(one, lambda o, t: 3 * F.cross_entropy(o, t), data, out=tmp_path / "b", sizes=SIZES)
    assert fresh.runs["sgd"].eigen.values[0] == pytest.approx(3 * once.runs["sgd"].eigen.values[0], rel=1e-4)
    assert (tmp_path / "a" / "sgd.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"": nn.Linear(4, 3)}}, "not blank"),
        ({"models": {3: nn.Linear(4, 3)}}, "not blank, got 3"),
        ({"models": {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3, bias=False)}}, "'a' and 'b' differ"),
        ({"reference": "x"}, "reference must be one of 'a', got 'x'"),
        ({"commands": {"x": "y"}}, "commands has 'x'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(data, change: dict, words: str, tmp_path: Path) -> None:
    given = {"models": {"a": nn.Linear(4, 3)}} | change
    with pytest.raises(ValueError, match=words):
        landscape.compare(given.pop("models"), F.cross_entropy, data, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("points", 1), ("span", 0.0), ("shards", (0,)), ("rho", -1.0), ("trace_tol", 0.0), ("eigenpairs", 0)]
)
def test_sizes_that_cannot_be_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        landscape.Sizes(**{name: value})


def test_batch_statistics_leave_per_example_sharpness_out(data, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    run = landscape.compare({"a": net}, F.cross_entropy, data, sizes=SIZES, batch_norm="batch", batch_size=10).runs["a"]
    assert isinstance(run, RunReport) and list(run.sharpness) == [7, 20]
