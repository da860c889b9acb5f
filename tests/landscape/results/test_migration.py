"""Files of an older schema: `version_1.h5` was written by the library as it was then."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from result_samples import assert_same, eigen, history, sharpness, surface

import landscape
from landscape.results import store
from landscape.results.errors import StoreError

OLD = {
    "training": history(),
    "hessian/eigen": eigen(torch.ones(3, 5)),
    "sharpness/m_sharpness_rho0.05_m16": sharpness(),
    "surfaces/a/b": surface("a/b"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(Path(__file__).with_name("version_1.h5"), tmp_path / "run.h5"))


def hold_the_same(path: Path) -> None:
    assert set(landscape.open(path).groups()) >= set(OLD)
    for group, result in OLD.items():
        assert_same(store.load(path, group), result)
    assert store.load(path, "hessian/eigen", vectors=False).vectors is None  # type: ignore[attr-defined]
    partial = store.load_partial(path, "growing")
    assert partial is not None and partial[1] == {"batch": 3} and partial[0]["sums"].tolist() == [0, 1, 2, 3]
    assert not store.describe(path).damaged


def test_version_1_is_migrated_while_it_is_read(path: Path) -> None:
    before = path.read_bytes()
    with h5py.File(path) as file:
        assert file.attrs["schema_version"] == 1 and "settings" not in file["sharpness/m_sharpness_rho0.05_m16"].attrs
    hold_the_same(path)
    assert store.attributes(path)["schema_version"] == 1 and path.read_bytes() == before


def test_the_first_write_brings_all_of_the_file_to_the_present_version(path: Path) -> None:
    new = surface("new")
    store.save(path, new)
    assert store.attributes(path)["schema_version"] == 2
    hold_the_same(path)
    assert_same(store.load(path, "surfaces/new"), new)
    with h5py.File(path, "a") as file:
        assert file["sharpness/m_sharpness_rho0.05_m16"].attrs["settings"] == "{}"
        file["training/seconds"].attrs["units"] = "min"
    with pytest.raises(StoreError, match="damaged at training: the axes, units or names of the dataset seconds"):
        store.load(path, "training")


def test_a_damaged_group_is_not_signed_by_the_migration(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file["training/lr"][0] = 0.25
        file["surfaces/a%2Fb"].attrs["seed"] = 3
        file["notes/mine"] = np.arange(3)
    for _ in range(2):
        for group in ("training", "surfaces/a/b"):
            with pytest.raises(StoreError, match=f"damaged at {group}"):
                store.load(path, group)
        store.save(path, eigen(torch.ones(3, 5)))  # migrates at the first of the two
    assert store.describe(path).damaged == ("training", "surfaces/a%2Fb")


def test_a_version_that_never_was(path: Path) -> None:
    for version in (0, -1):
        with h5py.File(path, "a") as file:
            file.attrs["schema_version"] = version
        with pytest.raises(StoreError, match=rf"schema version {version}, which never was"):
            store.load(path, "training")
