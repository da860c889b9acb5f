"""`landscape compare` as a stranger types it: checkpoints of every kind, what it leaves, and what it says when something is wrong."""

import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

import landscape
from landscape.cli import main
from landscape.cli.checkpoints import load_state

OWN = """
import torch
from torch import nn

def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))

def wide():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

def of_width(width):
    return nn.Linear(6, width)

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(40, 6, generator=g), torch.randint(0, 3, (40,), generator=g)
"""


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


def safetensors(state: dict[str, torch.Tensor]) -> bytes:
    """Write the format by its description: huggingface.co/docs/safetensors."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in state.items():
        raw = tensor.contiguous().numpy().tobytes()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with torch.random.fork_rng():
        model = net()
    torch.save(model.state_dict(), "a.pt")
    with torch.no_grad():
        model[0].weight.mul_(1.3)
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in model.state_dict().items()}}, "b.pt")
    return tmp_path


OF = ["--model", "own_nets:net", "--data", "own_nets:data"]
SHORT = ["--measures", "gradient_norm", "--points", "3", "--examples", "20"]


def test_two_checkpoints_become_a_page_files_and_differences(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.pt", "b.pt", *OF, *SHORT, "--test-data", "own_nets:data", "-o", "pages/two.html"]) == 0
    printed = capsys.readouterr().out
    assert "this takes about" in printed and "b: test loss" in printed and "difference ± error" in printed
    page = (here / "pages/two.html").read_text()
    assert "How much was measured" in page and "b − a" in page
    a, b = (landscape.open(here / "pages/two-results" / f"{name}.h5") for name in "ab")
    assert a.eigen.provenance.examples == 20 and a.surfaces["plane"].loss.shape == (3, 3)
    assert a.surfaces["plane"].plane["direction_sha256"] == b.surfaces["plane"].plane["direction_sha256"]
    pair = landscape.open(here / "pages/two-results/pairs/a--b.h5")
    assert pair.paths["from a"].curve["statistics"] == "recompute"  # batch norm
    difference = pair.subsampled["difference of λ_max"].values[0]
    assert difference == pytest.approx(b.eigen.values.max() - a.eigen.values.max())
    line = next(line for line in printed.splitlines() if line.startswith("on the straight line from a to b: "))
    assert "barrier" in line and line.endswith("batch norm's statistics computed anew at every point")


@pytest.mark.slow  # two pages
def test_the_same_command_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a.pt", "b.pt", *OF, *SHORT]) == 0
    created = landscape.open(here / "report-results/a.h5").eigen.provenance.created_at
    assert main(["compare", "a.pt", "b.pt", *OF, *SHORT]) == 0
    assert "going on with what an earlier run has begun" in capsys.readouterr().out
    assert landscape.open(here / "report-results/a.h5").eigen.provenance.created_at == created


def test_checkpoints_of_every_kind_give_the_same_model(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = net()
    state = model.state_dict()
    kinds = {
        "plain.pt": state,
        "lightning.ckpt": {"state_dict": {f"model.{k}": v for k, v in state.items()}, "global_step": 7},
        "compiled.pt": {f"module._orig_mod.{k}": v for k, v in state.items()},
        "nested.pth": {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
    }
    for name, content in kinds.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "model.safetensors").write_bytes(safetensors(state))
    (tmp_path / "named_otherwise.bin").write_bytes(safetensors({f"module.{k}": v for k, v in state.items()}))
    for name in (*kinds, "model.safetensors", "named_otherwise.bin"):
        with torch.random.fork_rng():
            torch.manual_seed(9)
            other = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
        load_state(other, tmp_path / name)
        assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items()), name


def test_damaged_and_foreign_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    whole = safetensors(net().state_dict())
    damaged = {
        "short.safetensors": whole[:40],
        "cut.safetensors": whole[:-4],
        "huge.safetensors": struct.pack("<Q", 2**60) + whole[8:],
        "text.pt": b"hello",
        "empty.pt": b"",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in (*damaged, "none.pt", "list.pt", "missing.pt"):
        with pytest.raises(ValueError, match=name) as caught:
            load_state(net(), tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the checkpoints to compare"),
        (["a.pt", "b.pt"], "what model is it of? Give --model"),
        (["a.pt", "b.pt", "--model", "own_nets:net"], "--model needs --data"),
        (["a.pt", "c.pt", *OF], "checkpoint c.pt does not exist"),
        (["a.pt", "a.pt", *OF], "two checkpoints are called 'a.pt'"),
        (["a.pt", "b.pt", *OF, "--names", "x"], "--names must be one for each of the 2 checkpoints, got 1"),
        (["a.pt", "b.pt", *OF, "--budget", "5x"], "budget must be a time such as 90s, 5m or 1h, got '5x'"),
        (["a.pt", "b.pt", *OF, "--reference", "c"], "--reference must be one of a, b, got 'c'"),
        (["a.pt", "b.pt", *OF, "--measures", "flat"], "measures must be 'all' or some of"),
        (["a.pt", "b.pt", "--model", "own_nets:wide", "--data", "own_nets:data"], "does not fit Sequential"),
        (["a.pt", "b.pt", "--model", "own_nets:nett", "--data", "own_nets:data"], "has no attribute 'nett'"),
        (["a.pt", "b.pt", "--model", "own_nets:of_width", "--data", "own_nets:data"], "of_width is called without arguments: missing"),
        (["a.pt", "b.pt", *OF, "-o", "."], "is a folder: name the page"),
        (["a.pt", "b.pt", *OF, "--model", "own_nets:net", "own_nets:net", "own_nets:net"], "--model must be one factory"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(here.glob("**/*.h5")) and not list(here.glob("*.html"))


def test_the_document_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text()
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/compare.md", "exec"), names)
    assert "difference ± error" in capsys.readouterr().out and (here / "report.html").exists()
