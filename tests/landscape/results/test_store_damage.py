"""Files that are no run files, or no longer: one line that says what is wrong, never a wrong number, never h5py's own error."""

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from result_samples import assert_same, every, gradients, history, odd, surface

import landscape
from landscape.cli import main
from landscape.results import hdf5_reading, store
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
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(99), "no HDF5 file"),
        (b"CDF\x01" + bytes(99), "no HDF5 file"),
    ],
    ids=["empty", "text", "signature", "garbage", "PNG", "classic netCDF"],
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


@pytest.mark.parametrize(
    ("place", "attribute", "value"),
    [
        ("training/seconds", "units", "h"),
        ("training/seconds", "long_name", "time since lunch"),
        ("surfaces/filter/status", "flag_meanings", "evaluated pending interpolated failed"),
        ("surfaces/filter/status", "flag_values", np.arange(4, 0, -1, dtype=np.uint8)),
    ],
)
def test_another_unit_or_meaning_is_an_error(path: Path, place: str, attribute: str, value: Any) -> None:
    with h5py.File(path, "a") as file:
        file[place].attrs[attribute] = value
    group, _, name = place.rpartition("/")
    with pytest.raises(StoreError, match=f"damaged at {group}: the axes, units or names of the dataset {name}"):
        store.load(path, group)
    assert store.describe(path).damaged == (group,)


def test_axes_that_were_exchanged_are_an_error(path: Path) -> None:
    store.save(path, surface("square", ny=4, nx=4))
    with h5py.File(path, "a") as file:
        dims, loss = file["surfaces/square"], file["surfaces/square/loss"]
        for axis, (old, new) in enumerate([("y", "x"), ("x", "y")]):
            loss.dims[axis].detach_scale(dims[old])
            loss.dims[axis].attach_scale(dims[new])
    with pytest.raises(StoreError, match="the axes, units or names of the dataset loss"):
        store.load(path, "surfaces/square")


def forget_the_shapes(file: h5py.File) -> None:
    """Leave nothing by which a reader could know in advance how large a dataset is."""
    attributes = file["surfaces/filter"].attrs
    attributes["checksums"] = json.dumps(json.loads(attributes["checksums"]) | {"shapes": {}})


@pytest.mark.parametrize("known", [True, False], ids=["shapes-known", "shapes-forgotten"])
@pytest.mark.parametrize(
    "bomb",
    [
        {"shape": (10**7, 10**7), "dtype": "f8", "chunks": (1000, 1000)},
        {"shape": (10**7, 10**7), "dtype": "f8", "chunks": (1000, 1000), "compression": "gzip"},
        {"shape": (10**12,), "dtype": h5py.string_dtype(), "chunks": (1000,)},
        {"shape": (3, 5), "dtype": np.dtype(("S", 2**31 - 1)), "chunks": (1, 1)},
        {"data": np.zeros((500, 500)), "chunks": (500, 500), "compression": "gzip", "maxshape": (None, None)},
    ],
    ids=["sparse", "compressed", "text", "wide", "zeros"],
)
def test_a_file_that_unpacks_to_more_than_it_holds_is_refused_at_once(path: Path, bomb: dict[str, Any], known: bool) -> None:
    with h5py.File(path, "a") as file:
        replaced("surfaces/filter/loss", **bomb)(file)
        if "data" in bomb:
            file["surfaces/filter/loss"].resize((10**6, 10**6))
        if not known:
            forget_the_shapes(file)
    tracemalloc.start()
    words = "is .*, where <f8 3 x 5 was written" if known else "declares .* are in the file"
    refused("load", path, f"damaged at surfaces/filter: the dataset loss {words}")
    assert store.describe(path).damaged == ("surfaces/filter",)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_more_than_the_machine_has_is_refused(path: Path) -> None:
    with h5py.File(path) as file:
        with pytest.raises(StoreError, match="the dataset loss takes 1.2e-07 GB, more than this machine has"):
            hdf5_reading._size("loss", file["surfaces/filter/loss"], 119)
        assert hdf5_reading._size("loss", file["surfaces/filter/loss"], 120) == 120


def odd_things(file: h5py.File) -> None:
    """What HDF5 can hold and a run file never does."""
    group = file["surfaces/filter"]
    file.attrs["reference"] = group.ref
    file.attrs["region"] = group["loss"].regionref[0:2, 0:2]
    file.attrs["empty"] = h5py.Empty("f8")
    group.attrs["records"] = np.zeros(3, dtype=[("a", "i4"), ("b", "S3")])
    group.attrs["examples of mine"] = np.arange(7)
    group["references"] = np.array([group.ref, file.ref], dtype=h5py.ref_dtype)
    group["ragged"] = h5py.Empty(h5py.vlen_dtype(np.int32))
    group["opaque"] = np.void(b"opaque")
    group["type"] = np.dtype("f8")
    group["complex"] = np.ones(2, dtype=complex)
    group["flags"] = np.ones(2, dtype=bool)
    file["hard"] = group
    file["surfaces/loop"] = h5py.SoftLink("/surfaces/loop")
    file["surfaces/outside"] = h5py.ExternalLink("/dev/zero", "/")
    file["virtual"] = 1.0
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
    file.create_virtual_dataset("mine/virtual", layout)


def test_odd_things_beside_the_results_disturb_nobody(path: Path) -> None:
    with h5py.File(path, "a") as file:
        odd_things(file)
    assert_same(store.load(path, "surfaces/filter"), surface())
    told = store.describe(path)
    assert set(landscape.open(path).surfaces) == {"filter"} and not told.damaged and "<Surface 'filter' 5 x 3" in str(told)
    assert store.attributes(path)["schema_version"] == 2
    store.save(path, history(2))
    assert_same(store.load(path, "training"), history(2))


@pytest.mark.parametrize("make", [odd_things, lambda file: file.create_group("surfaces/loop")], ids=["odd", "empty"])
def test_files_of_others(tmp_path: Path, make: Callable[[h5py.File], object]) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["surfaces/filter/loss"] = np.zeros((3, 3))
        make(file)
    for reader in READERS:
        refused(reader, tmp_path / "run.h5", "no run file")
    with h5py.File(tmp_path / "run.h5", "a") as file:  # signed as ours, and nothing in it is
        file.attrs["schema_version"], file.attrs["creation_library"] = 2, "landscape-sam"
    refused("load", tmp_path / "run.h5", "damaged at surfaces/filter: its checksums are missing")
    assert "surfaces/filter" in store.describe(tmp_path / "run.h5").damaged
    for reader in ("save", "check_writable"):
        refused(reader, tmp_path / "run.h5", "damaged at the root")


def test_inspect_shows_the_rest_of_a_damaged_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(path, "a") as file:
        file["surfaces/filter/loss"][1, 2] = 0.25
        file["training/lr"].attrs["units"] = "\x1b[31m\n<b>"
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == f"landscape: {path} is damaged at training, surfaces/filter; restore the file or measure again"
    assert "DAMAGED: " in printed.out and "\x1b" not in printed.out
    assert "<GradientTrace 4 steps" in printed.out and "step x layer" not in printed.err


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


@pytest.mark.parametrize("trials", [30, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_flipped_bits_are_an_error_and_never_a_wrong_number(tmp_path: Path, trials: int) -> None:
    pytest.importorskip("fcntl", reason="a process that may crash is started as on POSIX systems")
    from result_writers import load_flipped, started

    path = tmp_path / "run.h5"
    for result in every():
        store.save(path, result)
    store.save_partial(path, "growing", {"x": np.arange(4.0), "sums": odd(4)}, {"batch": 3, "text": "x" * 400})
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
