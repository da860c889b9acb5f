"""The arrows of the house: who may import whom, read from the source with `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("sam_core", "landscape") for p in (ROOT / folder).rglob("*.py"))
WINGS = ("curvature", "sharpness", "surfaces", "traces", "plots")
GROUND = ("results", "objective", "batches", "stateless", "fastforms", "overwriting", "provenance", "intervals", "correlation", "progress")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module is not None, f"{path}: relative import without a module"
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join([*package, base])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    """Return the part of its package that a module belongs to."""
    parts = path.relative_to(ROOT).parts
    return parts[1].removesuffix(".py")


def rooms_used(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(path) if name.startswith("landscape.")}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    used = imported(path)
    top = {name.split(".")[0] for name in used}
    if path.is_relative_to(ROOT / "sam_core"):
        assert not top & {"landscape", "analyses", "figures", "h5py", "matplotlib", "plotly", "tyro"}
        return
    assert not top & {"analyses", "figures"}
    here, rooms = room(path), rooms_used(path)
    if "h5py" in top:
        assert path.parent == ROOT / "landscape/results", "h5py is for the result files alone"
    if "tyro" in top:
        assert here == "cli", "tyro is for the command line alone"
    if here in WINGS:
        assert not rooms & (set(WINGS) - {here}), "no wing imports another wing"
        assert not rooms & {"cli", "compare"}
    if here in GROUND:
        assert not rooms & {*WINGS, "cli", "compare"}, "the ground floor imports no wing"
    if here == "plots":
        assert "sam_core" not in top and "objective" not in rooms, "plots draw results, they compute nothing"


def test_only_ranks_and_parallel_use_torch_distributed() -> None:
    for path in MODULES:
        inside = path.relative_to(ROOT / "sam_core").parts[0] if path.is_relative_to(ROOT / "sam_core") else "parallel"
        if inside not in ("ranks.py", "parallel"):
            assert not any(name.startswith("torch.distributed") for name in imported(path)), path


@pytest.mark.parametrize("folder", ["analyses", "figures"])
def test_studies_and_figures_keep_apart(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        used = imported(path)
        if folder == "figures":
            allowed = {"landscape.results", "landscape.plots", "landscape"}
            ours = {".".join(n.split(".")[:2]) for n in used if n.split(".")[0] in {"landscape", "sam_core", "analyses"}}
            assert ours <= allowed | {f"landscape.{n}" for n in ("open",)}, f"{path}: a figure never computes"
        else:
            assert not any(name.split(".")[0] == "figures" for name in used)
