"""Figures: the same bytes from the same data, every one in the list of studies, and small files behind them."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import landscape

ROOT = Path(__file__).parents[2]
FIGURES, RESULTS = ROOT / "figures", ROOT / "analyses" / "results"


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FIGURES))
    yield runpy.run_path(str(FIGURES / "__main__.py"))
    for name in ("curves", "micro_runs", "batch_runs"):
        sys.modules.pop(name, None)


def test_the_same_data_give_the_same_bytes(figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import curves

    written = []
    for folder in ("first", "second"):
        monkeypatch.setattr(curves, "OUT", tmp_path / "figures" / folder)
        runpy.run_path(str(FIGURES / "lambda_sweep.py"), run_name="__main__")
        written.append({path.name: path.read_bytes() for path in (tmp_path / "figures" / folder).iterdir()})
    assert sorted(written[0]) == ["lambda_sweep.pdf", "lambda_sweep.png"]
    assert written[0] == written[1]


def test_every_figure_and_every_study_is_described(figures) -> None:
    page = (ROOT / "docs" / "studies.md").read_text()
    shown = set(re.findall(r"`figures/(\w+)\.py`", page))
    assert shown == set(figures["names"]())
    studies = {path.stem for path in (ROOT / "analyses").glob("*.py") if "\ndef main(" in path.read_text()}
    assert set(re.findall(r"python analyses/(\w+)\.py", page)) == studies
    for target in re.findall(r"\]\((images/[^)]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target


def test_result_files_are_small_and_tell_no_path_of_a_machine() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 9.5e6, "two megabytes in the repository, compressed"
    assert {path.suffix for path in files} == {".h5"}
    for path in sorted(RESULTS.glob("*/*.h5"))[::7]:
        run = landscape.open(path)
        assert run.groups()
        assert "/tmp" not in run.attributes["command"] and str(Path.home()) not in run.attributes["command"]
        assert "tmp" not in str(run.attributes["config"].get("data_dir"))


@pytest.mark.parametrize("folder", ["micro_batches", "label_noise", "lambda_sweep", "batch_and_decay", "spectra_over_training"])
def test_error_bars_are_over_three_seeds(folder: str) -> None:
    seeds: dict[str, set[str]] = {}
    for path in (RESULTS / folder).glob("*.h5"):
        setting, _, seed = path.stem.rpartition("-")
        seeds.setdefault(setting, set()).add(seed)
    assert seeds and set(map(len, seeds.values())) == {3}
