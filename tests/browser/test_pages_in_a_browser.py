"""Pages of reports and figures in a real browser: what a reader sees, hears, types and prints."""

import base64
import dataclasses
import importlib.util
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landscape import plots
from landscape.plots import RunReport, report

_SPEC = importlib.util.spec_from_file_location("ripple", Path(__file__).parents[1] / "landscape/plots/conftest.py")
assert _SPEC is not None and _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
Ripple = _MODULE.Ripple

HOSTILE = '"><img src=x onerror=window.hacked=1><script>window.hacked=1</script>../../x %{x} \u202egnirts'
EPOCHS = (1, 2, 4)


def run(curvature: float, name: str, **more) -> RunReport:
    ripple = Ripple(curvature)
    plane = dataclasses.replace(ripple.surface(9, 9), name=HOSTILE)
    return RunReport(name, eigen=ripple.eigen(), surfaces={HOSTILE: plane}, command=f"landscape demo --name '{name}'", **more)


@pytest.fixture(scope="module")
def runs() -> list[RunReport]:
    epochs = {epoch: RunReport("sgd", surfaces={"plane": Ripple(8 / epoch).surface(9, 9)}) for epoch in EPOCHS}
    _, trace = Ripple().descend("sgd", 8)
    return [run(2.0, "sgd", epochs=epochs, gradients=trace, settings={HOSTILE: HOSTILE}), run(0.5, HOSTILE)]


@pytest.fixture(scope="module")
def address(runs: list[RunReport], browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = report(runs, tmp_path_factory.mktemp("report") / "report.html", title=HOSTILE, command=f"landscape report '{HOSTILE}'")
    return path.as_uri()


class Page:
    """A page in the browser."""

    def __init__(self, driver, address: str) -> None:
        self.driver = driver
        driver.get_log("performance"), driver.get_log("browser")
        driver.get(address)

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def wait(self, ready: Callable[[], object], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.05)

    def drawn(self, group: str) -> None:
        """Bring the figures of a group near the screen and wait until all are drawn."""
        self.js("document.querySelector(arguments[0]).scrollIntoView({block: 'start', behavior: 'instant'})", group)
        self.wait(lambda: self.js("return [...document.querySelectorAll(arguments[0] + ' .plot')].every(p => 'drawn' in p.dataset)", group))

    def pixels(self, selector: str) -> np.ndarray:
        png = self.find(selector).screenshot_as_png
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))

    def command(self, name: str, **arguments):
        return self.driver.execute_cdp_cmd(name, arguments)

    def requests(self) -> list[str]:
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def loaded(browser, address: str) -> Page:
    return Page(browser, address)


@pytest.fixture
def page(loaded: Page, address: str) -> Iterator[Page]:
    if loaded.driver.current_url != address:
        loaded.driver.get(address)
    yield loaded
    loaded.command("Emulation.clearDeviceMetricsOverride")
    loaded.command("Emulation.setEmulatedMedia", media="", features=[])


TURNED, MOVED = ".live[data-instead][data-key^=plane]", ".live[data-key^=epochs]"


def test_page_asks_nobody_and_obeys_no_text_of_a_file(page: Page) -> None:
    page.drawn(TURNED)
    page.drawn(MOVED)
    asked = page.requests()
    assert asked and all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked
    assert page.errors() == []
    assert page.js("return [typeof window.hacked, document.querySelectorAll('img:not([src^=\"data:\"])').length]") == ["undefined", 0]
    shown = page.js("return document.body.textContent")
    assert shown.count(HOSTILE) >= 6  # the title, the run, the plane, its settings and commands
    assert page.driver.title == HOSTILE


