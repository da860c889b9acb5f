"""Names that users give: any text, nothing that breaks a file, a shell or a page."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from result_samples import assert_same, surface

import landscape
from landscape.results import store
from landscape.results.names import escape_name, unescape_name

NAMES = [
    "filter",
    "a/b",
    "/",
    "../../etc/passwd",
    ".",
    "..",
    "a%2Fb",
    "%",
    '\'; rm -rf "$HOME"',
    "<script>alert(1)</script>",
    " leading and trailing ",
    "\n\t\x1b[31m",
    "日本語 ñ Ω",
    "\u202e reversed",
    "\U0001f600",
    "e\u0301",
    "\u00e9",
    "\u212b",
    "\\",
    "-rf",
    "surfaces/filter",
    "x" * 255,
]


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_escaping_can_be_undone_and_leaves_nothing_dangerous(name: str) -> None:
    if "\0" in name:
        with pytest.raises(ValueError, match="NUL"):
            escape_name(name)
        return
    escaped = escape_name(name)
    assert unescape_name(escaped) == name
    assert escaped.isprintable() and not re.search(r"[/\\<>&'\"`$;|*?\[\]{}()!#~:\s]", escaped.replace(" ", ""))
    assert escaped[0] not in ".- " and escaped[-1] != " "


@pytest.mark.parametrize("name", NAMES)
def test_readers_that_compose_names_find_the_same_group(name: str) -> None:
    assert unicodedata.is_normalized("NFC", escape_name(name))


@given(st.lists(st.text(alphabet="a/%2F. é\u0301", min_size=1, max_size=6), unique=True, max_size=6))
@settings(max_examples=100, deadline=None)
def test_different_names_stay_different(names: list[str]) -> None:
    assert len({escape_name(name) for name in names}) == len(names)


def test_hostile_names_round_trip_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for i, name in enumerate(NAMES):
        store.save(path, surface(name, nx=i + 1))
    run = landscape.open(path)
    assert set(run.surfaces) == set(NAMES)
    for i, name in enumerate(NAMES):
        assert_same(run.surfaces[name], surface(name, nx=i + 1))
        assert_same(store.load(path, f"surfaces/{name}"), surface(name, nx=i + 1))
    assert all(text.isprintable() for row in store.describe(path) for text in (row.group, str(row.attributes["name"])))
    assert repr(run).isprintable() and repr(run.surfaces).isprintable()
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]
    store.save_partial(path, "a/b", {"x": [0.0, 1.0]}, {})
    assert store.load_partial(path, "a/b") is not None and store.load_partial(path, "a%2Fb") is None


def test_a_group_is_found_as_it_is_written_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    place = store.save(path, surface("a/b"))
    assert place == "surfaces/a%2Fb"
    assert_same(store.load(path, place), surface("a/b"))
    assert_same(store.load(path, "/surfaces/a/b"), surface("a/b"))


@pytest.mark.parametrize(("name", "words"), [("", "name is empty"), ("a\0b", "NUL"), ("a\udc80", "surrogate"), ("é" * 128, "at most 255")])
def test_names_that_are_no_names(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        store.save(tmp_path / "run.h5", surface(name))
    with pytest.raises(ValueError, match=words):
        store.save_partial(tmp_path / "run.h5", name, {"x": [0.0]}, {})
    with pytest.raises(TypeError, match="must be a string"):
        store.save(tmp_path / "run.h5", surface(3))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_names_of_files(tmp_path: Path, name: str) -> None:
    if len(name) > 200:
        with pytest.raises(ValueError, match="at most 200"):
            store.file_name(name)
        return
    path = tmp_path / f"{store.file_name(name)}.h5"
    store.save(path, surface())
    assert path.parent == tmp_path and store.groups(path) == ["surfaces/filter"]
