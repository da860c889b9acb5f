"""The code in docs/surfaces.md runs as it stands, block after block."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/surfaces.md"


def test_code_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        exec(compile(block, "docs/surfaces.md", "exec"), names)
    said = capsys.readouterr().out
    assert "barrier" in said and "components explain" in said
    assert Path("planes.h5").exists() and Path("b.h5").exists() and Path("paths.h5").exists()
