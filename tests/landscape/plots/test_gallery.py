"""All pictures of some runs in one folder, whatever the runs are called."""

from pathlib import Path

import pytest
from conftest import Ripple

from landscape.plots import RunReport
from landscape.plots.gallery import draw_all


@pytest.mark.parametrize("name", ["../../x", "a/b", "<script>"])
def test_every_picture_lies_in_the_folder(name: str, flat: Ripple, tmp_path: Path) -> None:
    trace = flat.descend("sampa", 4)[1]
    run = RunReport(name, eigen=flat.eigen(), surfaces={name: flat.surface(5, None)}, gradients=trace)
    out = tmp_path / "deep" / "er"
    written = draw_all([run], out, formats=("png",))
    assert len(written) == 3 and {path.parent for path in written} == {out}
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)


def test_a_name_may_be_a_line_in_one_run_and_a_plane_in_another(flat: Ripple, tmp_path: Path) -> None:
    runs = [RunReport("a", surfaces={"s": flat.surface(5, None)}), RunReport("b", surfaces={"s": flat.surface(5, 5)})]
    assert [p.name for p in draw_all(runs, tmp_path, formats=("png",))] == [
        "lines-s.png",
        "contours-s.png",
        "surfaces-s.png",
        "surfaces-s.html",
    ]
    assert draw_all([], tmp_path) == []
