"""What is loaded is what was saved, to the bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from result_samples import BOTH, COST, PROVENANCE, assert_same, eigen, every, gradients, history, odd, sharpness, surface

import landscape
from landscape.results import schema, store
from landscape.results.types import Cost, Eigenpairs, GradientTrace, Provenance, Result, Sharpness, Surface

SEVERAL_STEPS = "m_sharpness_rho0.2_m16,steps=3"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


@pytest.mark.parametrize("result", every(), ids=lambda r: f"{type(r).__name__}-{getattr(r, 'name', getattr(r, 'm', ''))}")
def test_every_type_comes_back_bit_for_bit(path: Path, result: Result) -> None:
    assert_same(store.load(path, store.save(path, result)), result)


def test_a_whole_run_in_one_file_in_any_order(path: Path) -> None:
    results = every()
    places = [store.save(path, result) for result in results[::-1]][::-1]
    assert len(set(places)) == len(results)
    for place, result in zip(places, results, strict=True):
        assert_same(store.load(path, place), result)
    assert sorted(store.groups(path)) == sorted(places)


@pytest.mark.parametrize(
    "result",
    [
        history(0),
        gradients(0),
        gradients(3, ()),
        gradients(0, ()),
        eigen(k=0),
        surface("one", ny=1, nx=1),
        surface("column", ny=4, nx=1),
        surface("large", ny=120, nx=90),
        eigen(torch.randn(3, 300_000, generator=torch.Generator().manual_seed(1))),
        eigen(torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))),
        eigen(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).T),
    ],
    ids=lambda r: type(r).__name__,
)
def test_empty_small_and_large(path: Path, result: Result) -> None:
    assert_same(store.load(path, store.save(path, result)), result)


def test_fields_without_a_value_stay_without(path: Path) -> None:
    result = dataclasses.replace(eigen(), cost=Cost(), provenance=Provenance(seed=None))
    loaded = store.load(path, store.save(path, result))
    assert_same(loaded, result)
    assert isinstance(loaded, Eigenpairs) and loaded.vectors is None and loaded.provenance.seed is None
    assert "seed" not in store.attributes(path), "missing is missing, never -1"


def test_files_from_before_the_fingerprints_load(path: Path) -> None:
    for file in sorted((Path(__file__).parents[3] / "analyses/results").glob("*/*-0.h5")):
        results = [store.load(file, group) for group in store.groups(file)]
        assert results and all(r.provenance.loss_at_parameters is None or r.provenance.varied_sha256 for r in results)
    result = dataclasses.replace(eigen(), provenance=dataclasses.replace(PROVENANCE, loss_at_parameters=None, batch_size=None))
    assert_same(store.load(path, store.save(path, result)), result)
    diverged = dataclasses.replace(eigen(), provenance=dataclasses.replace(PROVENANCE, loss_at_parameters=float("nan")))
    assert np.isnan(store.load(path, store.save(path, diverged)).provenance.loss_at_parameters)


def test_the_schema_covers_every_field_of_every_type() -> None:
    for layout in schema.LAYOUTS:
        stored = {v.field for v in layout.variables} | {a.name for a in layout.attributes} | {"cost", "provenance"}
        left_out = {"name", "point", "basis", "projected"}  # the name is one of the group; the rest can be had again from the model
        left_out |= {"test"} if layout.type is Surface else set()  # a group of its own
        assert {f.name for f in dataclasses.fields(layout.type)} - stored <= left_out, layout.type
        names = [a.name for a in (*layout.attributes, *schema.COST, *schema.PROVENANCE, *schema.GROUP)]
        assert len(set(names)) == len(names), "an attribute of the type hides one of cost or provenance"
    assert {a.name for a in schema.COST} == {f.name for f in dataclasses.fields(COST)}
    assert {a.name for a in schema.PROVENANCE} == {f.name for f in dataclasses.fields(PROVENANCE)}


def test_dtypes_of_numpy(path: Path) -> None:
    few = np.resize(np.array([np.nan, -0.0, np.inf, 1e-45, 0.1], dtype=np.float32), (3, 5))
    single = surface("single", loss=few, status=np.ones((3, 5), dtype=np.int64))
    loaded = store.load(path, store.save(path, single))
    assert isinstance(loaded, Surface)
    assert loaded.loss.dtype == np.float32 and loaded.loss.tobytes() == single.loss.tobytes()
    assert loaded.status.dtype == np.uint8 and (loaded.status == 1).all()
    swapped = surface("swapped", loss=odd(3, 5).astype(">f8"), accuracy=np.asfortranarray(odd(3, 5)))
    again = store.load(path, store.save(path, swapped))
    assert isinstance(again, Surface)
    np.testing.assert_array_equal(again.loss, swapped.loss)
    np.testing.assert_array_equal(again.accuracy, swapped.accuracy)
    half = dataclasses.replace(eigen(), vectors=torch.ones(3, 4, dtype=torch.bfloat16))
    assert store.load(path, store.save(path, half)).vectors.dtype == torch.float32  # type: ignore[attr-defined]
    scalars = dataclasses.replace(sharpness(), value=np.float64(0.1), m=np.int64(16))
    loaded_scalars = store.load(path, store.save(path, scalars))
    assert isinstance(loaded_scalars, Sharpness) and (loaded_scalars.value, loaded_scalars.m) == (0.1, 16)


def test_a_plane_keeps_what_json_keeps_and_refuses_the_rest(path: Path) -> None:
    plane = {"a": np.float64(0.1), "b": np.arange(3), "c": (1, 2), "d": torch.tensor(2.5), "e": float("inf"), "f": Path("x")}
    loaded = store.load(path, store.save(path, surface(plane=plane)))
    assert isinstance(loaded, Surface)
    assert loaded.plane == {"a": 0.1, "b": [0, 1, 2], "c": [1, 2], "d": 2.5, "e": float("inf"), "f": "x"}
    before = path.read_bytes()
    for bad, words in [({"a": {1: 2}}, "keys must be strings"), ({"a": [object()]}, r"plane\['a'\]\[0\] is a object")]:
        with pytest.raises(TypeError, match=words):
            store.save(path, surface(plane=bad))
    assert path.read_bytes() == before


def test_saving_again_replaces_one_group_and_leaves_the_rest(path: Path) -> None:
    for result in every():
        store.save(path, result)
    before = dict(zip(store.groups(path), map(lambda g: store.load(path, g), store.groups(path)), strict=True))
    new = surface(nx=7)
    store.save(path, new)
    for group in store.groups(path):
        assert_same(store.load(path, group), new if group == "surfaces/filter" else before[group])


def test_replacing_for_hours_does_not_make_the_file_grow_for_ever(path: Path) -> None:
    for result in every():
        store.save(path, result)
    with h5py.File(path, "a") as file:
        file["notes/mine"] = np.arange(3)
    big = surface("big", ny=60, nx=60)
    state = {"x": big.x, "y": big.y, "sums": np.ones((5, 60, 60)), "status": big.status}
    sizes = []
    for i in range(60):
        store.save_partial(path, "big", state, {"batch": i, "text": "x" * 100_000})
        sizes.append(path.stat().st_size)
    assert max(sizes) < 3_000_000 and any(b < a for a, b in zip(sizes, sizes[1:], strict=False))
    for group, result in zip([schema.layout_of(r) for r in every()], every(), strict=True):
        name = f"/{group.default_name(result)}" if group.default_name else ""
        assert_same(store.load(path, group.group + name), result)
    with h5py.File(path) as file:
        assert file["notes/mine"][2] == 2
        scale = file["surfaces/filter/loss"].dims[1][0]
        assert scale.name == "/surfaces/filter/x" and np.array_equal(scale[:], surface().x)


def test_typed_access(path: Path) -> None:
    for result in every():
        store.save(path, result)
    run = landscape.open(path)
    assert isinstance(run.gradients, GradientTrace) and run.gradients.layers == gradients().layers
    assert run.training.method == "SAMPa-0.2" and run.trace.value == 12.5 and run.density.sigma == 0.01
    assert run.eigen.vectors is not None and run.eigen.vectors.shape == (3, 11)
    assert set(run.surfaces) == {"filter", "adaptive", "line"} and run.surfaces["line"].y is None
    assert set(run.sharpness) == {"m_sharpness_rho0.05_m16", "m_sharpness_rho0.05_m1", "m_sharpness_rho0.1_m16", SEVERAL_STEPS}
    assert run.surfaces.get("nothing") is None and "filter" in run.surfaces and len(run.partial) == 0
    assert "hessian/eigen" in run and "paths/x" not in run and len(run) == len(every()) == len(list(run))
    assert all(type(run[group]) is schema.layout_of_group(group).type for group in run)  # type: ignore[union-attr]
    assert "surfaces/filter" in repr(run) and "filter" in repr(run.surfaces)
    with pytest.raises(
        ValueError, match=r"holds no surfaces/nothing; it holds training, traces/gradients, traces/curvature, hessian/eigen"
    ):
        run.surfaces["nothing"]
    store.save(path.with_name("b.h5"), history())
    with pytest.raises(ValueError, match=r"holds no hessian/eigen; it holds training$"):
        _ = landscape.open(path.with_name("b.h5")).eigen


def test_vectors_are_optional_in_saving_and_in_loading(path: Path) -> None:
    result = eigen(torch.ones(3, 5))
    place = store.save(path, result)
    assert store.load(path, place, vectors=False).vectors is None  # type: ignore[attr-defined]
    store.save(path, result, vectors=False)
    assert_same(store.load(path, place), dataclasses.replace(result, vectors=None))


def test_find_tells_nothing_there_from_trouble(path: Path) -> None:
    assert store.find(path, "training") is None
    store.save(path, surface())
    assert store.find(path, "training") is None
    found = store.find(path, "surfaces/filter")
    assert found is not None
    assert_same(found, surface())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        store.find(path, "training")


def test_the_root_says_what_the_run_was(path: Path) -> None:
    config = {"epochs": 3, "resume": None, "amp": False, "rho": 0.1, "nested": {"a": [1, 2]}}
    store.save(
        path, history(), run={"config": config, "command": "landscape train --x 'y z'", "seed": 7, "git_commit": "abc", "world_size": 2}
    )
    store.save(path, surface())
    found = landscape.open(path).attributes
    assert set(found) == {a.name for a in schema.ROOT}
    assert found["schema_version"] == 2 and found["config"] == config and found["seed"] == 7 and found["world_size"] == 2
    assert found["model"] == PROVENANCE.model and found["device"] == PROVENANCE.device and found["torch_version"] == torch.__version__
    with h5py.File(path) as file:
        assert json.loads(file.attrs["config"]) == config
        assert {type(file.attrs[key]) for key in ("schema_version", "seed", "world_size")} == {np.int64}
        assert not [name for name in file if isinstance(file[name], h5py.Dataset)], "the root holds attributes only"


def test_the_root_is_filled_by_the_first_result_that_knows(path: Path) -> None:
    store.save(path, dataclasses.replace(history(), provenance=Provenance()))
    assert store.attributes(path)["model"] == "" and store.attributes(path)["git_commit"] is not None
    store.save(path, surface())
    assert store.attributes(path)["parameter_sha256"] == PROVENANCE.parameter_sha256
    other = dataclasses.replace(surface("b"), provenance=Provenance(parameter_sha256="other"))
    store.save(path, other)
    assert store.attributes(path)["parameter_sha256"] == PROVENANCE.parameter_sha256
    assert store.load(path, "surfaces/b").provenance.parameter_sha256 == "other"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: store.save(p, history(), run={"colour": 1}), ValueError, "run has the key 'colour'; allowed are created_at"),
        (lambda p: store.save(p, history(), run={"seed": "x"}), TypeError, "seed is 'x'; it must be of type int"),
        (lambda p: store.save(p, history(), run={"seed": 2**64}), ValueError, "at most 64 bits"),
        (lambda p: store.save(p, history(), name="x"), ValueError, "holds training once"),
        (lambda p: store.save(p, 3), TypeError, "result is a int; a run file keeps TrainingHistory"),
        (
            lambda p: store.save(p, surface(loss=np.ones((5, 3)))),
            ValueError,
            r"Surface.loss has shape \(5, 3\); its axis y must be of length 3",
        ),
        (lambda p: store.save(p, surface(loss=np.ones(5))), ValueError, r"Surface.loss has shape \(5,\); its axes must be \(y, x\)"),
        (lambda p: store.save(p, surface(loss=np.array([["a"] * 5] * 3))), ValueError, "numbers are allowed"),
        (lambda p: store.save(p, surface(loss=np.array([[None] * 5] * 3))), ValueError, "dtype object"),
        (lambda p: store.save(p, surface(status=np.full((3, 5), -1))), ValueError, r"0 \.\.\. 255"),
        (lambda p: store.save(p, surface(status=np.full((3, 5), np.nan))), ValueError, "integers are allowed"),
        (lambda p: store.save_partial(p, "a", {"y": [1.0]}, {}), ValueError, "x is needed"),
        (lambda p: store.save_partial(p, "a", {"x": [1.0, 2], "sums": [1.0, 2, 3]}, {}), ValueError, r"arrays\['sums'\] has shape \(3,\)"),
        (lambda p: store.save_partial(p, "a", {"x": [1.0, 2], "a/b": [1.0, 2]}, {}), ValueError, "letters, digits"),
        (lambda p: store.save_partial(p, "a", {"x": [1.0, 2], "b": ["u", "v"]}, {}), ValueError, "dtype"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(path: Path, call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(path)
    assert list(path.parent.iterdir()) == []


def test_an_unfinished_surface(path: Path) -> None:
    full = surface()
    sums = {"loss_sum": odd(3, 5), "sums": odd(2, 3, 5), "count": np.array(7), "row": odd(3), "status": np.zeros((3, 5), dtype=np.uint8)}
    arrays = {"x": full.x, "y": full.y} | sums
    state = {"batch": 3, "hashes": ["a", "ü"], "none": None, "flag": True, "plane": {"kind": "random"}}
    assert store.load_partial(path, "filter") is None
    store.save_partial(path, "filter", arrays, state)
    assert store.load_partial(path, "other") is None
    loaded = store.load_partial(path, "filter")
    assert loaded is not None and loaded[1] == state and set(loaded[0]) == set(arrays)
    for name, array in arrays.items():
        assert_same(loaded[0][name], np.asarray(array), name)
    run = landscape.open(path)
    assert run.groups() == [] and set(run.partial) == {"filter"}
    seen = run.partial["filter"]
    assert np.isnan(seen.loss).all() and (seen.status == Surface.PENDING).all() and seen.plane == {"kind": "random"}
    store.save(path, full)
    assert store.load_partial(path, "filter") is None
    with h5py.File(path) as file:
        assert "partial" not in file


def test_an_unfinished_surface_leaves_the_finished_one_of_that_name_alone(path: Path) -> None:
    store.save(path, surface())
    store.save_partial(path, "filter", {"x": np.arange(4.0), "loss": odd(4), "status": [1, 1, 0, 0]}, {})
    store.save_partial(path, "else", {"x": np.arange(4.0)}, {})
    assert_same(store.load(path, "surfaces/filter"), surface())
    seen = landscape.open(path).partial["filter"]
    assert seen.y is None and seen.loss.tobytes() == odd(4).tobytes() and seen.status.tolist() == [1, 1, 0, 0]
    store.remove_partial(path, "filter")
    assert set(landscape.open(path).partial) == {"else"}


def test_description_has_every_dataset_with_its_axes(path: Path) -> None:
    for result in every():
        store.save(path, result)
    store.save_partial(path, "growing", {"x": np.arange(4.0)}, {})
    rows = store.describe(path)
    with h5py.File(path) as file:
        found: list[str] = []
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    assert sorted(f"{row.group}/{row.dataset}" for row in rows) == sorted(found)
    assert all(row.units and row.long_name and len(row.dims) == len(row.shape) and "?" not in row.dims for row in rows)
    loss = next(row for row in rows if (row.group, row.dataset) == ("surfaces/filter", "loss"))
    assert (loss.dims, loss.shape, loss.dtype, loss.units) == (("y", "x"), (3, 5), "float64", "1")
    assert loss.attributes["examples"] == 7 and loss.attributes["hvps"] == 1e-300
    text = str(rows)
    assert "/surfaces/filter" in text and "y 3 x x 5" in text and "[s] time since the start" in text


def test_units_and_derived_datasets(path: Path) -> None:
    store.save(path, eigen())
    store.save(path, sharpness(), name="mine")
    with h5py.File(path) as file:
        assert file["hessian/eigen/converged"][:].tolist() == [1, 0, 0], "3e-4 is the tolerance, a NaN never converged"
        assert file["hessian/eigen/k"][:].tolist() == [0, 1, 2]
        assert file["sharpness/mine"].attrs["name"] == "mine" and file["sharpness/mine/rho"][()] == 0.05
    assert isinstance(landscape.open(path).sharpness["mine"], Sharpness)
    assert_same(landscape.open(path).sharpness["mine"], sharpness())


def test_nothing_stays_open_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "run.h5"
    store.save(str(path), surface(**{}))
    run = landscape.open(path)
    _ = run.surfaces["filter"]
    open_files = [str(p.readlink()) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()] if Path("/proc/self/fd").exists() else []
    assert not [name for name in open_files if "run.h5" in name]
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]
    assert BOTH["cost"] == run.surfaces["filter"].cost


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    path, link = tmp_path / "run.h5", tmp_path / "latest.h5"
    store.save(path, history())
    path.chmod(0o640)
    link.symlink_to(path.name)
    store.save(link, surface())
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert store.groups(path) == ["training", "surfaces/filter"]