def test_surfaces_have_pixels_and_turn_together(page: Page) -> None:
    from selenium.webdriver import ActionChains, Keys

    eyes = (
        "return [...document.querySelectorAll(arguments[0] + ' .plot')].map(p => Object.values(p._fullLayout.scene._scene.getCamera().eye))"
    )
    page.drawn(TURNED)
    before = page.pixels(f"{TURNED} .plot")
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 100
    first = np.array(page.js(eyes, TURNED))
    assert len(first) == 2 and np.allclose(first[0], first[1])

    slider = page.find(f"{TURNED} [data-angle=azimuth]")
    slider.send_keys(Keys.PAGE_UP)
    page.wait(lambda: np.abs(np.array(page.js(eyes, TURNED)) - first).max(axis=1).min() > 0.1)
    keyed = np.array(page.js(eyes, TURNED))
    assert np.allclose(keyed[0], keyed[1])
    assert (page.pixels(f"{TURNED} .plot") != before).any()

    ActionChains(page.driver, duration=50).drag_and_drop_by_offset(page.find(f"{TURNED} .card:nth-child(2) .plot"), 60, 25).perform()
    page.wait(lambda: np.abs(np.array(page.js(eyes, TURNED)) - keyed).max(axis=1).min() > 0.05)
    page.wait(lambda: np.allclose(*np.array(page.js(eyes, TURNED)), atol=1e-3))


def test_slider_moves_along_the_training_by_keys(page: Page, runs: list[RunReport]) -> None:
    from selenium.webdriver import Keys

    top = "return Math.max(...[...document.querySelector(arguments[0] + ' .plot')._fullData[0].z].flatMap(row => [...row]))"
    expected = [float(runs[0].epochs[epoch].surfaces["plane"].loss.max()) for epoch in EPOCHS]
    page.drawn(MOVED)
    assert page.js(top, MOVED) == expected[-1]
    before = page.pixels(f"{MOVED} .plot")
    slider = page.find(f"{MOVED} [data-frame]")
    slider.send_keys(Keys.HOME)
    page.wait(lambda: page.js(top, MOVED) == expected[0])
    assert slider.get_attribute("aria-valuetext") == "epoch 1" and page.find(f"{MOVED} output").text == "1"
    assert (page.pixels(f"{MOVED} .plot") != before).mean() > 0.01
    slider.send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: page.js(top, MOVED) == expected[1])
    page.find(f"{MOVED} [data-play]").click()
    page.wait(lambda: page.js(top, MOVED) == expected[2])


@pytest.mark.slow
def test_tab_reaches_the_sliders_with_a_visible_focus(page: Page, address: str) -> None:
    from selenium.webdriver import Keys

    about = """var e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
        return [e.tagName, e.dataset.angle || ('frame' in e.dataset ? 'frame' : ''), s.outlineStyle, b.width * b.height > 0]"""
    page.driver.get(address)  # the first tab begins at the top
    reached = []
    for _ in range(60):
        page.find(":focus, body").send_keys(Keys.TAB)
        reached.append(page.js(about))
        if reached[-1][1] == "frame":
            break
    assert reached[0][0] == "A"  # skip to the results
    assert {"azimuth", "elevation", "frame"} <= {name for _, name, *_ in reached}
    assert all(outline != "none" and seen for tag, _, outline, seen in reached if tag != "BODY"), reached


def test_page_fits_a_phone(page: Page) -> None:
    page.command("Emulation.setDeviceMetricsOverride", width=375, height=800, deviceScaleFactor=2, mobile=True)
    page.drawn(TURNED)
    assert page.js("return document.documentElement.scrollWidth") == 375
    too_wide = """return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, .plot, pre, svg'))
        .filter(e => e.getBoundingClientRect().right > 375.5).map(e => e.outerHTML.slice(0, 80))"""
    assert page.js(too_wide) == []
    sizes = """return [...document.querySelectorAll('p, th, td, a, h1, h2, h3, label, code, figcaption, button')]
        .filter(e => e.offsetParent).map(e => parseFloat(getComputedStyle(e).fontSize))"""
    assert min(page.js(sizes)) >= 12
    assert page.js("return [...document.querySelectorAll('main img')].every(i => !i.offsetParent || i.currentSrc === "
                   "i.parentNode.querySelector('source').srcset)")  # fmt: skip


