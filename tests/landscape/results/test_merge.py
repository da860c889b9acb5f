"""One file from several of a run: nothing lost, nothing twice, and a conflict is an error that names both files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from result_samples import PLANE, PROVENANCE, assert_same, curvature, eigen, every, gradients, sharpness, surface

import landscape
from landscape.results import store
from landscape.results.merge import merge
from landscape.results.types import Cost, Result, Surface


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    return tmp_path / "a.h5", tmp_path / "b.h5", tmp_path / "out.h5"


def test_merged_files_hold_everything_once(files: tuple[Path, Path, Path]) -> None:
    a, b, out = files
    store.save(a, eigen())
    store.save(a, surface())
    store.save(b, dataclasses.replace(eigen(), cost=Cost(seconds=99.0)))  # the same numbers, measured again
    store.save(b, sharpness(), name="mine/too")
    store.save(b, curvature())
    assert merge([a, b], out) == ["hessian/eigen", "surfaces/filter", "traces/curvature", "sharpness/mine/too"]
    before = out.read_bytes()
    assert merge([a, b], out) == [] and out.read_bytes() == before
    assert sorted(store.open(out).groups()) == sorted({*store.open(a).groups(), *store.open(b).groups()})
    assert_same(store.load(out, "sharpness/mine/too"), sharpness())
    assert_same(store.load(out, "hessian/eigen"), eigen())


def test_shards_of_a_run_come_together(files: tuple[Path, Path, Path]) -> None:
    a, _, out = files
    shards = []
    for i, result in enumerate(every()):
        shards.append(a.with_name(f"job-{i}.h5"))
        store.save(shards[-1], result, run={"seed": 7, "config": {"epochs": 3}, "command": f"landscape job {i}"})
    assert len(merge(shards, out)) == len(shards)
    for shard in shards:
        (group,) = store.groups(shard)
        assert_same(store.load(out, group), store.load(shard, group))
    root = store.attributes(out)
    assert root["seed"] == 7 and root["config"] == {"epochs": 3} and root["model"] == PROVENANCE.model
    assert "landscape job" not in root["command"], "the shards do not agree about it"


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (eigen(), eigen(k=2), "hessian/eigen"),
        (eigen(), dataclasses.replace(eigen(), tol=0.5), "hessian/eigen"),
        (surface(), surface(loss=np.zeros((3, 5))), "surfaces/filter"),
        (surface(), surface(plane={**PLANE, "seed": 3}), "surfaces/filter"),
        (gradients(), gradients(layers=("a", "b")), "traces/gradients"),
    ],
    ids=["length", "attribute", "number", "plane", "text"],
)
def test_a_conflict_names_both_files_and_writes_nothing(files: tuple[Path, Path, Path], one: Result, other: Result, name: str) -> None:
    a, b, out = files
    store.save(a, one)
    store.save(b, sharpness())
    store.save(b, other)
    with pytest.raises(ValueError, match=rf"{b} and {a} hold different results named {name}: leave one of them out"):
        merge([a, b], out)
    assert not out.exists()
    before = a.read_bytes()
    with pytest.raises(ValueError, match=rf"{b} and {a} hold different results"):
        merge([b], a)
    assert a.read_bytes() == before


def test_results_of_two_models_do_not_mix(files: tuple[Path, Path, Path]) -> None:
    a, b, out = files
    store.save(a, eigen())
    store.save(b, dataclasses.replace(surface(), provenance=dataclasses.replace(PROVENANCE, parameter_sha256="12")))
    with pytest.raises(ValueError, match=rf"{b} holds results of other weights than {a}"):
        merge([a, b], out)
    with pytest.raises(ValueError, match=r"none.h5 does not exist"):
        merge([a, a.with_name("none.h5")], out)
    b.write_bytes(b.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"b.h5 is truncated"):
        merge([a, b], out)
    assert not out.exists()


def test_an_unfinished_surface_goes_along_until_it_is_finished(files: tuple[Path, Path, Path]) -> None:
    a, b, out = files
    store.save(a, eigen())
    arrays = {"x": surface().x, "y": surface().y, "sums": np.arange(15.0).reshape(3, 5)}
    store.save_partial(a, "filter", arrays, {"batch": 3})
    assert merge([a], out) == ["hessian/eigen", "partial/surfaces/filter"]
    found = store.load_partial(out, "filter")
    assert found is not None and found[1] == {"batch": 3} and found[0]["sums"].tolist() == arrays["sums"].tolist()
    assert (landscape.open(out).partial["filter"].status == Surface.PENDING).all()
    store.save_partial(b, "filter", arrays, {"batch": 4})
    with pytest.raises(ValueError, match="hold different results named partial/surfaces/filter"):
        merge([b], out)
    store.save(b, surface())
    assert merge([b], out) == ["surfaces/filter"]
    assert store.groups(out) == ["hessian/eigen", "surfaces/filter"], "the finished one takes the place of the unfinished"
