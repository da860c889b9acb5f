"""The page that compares runs, read back with an HTML parser."""

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import Ripple

from landscape.plots import RunReport, report
from landscape.plots.tables import methods_table, origins_table

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&$x^2$ {{7*7}} \ud800"
VOID = {"meta", "link", "img", "source", "input", "br"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def run(ripple: Ripple, name: str) -> RunReport:
    history, trace = ripple.descend(name, 12)
    surfaces = {"line": ripple.surface(11, None, "line"), "plane": ripple.surface(9, 9)}
    sharpness = {m: ripple.sharpness(m) for m in (1, 128)}
    return RunReport(
        name,
        history,
        ripple.eigen(),
        ripple.trace(),
        ripple.density(),
        sharpness,
        surfaces,
        trace,
        f"landscape train --name '{name}'",
        {"rho": 0.2, name: name},
    )


@pytest.fixture(scope="module")
def runs() -> list[RunReport]:
    return [run(Ripple(2.0), "sgd"), run(Ripple(0.5), HOSTILE)]


@pytest.fixture(scope="module")
def page(runs: list[RunReport], tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = report(runs, tmp_path_factory.mktemp("report") / "new" / "report.html", title=HOSTILE, command="landscape report a.h5")
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_comes_from_outside(page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value[:80])
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy


def test_hostile_text_stays_text(page: Page) -> None:
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [t for t, _ in page.tags].count("script") == 4  # the data, plotly and our two
    data = page.scripts[0]
    assert not set("<>&'") & set(data)
    assert set(json.loads(data)["figures"]) == {a["data-key"] for _, a in page.tags if "data-key" in a} != set()
    shown = HOSTILE.replace("\ud800", "?")
    assert any(shown in text for text in page.text)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert "49" not in " ".join(t for t in page.text if "7*7" in t)


def test_surfaces_to_turn_around_carry_the_losses(page: Page, runs: list[RunReport]) -> None:
    import base64

    key = next(a["data-key"] for _, a in page.tags if "data-instead" in a)
    for figure, of in zip(json.loads(page.scripts[0])["figures"][key], runs, strict=True):
        z = figure["data"][0]["z"]
        values = np.frombuffer(base64.b64decode(z["bdata"]), z["dtype"]) if isinstance(z, dict) else np.array(z, float).ravel()
        np.testing.assert_array_equal(values, of.surfaces["plane"].loss.ravel())


def test_page_is_well_formed_and_can_be_reached_by_keyboard(page: Page) -> None:
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for t, a in page.tags if t == "a"]
    assert links and all(link is not None and link[1:] in ids for link in links)
    scrolled = [a for t, a in page.tags if a.get("class") == "scroll"]
    assert scrolled and all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolled)
    assert dict(page.tags[0][1])["lang"] == "en"


def test_same_runs_give_the_same_bytes(runs: list[RunReport], tmp_path: Path) -> None:
    some = [
        dataclasses.replace(runs[0], gradients=None, density=None, training=None, sharpness={}, surfaces={"p": runs[0].surfaces["plane"]})
    ]
    first, second = (report(some, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_table_holds_the_numbers_with_their_errors(runs: list[RunReport]) -> None:
    table = methods_table(runs)
    row = dict(zip(table.heads, table.rows[0], strict=True))
    eigen, trace, history = runs[0].eigen, runs[0].trace, runs[0].training
    assert eigen is not None and trace is not None and history is not None
    value, error = map(float, row["λ_max ± residual"].split(" ± "))
    assert value == pytest.approx(eigen.values[0], rel=1e-2) and error == pytest.approx(eigen.residuals[0], rel=0.06)
    assert float(row["trace ± s.e."].split(" ± ")[0]) == pytest.approx(trace.value, rel=1e-2)
    assert row["test acc."] == f"{100 * history.test_accuracy[-1]:.2f} %"
    assert row["gradients"] == "600"
    given = dataclasses.replace(runs[0], attributes={"test_accuracy": 0.5}, eigen=dataclasses.replace(eigen, converged=False))
    again = methods_table([given])
    assert "50.00 %" in again.rows[0] and any(cell.endswith("*") for cell in again.rows[0]) and "tolerance" in again.notes[0]


def test_page_draws_speed_gaps_and_further_measures_where_runs_hold_them(runs: list[RunReport], tmp_path: Path) -> None:
    some = [
        dataclasses.replace(
            RunReport(f"m{i}", r.training, trace=r.trace),
            measures={"gap": dataclasses.replace(r.sharpness[1], measure="sam_gap")} if i < 2 else {},
        )
        for i, r in enumerate([*runs, runs[0]])
    ]
    ids = [a.get("id") for _, a in Page(report(some, tmp_path / "a.html").read_text()).tags]
    assert {"speed", "measures", "generalization"} < set(ids)
    least = min(run.training.test_accuracy.max() for run in runs if run.training is not None)
    assert f"the legend says when {int(100 * least) / 100:g}, dotted, is reached" in (tmp_path / "a.html").read_text()
    ids = [a.get("id") for _, a in Page(report(some[1:], tmp_path / "b.html").read_text()).tags]
    assert "speed" in ids and not {"measures", "generalization"} & set(ids)  # one run to compare, and two points


def test_runs_on_different_data_are_pointed_out(runs: list[RunReport]) -> None:
    assert not any("same data" in note for note in origins_table(runs).notes)
    eigen = runs[1].eigen
    assert eigen is not None
    other = dataclasses.replace(eigen, provenance=dataclasses.replace(eigen.provenance, data_sha256="ef" * 32))
    assert any("same data" in note for note in origins_table([runs[0], dataclasses.replace(runs[1], eigen=other)]).notes)


def test_a_run_of_which_nothing_is_known_is_reported(tmp_path: Path) -> None:
    page = Page(report({"a": RunReport("a"), "b": RunReport("b")}, tmp_path / "r.html").read_text())
    assert page.open == [] and "img" not in [t for t, _ in page.tags]
    assert (tmp_path / "r.html").stat().st_size < 50_000  # no plotly where there is nothing to turn


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        report([], tmp_path / "r.html")
    with pytest.raises(ValueError, match="different names"):
        report([RunReport("a"), RunReport("a")], tmp_path / "r.html")
    with pytest.raises(TypeError, match="RunReport"):
        report(["a"], tmp_path / "r.html")  # type: ignore[list-item]
    assert not list(tmp_path.iterdir())
