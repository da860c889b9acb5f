"""Files that are no run files, or no longer: one line that says what is wrong, never a wrong number, never h5py's own error."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from result_samples import assert_same, every, gradients, history, odd, surface

import landscape
from landscape.results import store
from landscape.results.errors import StoreError

READERS: dict[str, Callable[[Path], Any]] = {
    "open": landscape.open,
    "load": lambda path: store.load(path, "surfaces/filter"),
    "describe": store.describe,
    "partial": lambda path: store.load_partial(path, "filter"),
    "check_writable": store.check_writable,
    "save": lambda path: store.save(path, surface(), wait=0.1),
    "save_partial": lambda path: store.save_partial(path, "filter", {"x": [0.0, 1.0]}, {}, wait=0.1),
}
ONLY_READING = [name for name in READERS if name not in {"save", "save_partial", "check_writable", "partial"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.h5"
    for result in (history(), gradients(), surface()):
        store.save(path, result)
    return path


def refused(reader: str, path: Path, words: str) -> None:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=words) as caught:
        READERS[reader](path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert before is None or path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.suffix in {".tmp", ".lock"}]


@pytest.mark.parametrize("reader", ONLY_READING)
def test_missing(tmp_path: Path, reader: str) -> None:
    refused(reader, tmp_path / "none.h5", "there is no file")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, world\n" * 9, "no HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", "damaged|truncated"),
        (b"\x89HDF\r\n\x1a\n" + b"\xff" * 500, "damaged"),
    ],
    ids=["empty", "text", "signature", "garbage"],
)
def test_not_hdf5(tmp_path: Path, reader: str, content: bytes, words: str) -> None:
    path = tmp_path / "run.h5"
    path.write_bytes(content)
    refused(reader, path, words)


@pytest.mark.parametrize("reader", READERS)
def test_a_folder(tmp_path: Path, reader: str) -> None:
    (tmp_path / "run.h5").mkdir()
    refused(reader, tmp_path / "run.h5", "cannot read .*directory")


@pytest.mark.parametrize("reader", READERS)
def test_foreign_schema(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "run.h5"
    with h5py.File(path, "w") as file:
        file["surfaces/filter"] = np.zeros(3)
    refused(reader, path, "no run file")
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = "seven"
        file.attrs["creation_library"] = "another"
    refused(reader, path, "no run file")


@pytest.mark.parametrize("reader", READERS)
def test_newer_schema_names_both_versions(path: Path, reader: str) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = 7
    refused(reader, path, "schema version 7, this library reads versions up to 2")


@pytest.mark.parametrize("reader", READERS)
def test_truncated_anywhere(path: Path, reader: str) -> None:
    whole = path.read_bytes()
    for length in [9, 47, 48, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(reader, path, "truncated|damaged")


def set_attribute(place: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[place].attrs.__setitem__(name, value)


def replaced(place: str, **dataset: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        if dataset:
            file.create_dataset(place, **dataset)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["surfaces/filter/loss"].__setitem__((1, 2), 0.25),
        lambda file: file["surfaces/filter/x"].__setitem__(0, 7),
        set_attribute("surfaces/filter", "hvps", 3.0),
        set_attribute("surfaces/filter", "plane", "{"),
        set_attribute("surfaces/filter", "kind", "training"),
        set_attribute("surfaces/filter", "checksums", "{}"),
        set_attribute("surfaces/filter", "checksums", "[1"),
        set_attribute("surfaces/filter", "checksums", 3),
        lambda file: file["surfaces/filter"].attrs.pop("checksums"),
        lambda file: file["surfaces/filter"].attrs.pop("plane"),
        replaced("surfaces/filter/loss"),
        replaced("surfaces/filter/y"),
        replaced("surfaces/filter/loss", data=odd(5, 3)),
        replaced("surfaces/filter/loss", data=np.ones((3, 5), dtype=np.float32)),
        replaced("surfaces/filter/loss", data=np.ones((3, 5), dtype=np.int64)),
        replaced("surfaces/filter/loss", data=np.array([["a"] * 5] * 3, dtype=object), dtype=h5py.string_dtype()),
        replaced("surfaces/filter/loss", data=np.void(b"opaque")),
        replaced("surfaces/filter/loss", shape=(3, 5), dtype=h5py.ref_dtype),
        replaced("surfaces/filter/loss", shape=(10**7, 10**7), dtype="f8", chunks=(1000, 1000)),
        replaced("surfaces/filter/loss", shape=(3, 5), dtype="f8", external=[("/etc/passwd", 0, 120)]),
        replaced("surfaces/filter", data=odd(3)),
        lambda file: (file.pop("surfaces/filter"), file.create_group("surfaces/filter")),
    ],
)
def test_a_group_that_was_tampered_with(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "a") as file:
        change(file)
    refused("load", path, "damaged at surfaces/filter|does not fit into memory")
    assert_same(store.load(path, "training"), history())
    store.save(path, surface())  # measuring again is what the message asks for
    assert_same(store.load(path, "surfaces/filter"), surface())


def test_links_that_lead_elsewhere_are_not_followed(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    store.save(other, surface("filter", nx=9))
    with h5py.File(path, "a") as file:
        file["surfaces/outside"] = h5py.ExternalLink(str(other), "/surfaces/filter")
        file["surfaces/dangling"] = h5py.SoftLink("/nowhere")
        file["surfaces/round"] = h5py.SoftLink("/surfaces")
    assert set(landscape.open(path).surfaces) == {"filter"}
    assert store.describe(path)


def test_notes_that_others_add_disturb_nothing(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["note"] = "mine"
        file["surfaces/filter"].attrs["note"] = "mine"
        file["surfaces/filter/extra"] = np.arange(3)
        file["mine/data"] = np.arange(3)
    assert_same(store.load(path, "surfaces/filter"), surface())
    assert any(row.group == "mine" and row.dims == ("?",) for row in store.describe(path))
    store.save(path, history(2))
    with h5py.File(path) as file:
        assert file.attrs["note"] == "mine" and file["mine/data"][1] == 1


@pytest.mark.parametrize("trials", [40, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_flipped_bits_are_an_error_and_never_a_wrong_number(tmp_path: Path, trials: int) -> None:
    pytest.importorskip("fcntl", reason="a process that may crash is started as on POSIX systems")
    from result_writers import load_flipped, started

    path = tmp_path / "run.h5"
    for result in every():
        store.save(path, result)
    with started(load_flipped, path, trials) as (_, connection):
        said = connection.recv()  # an EOFError here is a crash of the process
    assert isinstance(said, int), said
    assert said > trials / 6, "the flips must hit something"


def test_a_damaged_root_is_not_signed_again(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["seed"] = 12
    for reader in ("save", "save_partial", "check_writable"):
        refused(reader, path, "damaged at the root")
    with pytest.raises(StoreError, match="damaged at the root"):
        _ = landscape.open(path).attributes


def test_copies_of_a_file_are_as_good_as_the_file(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "copy.h5")
    store.save(tmp_path / "copy.h5", history(random.Random(0).randint(1, 3)))
    assert_same(store.load(path, "training"), history())
