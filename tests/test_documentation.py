"""The code in the documents runs as it stands, block after block."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("docs/training.md", "sharpness"),
        ("docs/curvature.md", "not deterministic: batch 0"),
        ("docs/estimators.md", "over each of 6 parts"),
        ("docs/sharpness.md", "the first is sharper by"),
        ("docs/figures.md", "column 3.25 wide 5.5 full 6.75"),
    ],
)
def test_code_blocks_run(page: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert printed in capsys.readouterr().out


def test_readme_runs_with_a_model_of_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2  # a third is of several processes
    monkeypatch.chdir(tmp_path)
    x, y = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
    model = torch.nn.Linear(4, 3)
    torch.save(model.state_dict(), "mine.pt")
    exec(blocks[0].replace("51)", "5)"), {"MyModel": lambda: torch.nn.Linear(4, 3), "X": x, "Y": y})
    assert Path("surface.pdf").exists()
    before = model.weight.clone()
    exec(blocks[1], {"model": model, "loader": [(x, y)], "loss_function": torch.nn.functional.cross_entropy})
    assert not torch.equal(model.weight, before)
