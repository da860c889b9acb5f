"""Figures from real results: what they show, that they fit, and that odd input is drawn or refused with advice."""

import dataclasses
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from conftest import Ripple
from legibility import flaws
from matplotlib.figure import Figure

from landscape import plots
from landscape.plots.style import MISSING, PaperFigure
from landscape.results.types import Surface

NAMES = ("sgd", "sam", "msam", "sampa-0.2")
HOSTILE = [
    "<script>alert(1)</script>",
    r"$\frac{",
    "_hidden",
    "",
    "a" * 300,
    "日本語 🎉",
    "tab\tnew\nline",
    "%{x}",
    "\x00\ud800",
    r"\alpha^{2}",
]


def every_figure(sharp: Ripple, flat: Ripple, names: tuple[str, ...] | list[str] = NAMES, **options: Any) -> dict[str, Callable[[], Any]]:
    """Return a call for each kind of figure, so that a test can make the ones it needs."""
    runs = {name: (sharp, flat)[i % 2] for i, name in enumerate(names)}
    (history, trace), planes = flat.descend("sampa", 20), {n: r.surface(13, 11) for n, r in runs.items()}
    sharpness = {n: {m: r.sharpness(m) for m in (1, 16, 256)} for n, r in runs.items()}
    gaps = {n: [(0.02 * i + 0.03 * seed, 0.02) for seed in range(3)] for i, n in enumerate(runs)}
    return {
        "contour": lambda: plots.contour(next(iter(planes.values())), title=names[0], **options),
        "contours": lambda: plots.contours(planes, **options),
        "surface3d": lambda: plots.surface3d(next(iter(planes.values())), title=names[0], **options),
        "surfaces3d": lambda: plots.surfaces3d(planes, **options),
        "lines": lambda: plots.lines({n: [r.surface(15, None, shift=s) for s in (0, 0.1)] for n, r in runs.items()}, **options),
        "spectrum": lambda: plots.spectrum(flat.density(), title=names[0], **options),
        "spectra": lambda: plots.spectra({n: r.density() for n, r in runs.items()}, **options),
        "eigenvalues": lambda: plots.eigenvalues({n: r.eigen() for n, r in runs.items()}, **options),
        "sharpness": lambda: plots.sharpness(sharpness, **options),
        "training": lambda: plots.training(dict.fromkeys(runs, history), **options),
        "traces": lambda: plots.traces(trace, title=names[0], **options),
        "curvature": lambda: plots.curvature({n: r.curvature_trace() for n, r in runs.items()}, **options),
        "speed": lambda: plots.speed(dict.fromkeys(runs, [history, history]), target=0.5, **options),
        "generalization": lambda: plots.generalization({n: [of[m] for m in of] for n, of in sharpness.items()}, gaps, **options),
        "over_seeds": lambda: plots.over_seeds(dict.fromkeys(("largest eigenvalue", "trace"), dict.fromkeys(runs, [1, 2.5])), **options),
        "descent": lambda: plots.descent({"η = 0.1": dict.fromkeys(runs, [trace]), names[0]: dict.fromkeys(runs, [trace])}, **options),
    }


WORDS = {
    "contour": ("direction 1 (filter-normalised)", "direction 2", "loss (log scale)"),
    "contours": ("direction 1", "direction 2", "loss (log scale)", "sgd"),
    "surface3d": ("x: direction 1", "y: direction 2", "loss (log scale)"),
    "surfaces3d": ("x: direction 1", "loss (log scale)", "sampa-0.2"),
    "lines": ("direction 1", "loss (log scale)", "accuracy", "range over 2 seeds"),
    "spectrum": ("eigenvalue", "density", "log scale"),
    "spectra": ("eigenvalue", "density", "sgd"),
    "eigenvalues": ("rank", "eigenvalue ± residual"),
    "sharpness": ("examples per shard", "ρ = 0.05", "standard error"),
    "training": ("epoch", "loss (log scale)", "accuracy"),
    "traces": ("training step", "cosine", "layer", "norm"),
    "curvature": ("epoch", "largest eigenvalues ± residual", "trace ± standard error"),
    "speed": ("training time (s)", "test accuracy", "0.5 in ", "range over 2 seeds"),
    "generalization": ("sharpness", "test loss − training loss", "τ = ", "n = 12", "standard error"),
    "over_seeds": ("largest eigenvalue", "trace", "sgd"),
    "descent": ("iteration t", "‖∇f(x)‖²", "sgd"),
}
KINDS = tuple(WORDS)
TWICE_AS_WIDE = ("contours", "surfaces3d", "traces", "over_seeds")  # other panels side by side at the full width


