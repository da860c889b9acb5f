"""The command that a measurement names, against what a shell would have to be told."""

import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

from landscape.objective import Objective
from landscape.provenance import command_line
from landscape.results import store
from landscape.sharpness import m_sharpness


@pytest.mark.parametrize(
    ("module", "argv", "command"),
    [
        (None, ["/home/me/.venv/bin/landscape", "hessian", "a b.pt", "--k", "3"], "landscape hessian 'a b.pt' --k 3"),
        ("landscape.cli.__main__", ["/x/landscape/cli/__main__.py", "inspect", "$(rm)"], "python -m landscape.cli inspect '$(rm)'"),
        (None, ["study.py", "--fast"], "python study.py --fast"),
        (None, ["-c"], ""),
        ("ipykernel_launcher", ["/x/ipykernel_launcher.py", "-f", "kernel.json"], ""),
        (None, ["landscape", "plot", "x" * 9000], ""),
    ],
)
def test_command_is_what_was_typed(module: str | None, argv: list[str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", module and SimpleNamespace(name=module))
    assert command_line() == command
    if command.startswith("landscape"):
        assert shlex.split(command)[1:] == argv[1:]


def test_a_file_keeps_the_command_of_each_measurement(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = Objective(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (torch.ones(4, 3), torch.tensor([0, 1, 0, 1])))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for m in (1, 2):
        monkeypatch.setattr(sys, "argv", ["landscape", "sharpness", "--m", str(m)])
        store.save(tmp_path / "run.h5", m_sharpness(objective, m=m))
    file = store.open(tmp_path / "run.h5")
    assert {s.m: s.provenance.command for s in file.sharpness.values()} == {1: "landscape sharpness --m 1", 2: "landscape sharpness --m 2"}
    assert file.attributes["command"] == "landscape sharpness --m 1"
