"""xarray and plain h5py read run files as they stand."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from result_samples import eigen, every, gradients, history, odd, sharpness, surface

from landscape.results import store

xarray = pytest.importorskip("xarray", reason="xarray is not installed")
pytest.importorskip("h5netcdf", reason="h5netcdf is not installed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    for result in every():
        store.save(path, result, run={"config": {"none": None, "flag": False}})
    store.save(path, eigen(torch.ones(3, 70_000)))
    store.save_partial(path, "growing", {"x": np.arange(4.0), "y": np.arange(2.0), "sums": np.ones((3, 2, 4))}, {"batch": 1})
    for name in ('a/b "c" <i>', "ä ö", "..", "100%", "%2F"):
        store.save(path, surface(name))
    return path


def test_every_group_with_its_coordinates(path: Path) -> None:
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert {node.path.lstrip("/") for node in tree.subtree if node.data_vars} == {row.group for row in store.describe(path)}
        for node in tree.subtree:
            assert not [dim for dim in node.dims if str(dim).startswith("phony")]
            for name, data in node.data_vars.items():
                assert set(data.dims) <= set(node.coords), f"{node.path}/{name} has an axis without a coordinate"
                assert data.attrs["units"] and data.attrs["long_name"]
        loss = tree["surfaces/filter/loss"]
        assert loss.dims == ("y", "x") and loss.shape == (3, 5)
        assert loss.values.tobytes() == surface().loss.tobytes()
        np.testing.assert_array_equal(loss.x, surface().x)
        np.testing.assert_array_equal(loss.y, surface().y)
        assert loss.sel(x=-0.5, y=1).values.tobytes() == surface().loss[2, 1].tobytes()
        assert tree["surfaces/line/loss"].dims == ("x",)
        assert tree["traces/gradients/layer_cosine"].dims == ("step", "layer")
        assert list(tree["traces/gradients/layer"].values) == list(gradients().layers)
        assert tree["training/seconds"].dtype == np.float64, "a time in s must not become a timedelta"
        assert tree["training/epoch"].values.tolist() == [0, 1, 2, 3] and tree["training"].attrs["method"] == history().method
        assert tree["hessian/density/ritz_weight"].dims == ("probe", "ritz") and tree["hessian/density/density"].dims == ("lambda",)
        assert tree["hessian/eigen/vectors"].dims == ("k", "parameter")
        value = tree["sharpness/m_sharpness_rho0.05_m16/value"]
        assert (float(value.rho), int(value.m)) == (0.05, 16)
        assert tree["partial/surfaces/growing/sums"].dims == ("sums_row", "y", "x")
        assert np.isnan(tree["partial/surfaces/growing/loss"].values).all()
        assert tree["surfaces"].children.keys() >= {"a%2Fb %22c%22 %3Ci%3E", "ä ö", "%2E."}
        for node in tree.subtree:
            for key, attribute in node.attrs.items():
                assert isinstance(attribute, str | int | float | np.number), f"netCDF writers refuse {key} of {node.path}"


def test_xarray_can_write_it_again(path: Path, tmp_path: Path) -> None:
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        tree.to_netcdf(tmp_path / "copy.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "copy.nc", engine="h5netcdf") as copy:
        assert copy["surfaces/filter/loss"].values.tobytes() == surface().loss.tobytes()


def test_empty_results(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    for result in (history(0), gradients(0, ()), eigen(k=0)):
        store.save(path, result)
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert tree["training/lr"].shape == (0,) and tree["traces/gradients/layer_cosine"].shape == (0, 0)


def test_reading_and_writing_go_on_while_xarray_has_the_file_open(path: Path) -> None:
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert store.load(path, "training").provenance.examples == 7
        store.save(path, surface(nx=9))
        assert store.load(path, "surfaces/filter").loss.shape == (3, 9)  # type: ignore[attr-defined]
        assert tree["surfaces/filter/loss"].values.tobytes() == surface().loss.tobytes(), "the open one is a snapshot"


def test_every_dataset_has_scales_units_and_no_objects(path: Path) -> None:
    def check(name: str, item: object) -> None:
        for key, value in item.attrs.items():  # type: ignore[attr-defined]
            if key not in {"DIMENSION_LIST", "REFERENCE_LIST"}:
                assert isinstance(value, str | np.integer | np.floating | np.bytes_ | np.ndarray), (name, key)
        if isinstance(item, h5py.Dataset):
            assert item.attrs["units"] and item.attrs["long_name"], name
            assert item.dtype.kind in "fiu" or h5py.check_string_dtype(item.dtype), name
            assert item.is_scale or all(len(axis) == 1 for axis in item.dims), name

    with h5py.File(path) as file:
        file.visititems(check)
        status = file["surfaces/filter/status"]
        assert dict(zip(status.attrs["flag_meanings"].split(), status.attrs["flag_values"], strict=True)) == {
            "pending": 0,
            "evaluated": 1,
            "interpolated": 2,
            "failed": 3,
        }
        assert file["hessian/eigen/vectors"].compression == "gzip" and file["hessian/eigen/vectors"].fletcher32
        assert file["surfaces/filter"].attrs["seed"] == 2**64 - 1
        group = file["sharpness/m_sharpness_rho0.05_m16"].attrs
        assert {"seed", "examples", "forwards", "gradients", "hvps", "seconds", "p"} <= set(group)
    assert sharpness().rho == 0.05 and odd(1)[0] == 0
