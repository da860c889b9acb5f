"""`landscape path` and shared planes as a user types them, against the same measurements in Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import landscape
import sam_core
from landscape.cli import main
from sam_core.training import build_data

SMALL = ["--train-examples", "96", "--test-examples", "32", "--model", "mlp", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("a", "0"), ("b", "1")):
        words = ["train", "--method", "sgd", "--epochs", "4", "--seed", seed, "--out", str(folder / name), "--keep-checkpoints", *SMALL]
        assert main(words) == 0
    return folder / "a", folder / "b"


def objective(run: Path) -> landscape.Objective:
    saved = sam_core.load_checkpoint(run)
    return landscape.Objective(saved.model, cross_entropy, build_data(saved.config).train.tensors())


def test_paths_between_checkpoints(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = map(str, runs)
    out = ["--out", str(tmp_path / "paths.h5"), "--points", "5"]
    assert main(["path", a, b, *out]) == main(["path", a, b, "--align", *out]) == 0
    assert main(["path", a, b, "--bend", "chain", "--epochs", "2", *out]) == 0
    said = capsys.readouterr().out
    file = landscape.open(tmp_path / "paths.h5")
    assert set(file.paths) == {"linear", "aligned", "chain", "chain-linear"}
    straight = file.paths["linear"]
    assert f"barrier {straight.barrier:.4g}"[:9] in said and straight.stderr[0] > 0
    for end, run in ((0, runs[0]), (-1, runs[1])):
        assert straight.loss[end] == pytest.approx(objective(run).loss(), rel=1e-5)
    assert file.paths["aligned"].curve["distance"] < straight.curve["distance"]
    assert main(["plot", str(tmp_path / "paths.h5"), "--out", str(tmp_path / "figures"), "--formats", "png", "--no-html"]) == 0
    assert (tmp_path / "figures" / "paths.png").exists()


def test_the_trajectory_of_a_run_over_its_surface(runs: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "steps.h5"
    assert main(["path", str(runs[0]), "--trajectory", "--points", "5", "--out", str(out)]) == 0
    file = landscape.open(out)
    steps, surface = file.paths["trajectory"], file.surfaces["trajectory"]
    assert list(steps.step) == [0, 1, 2, 3, 4] and steps.loss[-1] == pytest.approx(objective(runs[0]).loss(), rel=1e-5)
    assert surface.plane["direction_sha256"] == steps.curve["plane"]["direction_sha256"]
    np.testing.assert_allclose(steps.coordinates[-1], 0, atol=1e-7)
    assert surface.x[0] < steps.coordinates[:, 0].min() and surface.x[-1] > steps.coordinates[:, 0].max()
    assert main(["plot", str(out), "--out", str(tmp_path / "figures"), "--formats", "png", "--no-html"]) == 0
    assert (tmp_path / "figures" / "path-trajectory-on-trajectory.png").exists()


def test_two_runs_share_a_plane_from_a_file(runs: tuple[Path, Path], tmp_path: Path) -> None:
    grid = ["--x", "-1", "1", "3", "--y", "-1", "1", "3", "--full"]
    plane = tmp_path / "plane.h5"
    files = [tmp_path / f"{run.name}.h5" for run in runs]
    assert main(["surface", str(runs[0]), *grid, "--save-plane", str(plane), "--out", str(files[0])]) == 0
    assert main(["surface", str(runs[1]), *grid, "--plane", str(plane), "--out", str(files[1])]) == 0
    one, other = (landscape.open(file).surfaces["plane"].plane for file in files)
    assert one["direction_sha256"] == other["direction_sha256"] and one["origin_sha256"] != other["origin_sha256"]


OWN = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 6, generator=g), torch.randint(0, 3, (20,), generator=g)
"""


def test_state_dicts_of_a_model_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_path_model.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        for name in ("one.pt", "two.pt"):
            torch.save(
                torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).state_dict(), name
            )
        words = ["--model", "own_path_model:net", "--data", "own_path_model:data", "--align", "--points", "3"]
        assert main(["path", "one.pt", "two.pt", *words]) == 0
    path = landscape.open("run.h5").paths["aligned"]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    x = torch.randn(20, 6, generator=(g := torch.Generator().manual_seed(0)))
    y = torch.randint(0, 3, (20,), generator=g)
    for end, name in ((0, "one.pt"), (-1, "two.pt")):
        model.load_state_dict(torch.load(name, weights_only=True))
        assert path.loss[end] == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{a}"], "give two checkpoints"),
        (["{a}", "{b}", "--trajectory"], "one folder of a run"),
        (["{a}", "--trajectory", "--align"], "leave out --align"),
        (["{one}", "--trajectory"], "holds the networks of 1 epochs"),
        (["{a}", "{other}"], "b has '1.weight' of shape"),
        (["{a}", "{b}", "--points", "1"], "--points must be at least 2"),
        (["{a}", "no/such"], "no/such"),
        (["{a}", "{b}", "--bends", "2"], "--bends is for the training of a curve"),
        (["{a}", "--trajectory", "--epochs", "2"], "--epochs is for the training of a curve"),
        (["{a}", "{b}", "--bend", "chain", "--lr", "nan"], "lr must be positive"),
    ],
)
def test_mistakes_are_one_line(
    runs: tuple[Path, Path], words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, hidden in (("one", "32"), ("other", "8")):
        if f"{{{name}}}" in words:
            options = ["--epochs", "1", "--model-options", f"hidden={hidden}"]
            assert main(["train", "--method", "sgd", *options, "--out", str(tmp_path / name), *SMALL]) == 0
    places = {"a": runs[0], "b": runs[1], "one": tmp_path / "one", "other": tmp_path / "other"}
    assert main(["path", *(w.format(**places) for w in words), "--out", str(tmp_path / "x.h5")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err, err
    assert not (tmp_path / "x.h5").exists()