def texts(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]


@pytest.mark.parametrize(("kind", "width"), [(k, plots.COLUMN) for k in KINDS] + [(k, plots.FULL) for k in TWICE_AS_WIDE])
def test_every_text_is_on_the_page_alone_and_axes_are_named(kind: str, width: float, sharp: Ripple, flat: Ripple) -> None:
    figure = every_figure(sharp, flat, width=width)[kind]()
    assert not flaws(figure)
    assert figure.get_size_inches()[0] == width
    shown = " ".join(texts(figure))
    for word in WORDS[kind]:
        assert word in shown, (word, shown)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("contour", "surface3d", "spectrum", "traces")])
def test_seven_methods_of_any_name_keep_apart(kind: str, sharp: Ripple, flat: Ripple) -> None:
    assert not flaws(every_figure(sharp, flat, HOSTILE[1:8], width=plots.COLUMN)[kind]())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [plots.COLUMN, plots.WIDE, plots.FULL])
@pytest.mark.parametrize(
    "names", [HOSTILE[:1], HOSTILE[4:6], HOSTILE[6:10], HOSTILE[:7], ["W" * 90, "W" * 28, "W" * 7], [f"m{i}" for i in range(7)]]
)
def test_texts_keep_apart_at_every_width_and_number_of_methods(
    kind: str, width: float, names: list[str], sharp: Ripple, flat: Ripple
) -> None:
    assert not flaws(every_figure(sharp, flat, names, width=width)[kind]())


def test_the_boxes_find_what_is_illegible() -> None:
    figure = PaperFigure(figsize=(2, 1), layout=None)
    left, right = figure.add_axes((0.1, 0.2, 0.4, 0.6)), figure.add_axes((0.6, 0.2, 0.35, 0.6))
    figure.text(0.5, 0.5, "on both panels", ha="center")
    left.set_title("much too long a title for this panel")
    right.set_title("another title for that panel")
    found = " ".join(flaws(figure))
    assert "is off the page" in found and "'on both panels' on a panel" in found and "on 'another title for that panel'" in found


def test_panels_share_one_scale(sharp: Ripple, flat: Ripple) -> None:
    surfaces = {"sgd": sharp.surface(), "sam": flat.surface()}
    both = np.concatenate([s.loss.ravel() for s in surfaces.values()])
    figure = plots.contours(surfaces)
    limits = {c.get_clim() for ax in figure.axes[:2] for c in ax.collections if c.get_array() is not None and c.filled}
    assert limits == {(both.min(), both.max())}
    heights = {ax.get_zlim() for ax in plots.surfaces3d(surfaces).axes[:2]}
    assert heights == {(np.log10(both.min()), np.log10(both.max()))}
    interactive = plots.surfaces3d(surfaces, backend="plotly")
    assert len({(t.cmin, t.cmax) for t in interactive.data}) == 1
    assert len({tuple(interactive.layout[s].zaxis.range) for s in ("scene", "scene2")}) == 1


