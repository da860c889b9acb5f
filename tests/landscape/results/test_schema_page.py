"""docs/schema.md against the script that writes it, and its tables against what h5py finds in files of every kind of result."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import h5py
import pytest
from result_samples import every

from landscape.results import schema, store

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schema_page", ROOT / "docs" / "schema.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_page_is_what_its_script_writes(script: ModuleType) -> None:
    assert (ROOT / "docs" / "schema.md").read_text() == script.page(), "run python docs/schema.py"


def rows_of(text: str, cells: int) -> dict[str, list[str]]:
    """Return the rows of the tables of so many columns: attributes have 3, datasets 5."""
    rows = [[cell.strip().strip("`") for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| `")]
    return {first: rest for first, *rest in rows if len(rest) == cells - 1}


def test_the_page_says_what_is_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for result in every():
        store.save(path, result)
    page = (ROOT / "docs" / "schema.md").read_text()
    sections = {
        found[1].replace("/&lt;name&gt;", ""): found[0] for found in re.finditer(r"^## /?(.*)\n(?:(?!^## ).*\n?)*", page, re.MULTILINE)
    }
    everywhere = rows_of(sections["Every group"], 3)
    dtypes = {"float64": "f8", "int64": "i8", "uint8": "u1", "float32 or float64": "f4 f8"}
    seen: dict[str, set[str]] = {}
    with h5py.File(path) as file:
        assert (
            set(file.attrs) - {"checksums"} <= set(rows_of(sections[""], 3)) and int(file.attrs["schema_version"]) == schema.SCHEMA_VERSION
        )
        for place in store.groups(path):
            layout = schema.layout_of_group(place)
            assert layout is not None
            rows, node = rows_of(sections[layout.group], 5), file[place]
            assert set(node.attrs) - set(everywhere) == set(rows_of(sections[layout.group], 3)), place
            seen.setdefault(layout.group, set()).update(node)
            for name, dataset in node.items():
                axes, dtype, units, what = rows[name]
                found = [name] if dataset.is_scale else [h5py.h5ds.get_scale_name(axis[0].id).decode() for axis in dataset.dims]
                assert found == [] if axes == "scalar" else set(found) <= set(re.split(r"[\[\], ]+", axes)), name
                assert h5py.check_string_dtype(dataset.dtype) if dtype == "string" else dataset.dtype.str[1:] in dtypes[dtype].split()
                assert dataset.attrs["units"] == units and what.startswith(dataset.attrs["long_name"].replace("|", "\\|"))
    told = {group: set(rows_of(text, 5)) for group, text in sections.items() if group in {x.group for x in schema.LAYOUTS}}
    assert told == seen, "nothing is told that is not there, nothing is there that is not told"
