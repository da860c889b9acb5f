"""A real run and all that is measured of it: every file that the commands leave is opened by xarray as it stands."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import landscape
from landscape.cli import main
from landscape.results import store
from landscape.results.types import Result

xarray = pytest.importorskip("xarray", reason="xarray is not installed")
pytest.importorskip("h5netcdf", reason="h5netcdf is not installed")

SMALL = ["--train-examples", "64", "--test-examples", "32", "--device", "cpu", "--model", "small_cnn", "--model-options", "width=2"]
FEW = ["--examples", "32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train twice and measure everything that the command line can."""
    folder = tmp_path_factory.mktemp("runs")
    run, other = str(folder / "a"), str(folder / "b")
    further = ["--trace-every", "1", "--keep-checkpoints", "--curvature-every", "1", "--curvature-examples", "32", "--epochs", "2"]
    assert main(["train", "--method", "sampa", "--out", run, *further, *SMALL]) == 0
    assert main(["train", "--method", "sgd", "--out", other, "--epochs", "1", *SMALL]) == 0
    assert main(["hessian", run, "--k", "2", "--parts", "3", "--trace-tol", "0.5", *FEW]) == 0
    assert main(["sharpness", run, "--measures", "all", "--m", "1", "16", "--restarts", "1", "--draws", "3", *FEW]) == 0
    assert main(["surface", run, "--x", "-1", "1", "9", "--y", "-1", "1", "9", "--save-plane", str(folder / "plane.h5"), *FEW]) == 0
    assert main(["surface", run, "--line", "--x", "-1", "1", "5", "--name", "../<i>", *FEW]) == 0
    assert main(["path", run, other, "--points", "5", "--out", str(folder / "path.h5"), *FEW]) == 0
    assert main(["path", run, "--trajectory", "--points", "5", *FEW]) == 0
    with h5py.File(shutil.copy(run + "/run.h5", folder / "unfinished.h5"), "a") as file:
        file.clear()
    store_partial(folder / "unfinished.h5")
    return folder


def store_partial(path: Path) -> None:
    path.unlink()
    store.save_partial(path, "growing", {"x": np.arange(4.0), "y": np.arange(2.0), "sums": np.ones((3, 2, 4))}, {"batch": 1})


def check(tree: Any) -> int:
    """Return how many arrays were looked at."""
    seen = 0
    for node in tree.subtree:
        assert not [dim for dim in node.dims if str(dim).startswith("phony")], node.path
        for name, array in node.variables.items():
            assert array.attrs["units"] and array.attrs["long_name"], f"{node.path}/{name}"
            assert set(array.dims) <= set(node.coords), f"{node.path}/{name} has an axis without a coordinate"
            assert array.dtype.kind in "fiuOUT", f"{node.path}/{name} has dtype {array.dtype}"
            assert array.values.shape == array.shape
            seen += 1
        assert all(isinstance(v, str | int | float | np.number) for v in node.attrs.values()), node.path
    return seen


@pytest.mark.slow
def test_every_file_of_a_run_opens_in_xarray(folder: Path) -> None:
    files = sorted(folder.rglob("*.h5"))
    assert {str(f.relative_to(folder)) for f in files} >= {"a/run.h5", "b/run.h5", "path.h5", "plane.h5", "unfinished.h5"}
    kinds = set()
    for file in files:
        with xarray.open_datatree(file, engine="h5netcdf") as tree:
            assert check(tree) == len(store.describe(file)) > 0
        run = landscape.open(file)
        kinds |= {type(run[group]).kind for group in run}
        assert not store.describe(file).damaged
        assert all(repr(run[group]).count("\n") == 0 and repr(run[group]).isprintable() for group in run)
    assert kinds == {kind.kind for kind in Result.__subclasses__()}, "every kind of result that there is"


@pytest.mark.slow
def test_nothing_in_a_run_directory_is_a_pickle(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.suffix == ".pt":
            torch.load(file, weights_only=True)
        elif file.is_file() and file.suffix != ".h5":
            assert file.suffix in {".json", ".txt", ".log", ".lock"}, file


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("executed").touch, ())


@pytest.mark.parametrize(
    "words",
    [
        ["hessian", "evil.pt"],
        ["hessian", "evil"],
        ["sharpness", "evil.pt", "--measures", "all"],
        ["surface", "evil.pt"],
        ["path", "evil.pt", "evil.pt", "--out", "out.h5"],
        ["path", "evil", "--trajectory"],
        ["trace", "evil"],
        ["train", "--resume", "evil"],
        ["train", "--resume", "evil/checkpoint.pt"],
        ["hessian", "evil.pt", "--model", "innocent:net", "--data", "innocent:data"],
        ["surface", "--model", "innocent:net", "--data", "innocent:data", "--plane", "evil.npz", "--out", "out.h5"],
        ["surface", "--model", "innocent:net", "--data", "innocent:data", "--plane", "evil.h5", "--out", "out.h5"],
        ["hessian", "--model", "innocent:net", "--data", "innocent:data", "--out", "evil.h5"],
        *(["inspect", f"evil.{ending}"] for ending in ("h5", "npz", "pt")),
        ["export", "evil.h5", "--to", "npz"],
        ["merge", "evil.h5", "--out", "out.h5"],
        ["plot", "evil.h5"],
        ["report", "evil.h5"],
    ],
    ids=" ".join,
)
def test_pickles_are_refused_and_nothing_in_them_is_run(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("innocent.py").write_text(
        "import torch\ndef net(): return torch.nn.Linear(2, 2)\ndef data(): return torch.eye(2), torch.arange(2)\n"
    )
    Path("evil").mkdir()
    for name in ("evil.pt", "evil/checkpoint.pt", "evil/checkpoint-1.pt"):
        torch.save({"model": Evil(), "format": "sam_core.checkpoint", "version": 1}, name)
    Path("evil.h5").write_bytes(pickle.dumps(Evil()))
    shutil.copy("evil.h5", "evil/run.h5")
    np.savez("evil.npz", origin=np.array([Evil()], dtype=object))
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("landscape: ") and "Traceback" not in said, said
    assert not Path("executed").exists() and not Path("out.h5").exists()