def test_plotly_carries_the_losses_exactly(sharp: Ripple) -> None:
    surface = sharp.surface(9, 7)
    loss = surface.loss.copy()
    loss[2, 3], loss[0, 0] = np.nan, 1e12
    surface = dataclasses.replace(surface, loss=loss)
    turned = plots.surface3d(surface, backend="plotly").data[0]
    np.testing.assert_array_equal(turned.z, loss)
    np.testing.assert_array_equal(turned.x, surface.x)
    np.testing.assert_array_equal(turned.y, surface.y)
    flat = plots.contour(surface, backend="plotly").data[0]
    np.testing.assert_array_equal(np.asarray(flat.customdata)[..., 0], loss)
    line = sharp.surface(21, None)
    np.testing.assert_array_equal(plots.lines({"a": line}, backend="plotly", accuracy=False).data[-1].y, line.loss)


def test_lowest_point_and_centre_are_marked_where_they_are(flat: Ripple) -> None:
    surface = flat.surface(21, 21, shift=0.05)
    row, column = np.unravel_index(surface.loss.argmin(), surface.loss.shape)
    marks = {line.get_marker(): line.get_xydata()[0].tolist() for line in plots.contour(surface).axes[0].lines}
    assert marks["*"] == [surface.x[column], surface.y[row]] and marks["o"] == [0, 0]
    away = dataclasses.replace(surface, x=surface.x + 5)
    assert "o" not in {line.get_marker() for line in plots.contour(away).axes[0].lines}


def test_residuals_and_standard_errors_are_the_error_bars(sharp: Ripple) -> None:
    eigen, by_m = sharp.eigen(), {m: sharp.sharpness(m) for m in (1, 16, 256)}
    bars = plots.eigenvalues({"sgd": eigen}).axes[0].containers
    segments = next(c for c in bars if hasattr(c, "has_yerr")).lines[2][0].get_segments()
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in segments], 2 * eigen.residuals)
    error = plots.sharpness({"sgd": by_m}).axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([s[1, 1] - s[0, 1] for s in error], [2 * by_m[1].stderr, 2 * by_m[16].stderr, 0], atol=1e-12)
    unsure = dataclasses.replace(eigen, converged=False)
    assert any("not converged" in t for t in texts(plots.eigenvalues({"sgd": unsure})))


def test_band_over_seeds_is_their_range(flat: Ripple) -> None:
    seeds = [flat.surface(15, None, shift=s) for s in (0.0, 0.1, 0.2)]
    ax = plots.lines({"sam": seeds}).axes[0]
    values = np.array([s.loss for s in seeds])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), values.mean(0))
    band = ax.collections[0].get_paths()[0].vertices
    for x, low, high in zip(seeds[0].x, values.min(0), values.max(0), strict=True):
        assert {low, high} <= set(band[band[:, 0] == x, 1])


def odd_surfaces(usual: Surface) -> dict[str, Surface]:
    loss, x, y = usual.loss, usual.x, usual.y
    spike, hole = loss.copy(), loss.copy()
    spike[0, 0], hole[2, 2] = 1e30, np.inf
    one = np.zeros(1)
    changed = {
        "nan": (loss * np.nan, x, y),
        "hole": (hole, x, y),
        "negative": (loss - 1, x, y),
        "zero at the minimum": (loss - loss.min(), x, y),
        "constant": (loss * 0 + 2, x, y),
        "all zero": (loss * 0, x, y),
        "spike": (spike, x, y),
        "one row": (loss[:1], x, one),
        "one column": (loss[:, :1], one, y),
        "one point": (loss[:1, :1], one, one),
        "tiny": (loss * 1e-300, x, y),
        "huge": (loss * 1e290, x, y),
        "descending axis": (loss, x[::-1].copy(), y),
        "away from the centre": (loss, x * 1e-7 + 3, y),
    }
    nothing = {k: (np.full(v[0].shape, np.nan)) for k, v in changed.items()}
    return {
        k: dataclasses.replace(
            usual, loss=v[0], x=v[1], y=v[2], accuracy=nothing[k], stderr=nothing[k], status=np.ones(v[0].shape, np.uint8)
        )
        for k, v in changed.items()
    }


