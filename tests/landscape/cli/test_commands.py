"""The commands as a user types them: what they leave, what they print, and what they say when something is wrong."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import landscape
import sam_core
from landscape.cli import main
from landscape.results.numbers import with_error
from sam_core.training import build_data

SMALL = ["--train-examples", "128", "--test-examples", "64", "--epochs", "2", "--device", "cpu"]

OWN = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 6, generator=g), torch.randint(0, 3, (20,), generator=g)

def squared(model, batch):
    return (model(batch[0]) ** 2).mean()

three = 3
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sampa"
    assert main(["train", "--method", "sampa", "--rho", "0.1", "--out", str(folder), "--trace-every", "1", *SMALL]) == 0
    return folder


def objective(run: Path) -> landscape.Objective:
    saved = sam_core.load_checkpoint(run)
    return landscape.Objective(saved.model, cross_entropy, build_data(saved.config).train.tensors())


def test_train_leaves_a_checkpoint_and_a_readable_file(run: Path) -> None:
    file = landscape.open(run / "run.h5")
    assert file.training.method == "sampa" and list(file.training.epoch) == [1, 2]
    assert len(file.gradients.step) == 3  # four steps, the first of which has no second gradient
    assert sam_core.load_checkpoint(run).finished


def test_measurements_are_those_of_the_python_calls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hessian", str(run), "--k", "2", "--trace-tol", "0.2", "--no-density", "--parts", "3"]) == 0
    assert main(["sharpness", str(run), "--m", "16", "128"]) == 0
    assert main(["surface", str(run), "--x", "-1", "1", "5", "--y", "-0.5", "0.5", "3"]) == 0
    assert main(["surface", str(run), "--line", "--x", "-1", "1", "5"]) == 0
    printed = capsys.readouterr().out
    file, same = landscape.open(run / "run.h5"), objective(run)
    eigen = landscape.top_eigenpairs(same, k=2)
    np.testing.assert_allclose(file.eigen.values, eigen.values, rtol=1e-5)
    assert with_error(eigen.values[0], eigen.residuals[0])[:7] in printed
    spread = file.subsampled["lambda_max"]
    np.testing.assert_allclose(spread.values, eigen.values[:1], rtol=1e-5)
    assert with_error(spread.values[0], spread.stderr[0]) in printed and len(spread.per_part) == 3
    sharp = landscape.m_sharpness(same, rho=0.05, m=16)
    assert [r.value for r in file.sharpness.values() if r.m == 16] == pytest.approx([sharp.value], rel=1e-5)
    plane = landscape.random_plane(same)
    surface = landscape.loss_surface(same, plane, x=(-1, 1, 5), y=(-0.5, 0.5, 3))
    np.testing.assert_allclose(file.surfaces["plane"].loss, surface.loss, rtol=1e-6)
    np.testing.assert_allclose(file.surfaces["line"].loss, landscape.loss_surface(same, plane, x=(-1, 1, 5), y=None).loss, rtol=1e-6)


def test_surfaces_are_interpolated_unless_full_ones_are_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, grid = tmp_path / "run.h5", ["--line", "--x", "-1", "1", "201"]
    assert main(["surface", str(run), "--out", str(out), *grid]) == 0
    adaptive = landscape.open(out).surfaces["line"]
    evaluated = int((adaptive.status == adaptive.EVALUATED).sum())
    assert evaluated == adaptive.cost.forwards < 100
    assert f"{evaluated} of 201 points evaluated, 99 % of the others within" in capsys.readouterr().out
    assert main(["surface", str(run), "--out", str(out), *grid, "--full"]) == 2
    assert "the tolerances differ" in capsys.readouterr().err
    assert main(["surface", str(run), "--out", str(out), *grid, "--full", "--name", "all"]) == 0
    full = landscape.open(out).surfaces["all"]
    assert full.cost.forwards == 201 and "points evaluated" not in capsys.readouterr().out
    np.testing.assert_allclose(adaptive.loss, full.loss, rtol=0.03)


def test_plot_report_and_inspect_read_what_was_measured(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(run / "run.h5")
    assert main(["surface", str(run), "--x", "-1", "1", "5", "--y", "-0.5", "0.5", "3"]) == 0
    assert main(["plot", file, "--out", str(tmp_path / "pictures"), "--formats", "png", "--no-html"]) == 0
    assert main(["report", file, "--out", str(tmp_path / "report.html")]) == 0
    assert main(["inspect", file]) == 0
    assert {p.name for p in (tmp_path / "pictures").iterdir()} >= {"contours-plane.png", "training.png", "gradients-sampa.png"}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in (tmp_path / "pictures").glob("*.png"))
    assert "sampa" in (tmp_path / "report.html").read_text()
    assert "/surfaces/plane" in capsys.readouterr().out


def test_surfaces_of_two_models_can_share_a_plane(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "sgd"
    assert main(["train", "--method", "sgd", "--out", str(other), *SMALL]) == 0
    grid = ["--x", "-1", "1", "3", "--line"]
    assert main(["surface", str(other), *grid, "--like", str(run)]) == 0
    assert main(["surface", str(run), *grid, "--name", "shared"]) == 0
    first, second = landscape.open(other / "run.h5").surfaces["line"], landscape.open(run / "run.h5").surfaces["shared"]
    assert first.plane["direction_sha256"][0] == second.plane["direction_sha256"][0]
    assert first.plane["origin_sha256"] != second.plane["origin_sha256"]


def test_trace_repeats_a_run_with_sampa(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.h5"
    assert main(["trace", str(run), "--every", "1", "--out", str(out)]) == 0
    np.testing.assert_array_equal(landscape.open(out).gradients.cosine, landscape.open(run / "run.h5").gradients.cosine)


def test_anybodys_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_model_of_a_user.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = ["--model", "own_model_of_a_user:net", "--data", "own_model_of_a_user:data"]
    with torch.random.fork_rng():
        assert main(["hessian", *own, "--k", "2", "--no-density", "--dtype", "float64"]) == 0
        module = __import__("own_model_of_a_user")
        model = module.net()
    weights = tmp_path / "weights.pt"
    torch.save({n: p * 2 for n, p in model.state_dict().items()}, weights)
    expected = landscape.top_eigenpairs(landscape.Objective(model, cross_entropy, module.data(), dtype=torch.float64), k=2)
    np.testing.assert_allclose(landscape.open("run.h5").eigen.values, expected.values, rtol=1e-6)
    with torch.random.fork_rng():
        loss = ["--loss", "own_model_of_a_user:squared", "--out", "own.h5"]
        assert main(["sharpness", str(weights), *own, *loss, "--m", "20", "--examples", "20"]) == 0
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    value = landscape.m_sharpness(landscape.Objective(model, module.squared, module.data()), rho=0.05, m=20).value
    assert [r.value for r in landscape.open("own.h5").sharpness.values()] == pytest.approx([value], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--method", "samm", "--out", "x"], "unknown method 'samm': did you mean"),
        (["train", "--rho", "-0.1", "--out", "x"], "rho must be in [0, inf), not -0.1"),
        (["train", "--lr", "abc", "--out", "x"], "--lr"),
        (["train"], "--out"),
        (["trian", "--out", "x"], "trian"),
        (["train", "--data", "cifar10", "--data-dir", ".", "--model", "resnet20", "--out", "x"], "no cifar10 folder"),
        (["train", "--method", "sam", "--trace-every", "5", "--out", "x"], "--method sampa"),
        (["hessian", "no/such.pt"], "no/such.pt"),
        (["hessian", "notes.txt"], "notes.txt is cut off or no checkpoint"),
        (["hessian", "evil.pt"], "more than tensors"),
        (["hessian"], "--model package.module:factory"),
        (["hessian", "{run}", "--device", "cuda:99"], "CUDA devices"),
        (["hessian", "{run}", "--k", "0"], "k must be"),
        (["hessian", "{run}", "--parts", "2"], "--parts must be 0 or at least 3"),
        (["hessian", "{run}", "--out", "foreign.h5"], "foreign.h5"),
        (["sharpness", "{run}", "--rho", "nan"], "rho"),
        (["sharpness", "{run}", "--m", "1000"], "1000"),
        (["surface", "{run}", "--x", "1", "-1", "5"], "1.0 to -1.0"),
        (["surface", "{run}", "--tolerance", "0"], "--tolerance must be above 0 and below 1, got 0.0; --full"),
        (["hessian", "evil.pt", "--model", "os:nothing", "--data", "os:nothing"], "os:nothing"),
        (["hessian", "--model", "nomodule:net", "--data", "x:y"], "cannot import 'nomodule'"),
        (["inspect", "notes.txt"], "notes.txt"),
        (["sharpness", "{run}", "--m", "16", "1000", "--out", "new/run.h5"], "between 1 and 128"),
        (["hessian", "{run}", "--k", "0", "--out", "new/run.h5"], "--k must be"),
        (["hessian", "{run}", "--out", "other.h5"], "other weights"),
        (["report", "two.h5"], "2 models"),
        (["plot"], "at least one result file"),
        (["report", "no.h5"], "no.h5"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes_are_one_line_and_exit_code_2(
    run: Path, arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello")
    with h5py.File("foreign.h5", "w") as file:
        file["a"] = 1
    torch.save(Evil(), "evil.pt")
    for scale in (1, 2):
        model = torch.nn.Linear(2, 2).requires_grad_()
        other = landscape.Objective(model, cross_entropy, (torch.eye(2) * scale, torch.arange(2)))
        for name in ("other.h5", "two.h5")[scale - 1 :]:
            landscape.save(name, landscape.m_sharpness(other, rho=0.1 * scale, m=2))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    content = (run / "run.h5").read_bytes()
    assert main([a.format(run=run) for a in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and words in printed.err, printed.err
    left = {p.name for p in tmp_path.rglob("*")} - set(before)
    assert not left or left == {"x"} and not list((tmp_path / "x").glob("*")), left
    assert (run / "run.h5").read_bytes() == content and not Path("hacked").exists()


class Evil:
    def __reduce__(self) -> tuple:
        return (Path("hacked").touch, ())


def test_a_diverging_run_stops_with_advice_and_leaves_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--method", "sgd", "--lr", "1e30", "--model", "mlp", "--out", str(out), *SMALL]) == 2
    assert "learning rate" in capsys.readouterr().err
    assert not (out / "run.h5").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_surface_that_the_same_command_completes(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    command = [
        sys.executable,
        "-m",
        "landscape.cli",
        "surface",
        str(run),
        "--out",
        str(out),
        "--x",
        "-1",
        "1",
        "101",
        "--y",
        "-1",
        "1",
        "101",
        "--full",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on" in said, said
    partial = landscape.open(out).partial["plane"]
    assert (partial.status == 0).any()


def test_overwriting_a_run_moves_the_old_weights_numbers_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--method", "sgd", "--out", str(out), *SMALL]) == 0
    assert main(["sharpness", str(out), "--m", "128"]) == 0
    assert main(["train", "--method", "sam", "--out", str(out), "--overwrite", *SMALL]) == 0
    assert "moved to" in capsys.readouterr().out
    assert landscape.open(out / "run.h5").groups() == ["training"]
    (aside,) = out.glob("run-*.h5")
    assert landscape.open(aside).training.method == "sgd" and len(landscape.open(aside).sharpness) == 1


def test_the_report_shows_accuracies_of_the_trained_weights(run: Path, tmp_path: Path) -> None:
    final = landscape.open(run / "run.h5").attributes["config"]["final"]
    assert final["train_accuracy"] == pytest.approx(float(objective(run).evaluate().accuracy))
    assert main(["report", str(run / "run.h5"), "--out", str(tmp_path / "report.html")]) == 0
    assert f"{100 * final['train_accuracy']:.2f} %" in (tmp_path / "report.html").read_text()


def test_errors_of_a_users_own_model_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_model_of_a_user.py").write_text(OWN.replace("nn.Linear(6, 4)", "nn.Linear(7, 4)"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with torch.random.fork_rng():
        assert main(["hessian", "--model", "broken_model_of_a_user:net", "--data", "broken_model_of_a_user:data"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "RuntimeError: mat1 and mat2" in said


def test_train_resumes_and_refuses_to_overwrite(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", "--method", "sampa", "--rho", "0.1", "--out", str(run), "--trace-every", "1", *SMALL]
    assert main(again) == 2
    assert "resume" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0


def test_real_images_are_trained_on_and_their_surface_computed(tmp_path: Path) -> None:
    archive = Path(os.environ.get("LANDSCAPE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "cifar10-jpeg.tar.xz"
    if not archive.exists():
        pytest.skip(f"no CIFAR-10 images: {archive} is missing (set LANDSCAPE_DATA)")
    image = pytest.importorskip("PIL.Image")
    rows = []
    with tarfile.open(archive) as tar:
        while len(rows) < 60 and (member := tar.next()) is not None:
            if member.isfile():
                pixels = np.asarray(image.open(tar.extractfile(member)).convert("RGB"))
                rows.append(bytes([len(rows) % 10]) + pixels.transpose(2, 0, 1).tobytes())
    for i, name in enumerate([f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]):
        (tmp_path / name).write_bytes(b"".join(rows[10 * i : 10 * i + 10]))
    out = tmp_path / "run"
    train = ["--data", "cifar10", "--data-dir", str(tmp_path), "--model", "resnet20", "--augment", "--epochs", "1", "--batch-size", "25"]
    assert main(["train", "--method", "sampa", "--device", "cpu", "--out", str(out), *train]) == 0
    assert main(["surface", str(out), "--x", "-1", "1", "3", "--y", "-1", "1", "3"]) == 0
    run = landscape.open(out / "run.h5")
    assert run.surfaces["plane"].provenance.examples == 50 and run.surfaces["plane"].loss[1, 1] == pytest.approx(
        objective(out).loss(), rel=1e-5
    )
