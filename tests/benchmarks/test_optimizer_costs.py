"""The benchmark of a step's cost runs from start to end; what it counts is counted right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def contenders() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contenders", FOLDER / "contenders.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_runs_in_quick_form(tmp_path: Path) -> None:
    cases = ["overhead", "vit"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "optimizers.py"), "--quick", "--only", *cases, "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "optimizers.md").read_text() + "\n"
    found = json.loads((tmp_path / "optimizers.json").read_text())
    assert found["header"]["threads"] == 1 and found["header"]["torch"] == torch.__version__
    assert all(key in found for key in cases) and "resnet20" not in found
    assert 1 < found["vit"]["units"]["sam"][0] < 5 and found["overhead"]["overhead"]["sam"] > 0


def test_memory_is_what_was_allocated(contenders: ModuleType) -> None:
    def run() -> torch.Tensor:
        kept = torch.zeros(250_000)
        for _ in range(3):
            kept = kept + torch.ones(250_000)
        return kept

    found = contenders.allocated(run)
    assert found.kept == pytest.approx(1e6, rel=0.01) and found.peak == pytest.approx(3e6, rel=0.01)


def test_every_round_holds_every_contender_once(contenders: ModuleType) -> None:
    order: list[str] = []
    made = [contenders.Contender(name, lambda name=name: order.append(name), units=2) for name in "abc"]
    times = contenders.interleaved(made, 4, "process", warm_up=1)
    assert [sorted(order[i : i + 3]) for i in range(0, 15, 3)] == [["a", "b", "c"]] * 5
    assert len({tuple(order[i : i + 3]) for i in range(0, 15, 3)}) > 1
    assert {name: len(seconds) for name, seconds in times.seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_are_taken_round_by_round(contenders: ModuleType) -> None:
    times = contenders.Times({"a": [1.0, 10.0, 100.0], "b": [2.0, 20.0, 100.0]})
    assert times.ratio("b", "a") == 2
    assert times.with_rounds_of(contenders.Times({"a": [1.0], "b": [3.0]})).seconds["b"] == [2.0, 20.0, 100.0, 3.0]


def test_targets_say_whether_they_are_reached(contenders: ModuleType) -> None:
    assert str(contenders.Target("cost", 2.0, 2.05)).startswith("reached")
    assert str(contenders.Target("cost", 2.1, 2.05)).startswith("NOT REACHED")
    assert contenders.Target("gain", 2.1, 2.05, at_least=True).reached