@pytest.mark.parametrize("odd", odd_surfaces(Ripple().surface(9, 7)))
def test_odd_surfaces_are_drawn(odd: str) -> None:
    usual = Ripple().surface(9, 7)
    surface = odd_surfaces(usual)[odd]
    plots.contours({"odd": surface, "usual": usual}).draw_without_rendering()
    plots.surfaces3d({"odd": surface}).draw_without_rendering()
    for draw in (plots.contour, plots.surface3d):
        draw(surface, backend="plotly").to_json()
    if odd == "nan":
        assert "no finite loss" in texts(plots.contours({"odd": surface}))
    if odd == "negative":
        assert any("negative" in t for t in texts(plots.contours({"odd": surface})))
    if odd == "spike":
        assert any("clipped" in t for t in texts(plots.contours({"odd": surface})))


def test_one_spike_leaves_the_colours_and_contours_to_the_others(sharp: Ripple) -> None:
    usual = sharp.surface(31, 31)
    spiked = odd_surfaces(usual)["spike"]
    one, other = (plots.contour(s).axes[0] for s in (usual, spiked))
    filled = [next(c for c in ax.collections if c.get_array() is not None and c.filled) for ax in (one, other)]
    assert filled[1].get_clim()[1] <= filled[0].get_clim()[1]
    heights = [plots.surface3d(s).axes[0].get_zlim() for s in (usual, spiked)]
    assert heights[1][1] - heights[1][0] == pytest.approx(heights[0][1] - heights[0][0], rel=0.1)


def pixels(figure: PaperFigure, x: float, y: float) -> np.ndarray:
    """Return the colour that is drawn at a place in data coordinates of the first axes."""
    figure.canvas.draw()
    column, row = figure.axes[0].transData.transform((x, y))
    around = np.ix_(int(figure.bbox.height - row) + np.arange(-4, 5), int(column) + np.arange(-4, 5), range(3))
    return np.median(np.asarray(figure.canvas.buffer_rgba())[around], axis=(0, 1)) / 255  # whatever thin line passes there


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_places_without_a_finite_loss_have_the_colour_that_says_so(theme: str, flat: Ripple) -> None:
    surface = flat.surface(9, 7)
    loss = surface.loss.copy()
    loss[1:4, 5:8] = np.nan
    figure = plots.contour(dataclasses.replace(surface, loss=loss), theme=theme)
    grey = matplotlib.colors.to_rgb(MISSING[theme])
    np.testing.assert_allclose(pixels(figure, surface.x[6], surface.y[2]), grey, atol=0.01)
    assert np.abs(pixels(figure, -surface.x[6], surface.y[2]) - grey).max() > 0.1
    assert "no finite loss" in [entry.get_text() for entry in figure.legends[0].get_texts()]


def test_grids_that_are_no_squares_stand_the_right_way_up(flat: Ripple) -> None:
    x, y = np.linspace(-2, 2, 11), np.linspace(-1, 1, 4)
    loss = 10.0 ** (2 * x[None, :] / 2 + y[:, None])  # grows faster to the right than upwards
    blank = np.full(loss.shape, np.nan)
    surface = dataclasses.replace(
        flat.surface(4, 4), x=x, y=y, loss=loss, accuracy=blank, stderr=blank, status=np.ones(loss.shape, np.uint8)
    )
    figure = plots.contour(surface)
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(2, rel=0.01)
    viridis = matplotlib.colormaps["viridis"]
    for right, up in ((-1.5, -0.6), (1.5, -0.6), (-1.5, 0.6), (1.5, 0.6)):
        np.testing.assert_allclose(pixels(figure, right, up), viridis((right + up + 3) / 6)[:3], atol=0.06)
    turned = plots.surface3d(surface).axes[0]
    assert (turned.get_xlim(), turned.get_ylim()) == ((-2, 2), (-1, 1))


