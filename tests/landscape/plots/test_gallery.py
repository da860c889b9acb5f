"""All pictures of some runs in one folder, whatever the runs are called."""

import struct
from pathlib import Path

import pytest
from conftest import Ripple

from landscape import plots
from landscape.plots import RunReport, gallery, report
from landscape.plots.gallery import draw_all


@pytest.mark.parametrize("name", ["../../x", "a/b", "<script>"])
def test_every_picture_lies_in_the_folder(name: str, flat: Ripple, tmp_path: Path) -> None:
    trace = flat.descend("sampa", 4)[1]
    run = RunReport(name, eigen=flat.eigen(), surfaces={name: flat.surface(5, None)}, gradients=trace)
    out = tmp_path / "deep" / "er"
    written = draw_all([run], out, formats=("png",))
    assert len(written) == 3 and {path.parent for path in written} == {out}
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)


def test_names_too_long_for_a_file_are_shortened_each_in_its_own_way(flat: Ripple, tmp_path: Path) -> None:
    names = ["日" * 60, "日" * 61, "W" * 195]
    run = RunReport("a" * 200, surfaces={name: flat.surface(5, None) for name in names}, file=tmp_path / "a.h5")
    written = draw_all([run], tmp_path, formats=("png",))
    assert len(set(written)) == 3 and all(path.is_file() for path in written)
    page = report([run], tmp_path / "r.html").read_text()
    assert all(f"Draw figures/{path.stem}.pdf" in page for path in written)


def test_a_name_may_be_a_line_in_one_run_and_a_plane_in_another(flat: Ripple, tmp_path: Path) -> None:
    runs = [RunReport("a", surfaces={"s": flat.surface(5, None)}), RunReport("b", surfaces={"s": flat.surface(5, 5)})]
    assert [p.name for p in draw_all(runs, tmp_path, formats=("png",))] == [
        "lines-s.png",
        "contours-s.png",
        "surfaces-s.png",
        "surfaces-s.html",
    ]
    assert draw_all([], tmp_path) == []


def seeds_of(*methods: str) -> list[RunReport]:
    runs = []
    for i, method in enumerate(methods * 2):
        ripple = Ripple(1.0 + i)
        line, (history, _) = ripple.surface(5, None, shift=0.1 * i), ripple.descend(method, 4)
        runs.append(
            RunReport(f"{method}-{i}", history, ripple.eigen(), ripple.trace(), sharpness={1: ripple.sharpness(1)}, surfaces={"s": line})
        )
    return runs


def test_runs_of_one_method_are_its_seeds_where_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, plots.style.PaperFigure] = {}
    monkeypatch.setattr(gallery, "save", lambda figure, stem, kinds: drawn.update({stem.name: figure}) or [stem])
    draw_all(seeds_of("sgd", "sam"), tmp_path, html=False, seeds=True, theme="dark", width=plots.WIDE)
    assert set(drawn) == {
        *("lines-s", "eigenvalues", "sharpness", "training", "speed", "seeds"),
        *("generalization-sharpness", "generalization-eigenvalue", "generalization-trace"),
    }
    assert {figure.get_figwidth() for figure in drawn.values()} == {plots.WIDE} and {f.theme for f in drawn.values()} == {"dark"}
    for name, curves in (("lines-s", 2), ("speed", 3)):  # of speed, one is the accuracy that both reach
        assert len(drawn[name].axes[0].lines) == curves and drawn[name].legends[0].get_title().get_text() == "band: range over 2 seeds"
    assert "n = 4" in drawn["generalization-trace"].axes[0].get_title()
    assert [len(line.get_ydata()) for line in drawn["seeds"].axes[0].lines] == [2, 2]
    drawn.clear()
    draw_all(seeds_of("sgd", "sam"), tmp_path, html=False, only=("lines", "speed"))
    assert set(drawn) == {"lines-s", "speed"} and len(drawn["speed"].axes[0].lines) == 5


def test_only_the_kinds_that_were_asked_for(flat: Ripple, tmp_path: Path) -> None:
    run = RunReport("a", eigen=flat.eigen(), surfaces={"s": flat.surface(5, None)})
    (path,) = draw_all([run], tmp_path, formats=("png",), only=("lines",), width=plots.COLUMN)
    assert struct.unpack(">I", path.read_bytes()[16:20])[0] == 3.25 * 300
    with pytest.raises(ValueError, match="only must name kinds among contours, .* got 'pie'"):
        draw_all([run], tmp_path, only=("pie",))
    with pytest.raises(ValueError, match="inches"):
        draw_all([run], tmp_path, width=0.0)