@pytest.mark.slow
def test_print_shows_every_figure_whole(page: Page) -> None:
    page.drawn(TURNED)
    pdf = base64.b64decode(page.command("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 3
    page.command("Emulation.setDeviceMetricsOverride", width=680, height=1009, deviceScaleFactor=1, mobile=False)  # A4 less 1.5 cm around
    page.command("Emulation.setEmulatedMedia", media="print")
    figures = page.js("""return [...document.querySelectorAll('figure')].map(f => {
        var b = f.getBoundingClientRect();
        return [b.width, b.height, f.querySelector('img').getBoundingClientRect().right, getComputedStyle(f).breakInside] })""")
    assert len(figures) == 5
    for width, height, right, inside in figures:
        assert 100 < width <= 680 and 100 < height < 1009 and right <= 681 and inside == "avoid"
    assert page.js("return [...document.querySelectorAll('.live, nav, button')].every(e => !e.getClientRects().length)")


def test_page_says_what_it_shows(page: Page) -> None:
    assert page.js("return [...document.images].every(i => i.alt.trim().length > 10)")
    levels = page.js("return [...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.js("return [...document.querySelectorAll('th')].every(t => t.scope === 'col' || t.scope === 'row')")
    assert page.js("return [document.documentElement.lang, document.querySelectorAll('main').length]") == ["en", 1]
    nameless = """return [...document.querySelectorAll('input, button, [role=img], [role=region], [role=group], nav')].filter(
        e => !(e.getAttribute('aria-label') || e.textContent || (e.labels && e.labels.length && e.labels[0].textContent)).trim()).length"""
    assert page.js(nameless) == 0


@pytest.mark.slow
def test_pointer_reads_the_values_off_the_contours(page: Page, runs: list[RunReport]) -> None:
    from selenium.webdriver import ActionChains

    page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    values = ".live[data-key$=values]"
    page.drawn(values)
    drag = page.find(f"{values} .plot .nsewdrag")
    right, up = drag.size["width"] // 4, drag.size["height"] // 4  # from the middle: two of the grid's eight steps
    ActionChains(page.driver, duration=0).move_to_element_with_offset(drag, right, -up).perform()
    page.wait(lambda: page.js("return document.querySelectorAll('.hovertext').length"))
    surface = runs[0].surfaces[HOSTILE]
    said = page.js("return [...document.querySelectorAll('.hovertext')].map(e => e.textContent).join(' ')")
    loss, error, accuracy = (values[6, 6] for values in (surface.loss, surface.stderr, surface.accuracy))
    assert "x 0.5" in said and f"loss {loss:.5g} ± {error:.2g}" in said and f"accuracy {100 * accuracy:.2f}%" in said


@pytest.mark.slow
def test_dark_screens_get_dark_figures(page: Page) -> None:
    page.drawn(TURNED)
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.wait(lambda: page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)")
    page.wait(lambda: page.pixels(f"{TURNED} .plot")[-2, 2].max() < 60)
    assert page.pixels("figure img").min(axis=2).mean() < 80  # axes and text are light, on a page that is dark


@pytest.mark.slow
def test_command_can_be_copied(page: Page) -> None:
    button = page.find("#again .command button")
    page.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
    button.click()
    page.wait(lambda: button.text in ("Copied", "Selected"))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["inline", "directory"])
def test_a_figure_alone_turns_its_scenes_together(browser, library: str, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    planes = {"<b>a": Ripple(2.0).surface(9, 9), "b": Ripple(0.5).surface(9, 9)}
    (path,) = plots.save(plots.surfaces3d(planes, backend="plotly", theme="dark"), tmp_path / HOSTILE.replace("/", ""), plotlyjs=library)
    page = Page(browser, path.as_uri())
    page.drawn(".live")
    eyes = (
        "var l = document.querySelector('.plot')._fullLayout; return [l.scene, l.scene2].map(s => Object.values(s._scene.getCamera().eye))"
    )
    first = np.array(page.js(eyes))
    page.find("[data-angle=elevation]").send_keys(Keys.END)
    page.wait(lambda: np.allclose(*np.array(page.js(eyes))) and np.abs(np.array(page.js(eyes)) - first).max() > 0.3)
    assert page.errors() == [] and all(url.startswith(("file:", "data:", "blob:")) for url in page.requests())
    assert page.js("return document.documentElement.scrollWidth <= innerWidth && typeof window.hacked") == "undefined"