def test_a_few_low_cosines_do_not_take_the_colours_from_the_others(flat: Ripple) -> None:
    _, trace = flat.descend("sampa", 200)
    low = np.linspace(0.9, 1.0, trace.layer_cosine.size).reshape(trace.layer_cosine.shape)
    low[0] = -0.8
    trace = dataclasses.replace(trace, layer_cosine=low)
    mesh = plots.traces(trace).axes[2].collections[0]
    assert mesh.get_clim()[0] > 0.89 and mesh.colorbar.extend == "min"
    assert [t.zmin for t in plots.traces(trace, backend="plotly").data if t.type == "heatmap"] == [mesh.get_clim()[0], None]


def test_empty_records_are_drawn_and_say_so(flat: Ripple) -> None:
    history, trace = flat.descend("sampa", 3)
    nothing = {
        f.name: getattr(history, f.name)[:0] for f in dataclasses.fields(history) if isinstance(getattr(history, f.name), np.ndarray)
    }
    assert "no epochs" in texts(plots.training({"sgd": dataclasses.replace(history, **nothing)}))
    nothing = {f.name: getattr(trace, f.name)[:0] for f in dataclasses.fields(trace) if isinstance(getattr(trace, f.name), np.ndarray)}
    assert "no steps recorded" in texts(plots.traces(dataclasses.replace(trace, **nothing)))
    plots.traces(dataclasses.replace(trace, **nothing), backend="plotly").to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_any_name_is_text_in_plotly_too(kind: str, sharp: Ripple, flat: Ripple) -> None:
    interactive = every_figure(sharp, flat, HOSTILE[:3] + HOSTILE[5:], backend="plotly")[kind]().to_json()
    assert "<script" not in interactive and "\\u003cscript" not in interactive.lower()


@pytest.mark.parametrize("count", [1, 5, 9])
def test_any_number_of_methods_fits(count: int, flat: Ripple) -> None:
    names = [f"method number {i}" for i in range(count)]
    figure = plots.contours(dict.fromkeys(names, flat.surface(5, 5)), width=plots.FULL)
    assert sum(bool(ax.get_title()) for ax in figure.axes) == count
    plots.eigenvalues(dict.fromkeys(names, flat.eigen())).draw_without_rendering()


def test_a_method_keeps_its_colour_whoever_is_beside_it() -> None:
    all_of_them = plots.method_looks(["sgd", "SAM", "mSAM", "SAMPa-0.2", "my own"])
    assert len({look.color for look in all_of_them.values()}) == 5
    for name in ("sgd", "SAM", "mSAM", "SAMPa-0.2"):
        assert plots.method_looks([name])[name] == plots.method_looks(["zzz", name, "aaa"])[name] == all_of_them[name]
    assert plots.method_looks(["b", "a", "c"]) == plots.method_looks(["c", "b", "a"])
    looks = plots.method_looks(f"m{i}" for i in range(16))
    assert len(set(looks.values())) == 16


@pytest.mark.parametrize("kind", ["contours", "surface3d", "lines", "traces"])
def test_same_data_gives_the_same_bytes_whatever_the_users_settings(kind: str, sharp: Ripple, flat: Ripple, tmp_path: Path) -> None:
    formats = ("pdf", "svg") if kind != "lines" else ("pdf", "png", "svg")
    first = plots.save(every_figure(sharp, flat)[kind](), tmp_path / "a", formats, dpi=60)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.facecolor": "red", "savefig.bbox": "tight"}):
        second = plots.save(every_figure(sharp, flat)[kind](), tmp_path / "b", formats, dpi=60)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix


_IN_ANOTHER_PROCESS = """
import sys; sys.path.insert(0, sys.argv[1])
from conftest import Ripple; from landscape import plots; from test_figures import every_figure
figures = every_figure(Ripple(2.0), Ripple(0.5), NAMES)
for kind in sys.argv[3:]: plots.save(figures[kind](), f"{sys.argv[2]}/{kind}", ("pdf", "svg", "png"), dpi=60)
"""


def in_another_process(folder: Path, kinds: tuple[str, ...]) -> None:
    """Draw the figures where sets and dictionaries of text have another order than here."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    code = _IN_ANOTHER_PROCESS.replace("NAMES", repr(HOSTILE[:4]))
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(folder), *kinds]
    subprocess.run(command, check=True, timeout=300, env=os.environ | {"PYTHONHASHSEED": seed})


def check_same_bytes(folder: Path, kinds: tuple[str, ...], sharp: Ripple, flat: Ripple) -> None:
    in_another_process(folder, kinds)
    figures = every_figure(sharp, flat, HOSTILE[:4])
    for kind in kinds:
        for path in plots.save(figures[kind](), folder / f"here-{kind}", ("pdf", "svg", "png"), dpi=60):
            assert path.read_bytes() == path.with_name(path.name.removeprefix("here-")).read_bytes(), path.name


def test_same_bytes_in_another_process_with_other_hashes(sharp: Ripple, flat: Ripple, tmp_path: Path) -> None:
    check_same_bytes(tmp_path, ("contour", "generalization"), sharp, flat)


@pytest.mark.slow
def test_every_figure_has_the_same_bytes_in_another_process(sharp: Ripple, flat: Ripple, tmp_path: Path) -> None:
    check_same_bytes(tmp_path, KINDS, sharp, flat)


def test_text_in_pdf_stays_text(flat: Ripple, tmp_path: Path) -> None:
    (path,) = plots.save(plots.contour(flat.surface(9, 9)), tmp_path / "figure", "pdf")
    content = path.read_bytes()
    assert b"/FontFile2" in content and b"/Type3" not in content  # TrueType, as publishers ask for
    assert b"CreationDate" not in content


def test_drawing_leaves_matplotlib_as_it_was(sharp: Ripple, flat: Ripple) -> None:
    before = dict(matplotlib.rcParams)
    figures = [make() for make in every_figure(sharp, flat).values()]
    assert dict(matplotlib.rcParams) == before
    assert all(isinstance(figure, PaperFigure) for figure in figures)
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()
    assert figures[0]._repr_png_().startswith(b"\x89PNG")


def test_threads_draw_the_same_bytes(flat: Ripple) -> None:
    surface, made = flat.surface(7, 7), []

    def draw(theme: str) -> None:
        buffer = io.BytesIO()
        plots.contour(surface, theme=theme).savefig(buffer, format="png", dpi=50)
        made.append((theme, buffer.getvalue()))

    threads = [threading.Thread(target=draw, args=(theme,)) for theme in ("light", "dark") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6 and len(set(made)) == 2


def test_saving_keeps_dots_in_names_and_writes_all_or_nothing(flat: Ripple, tmp_path: Path) -> None:
    figure = plots.contour(flat.surface(5, 5))
    paths = plots.save(figure, tmp_path / "new" / "rho-0.05", dpi=50)
    assert [p.name for p in paths] == ["rho-0.05.pdf", "rho-0.05.png"]
    with pytest.raises(ValueError, match="png"):
        plots.save(figure, tmp_path / "other", ("pdf", "docx"))
    figure.savefig = lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, tmp_path / "half")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "rho-0.05.pdf", "rho-0.05.png"]


def test_interactive_pages_need_no_network(sharp: Ripple, flat: Ripple, tmp_path: Path) -> None:
    figure = plots.surfaces3d({"<b>x": sharp.surface(5, 5), "b": flat.surface(5, 5)}, backend="plotly")
    (whole,) = plots.save(figure, tmp_path / "whole")
    text = whole.read_text()
    assert text.count("<script") >= 2 and 'src="http' not in text and "<b>x" not in text and "scene2" in text
    (linked,) = plots.save(figure, tmp_path / "linked", plotlyjs="directory")
    assert linked.stat().st_size < 200_000 and (tmp_path / "plotly.min.js").stat().st_size > 1_000_000
    assert 'src="plotly.min.js"' in linked.read_text()
    again = plots.save(figure, tmp_path / "again", plotlyjs="directory")[0].read_text()
    assert again.replace("again", "linked") == linked.read_text()
    with pytest.raises(ValueError, match="backend=.matplotlib"):
        plots.save(figure, tmp_path / "x", ("pdf",))


def test_wrong_input_is_refused_with_advice(flat: Ripple) -> None:
    plane, line = flat.surface(5, 5), flat.surface(5, None)
    for call, error, match in [
        (lambda: plots.contour(line), ValueError, "landscape.plots.lines"),
        (lambda: plots.lines({"a": plane}), ValueError, "landscape.plots.contour"),
        (lambda: plots.lines({"a": [line, flat.surface(7, None)]}), ValueError, "same x"),
        (lambda: plots.lines({"a": []}), ValueError, "one Surface for each seed"),
        (lambda: plots.contour(np.eye(3)), TypeError, "Surface, got ndarray"),
        (lambda: plots.contours([plane]), TypeError, "dictionary"),
        (lambda: plots.contours({}), ValueError, "at least one"),
        (lambda: plots.contours({"a": plane, "b": 3}), TypeError, r"surfaces\['b'\]"),
        (lambda: plots.contour(plane, backend="bokeh"), ValueError, "plotly"),
        (lambda: plots.contour(plane, width=float("nan")), ValueError, "6.75"),
        (lambda: plots.contour(plane, theme="pink"), ValueError, "light"),
        (lambda: plots.contour(plane, trajectory=np.zeros((3, 3))), ValueError, "steps, 2"),
        (lambda: plots.contour(dataclasses.replace(plane, x=plane.x[:-1])), ValueError, "shape"),
        (lambda: plots.eigenvalues({"a": flat.eigen()}, k=0), ValueError, "k must"),
        (lambda: plots.spectrum(flat.eigen()), TypeError, "SpectralDensity"),
        (lambda: plots.sharpness({"a": flat.sharpness(1)}), TypeError, "from m to Sharpness"),
        (lambda: plots.sharpness({"a": {}}), ValueError, "at least one"),
        (lambda: plots.traces(None), TypeError, "GradientTrace"),
        (lambda: plots.save("figure", "x"), TypeError, "figure"),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_known_outliers_are_marked_above_their_peaks(flat: Ripple) -> None:
    density = flat.density()
    places = density.nodes[0, -2:]
    density = dataclasses.replace(density, outliers=places)
    figure = plots.spectrum(density)
    found = [line for line in figure.axes[0].get_lines() if line.get_marker() == "v"]
    assert len(found) == 1 and np.array_equal(found[0].get_xdata(), places)
    assert (np.asarray(found[0].get_ydata()) > np.interp(places, density.grid, density.density)).all()
    assert "triangles: outliers" in figure.get_suptitle()
    interactive = plots.spectrum(density, backend="plotly")
    assert any(trace.marker.symbol == "triangle-down-open" and np.array_equal(trace.x, places) for trace in interactive.data)


def test_spectra_are_whole_down_to_the_bottom_of_their_axis(sharp: Ripple, flat: Ripple) -> None:
    wide = sharp.density()
    sigma = 10 * wide.sigma  # as few Ritz values of a large network have it
    grid = np.linspace(wide.nodes.min() - 9 * sigma, wide.nodes.max() + 9 * sigma, 2000)
    bumps = np.exp(-0.5 * ((grid[:, None] - wide.nodes[0]) / sigma) ** 2) / (sigma * (2 * np.pi) ** 0.5)
    weights = wide.weights[0] * np.where(
        np.arange(wide.nodes.shape[1]) < wide.nodes.shape[1] - 1, 1, 1e-7
    )  # a light one puts the bottom low
    wide = dataclasses.replace(wide, grid=grid, density=bumps @ weights, stderr=0 * grid, sigma=sigma)
    figure = plots.spectra({"sgd": wide, "sam": flat.density()}, eigen={"sgd": sharp.eigen()})
    ax = figure.axes[0]
    bottom = ax.get_ylim()[0]
    for density in (wide, flat.density()):
        assert (np.interp(ax.get_xlim(), density.grid, density.density) < bottom).all()
    assert figure.get_suptitle().startswith("ticks: eigenvalues or outermost Ritz values")
