"""The commands that draw result files: plot and report."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from landscape.cli.source import check_one_model
from landscape.plots import COLUMN, FULL, WIDE, RunReport
from landscape.plots import report as write_report
from landscape.plots.gallery import Kind, draw_all
from landscape.results import store
from landscape.results.schema import sharpness_name
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    Result,
    Sharpness,
    SpectralDensity,
    Subsampled,
    Surface,
    TraceEstimate,
    TrainingHistory,
)

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Plot:
    """Draw everything in one or more result files; several files are drawn side by side on shared scales."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Result files (.h5)."""
    out: Path = Path("figures")
    """Folder for the pictures."""
    formats: tuple[Literal["pdf", "png", "svg"], ...] = ("pdf", "png")
    """Formats to write."""
    html: bool = True
    """Also write surfaces to turn around in a browser."""
    only: tuple[Kind, ...] = ()
    """Kinds of figures to draw; all that the files hold by default."""
    width: Literal["column", "wide", "full"] | None = None
    """3.25, 5.5 or 6.75 inches; by default what suits each figure."""
    theme: Literal["light", "dark"] = "light"
    """Dark ink on light paper, or light ink on dark."""
    seeds: bool = False
    """Files of one method are its seeds: draw means with bands, and single runs of the first seed only."""

    def run(self) -> None:
        """Draw and say where."""
        width = None if self.width is None else {"column": COLUMN, "wide": WIDE, "full": FULL}[self.width]
        drawn = draw_all(
            run_reports(self.files),
            self.out,
            formats=self.formats,
            html=self.html,
            theme=self.theme,
            width=width,
            only=self.only,
            seeds=self.seeds,
        )
        for path in drawn:
            print(path)


@dataclass(frozen=True)
class Report:
    """Write one HTML page that compares result files; it needs no network."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Result files (.h5); files epoch_0001.h5, epoch_0002.h5, ... beside a run's own are moments of its training, and get a slider."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page."""

    def run(self) -> None:
        """Write the page and say where."""
        command = shlex.join(["landscape", "report", *map(str, self.files), "--out", str(self.out)])
        print(write_report(run_reports(self.files), self.out, command=command))


def run_reports(files: Sequence[Path]) -> list[RunReport]:
    """Read everything that result files hold; runs are named after their method, or their file where two have the same."""
    if not files:
        raise ValueError("give at least one result file, such as runs/sam/run.h5")
    moments = _moments(files)
    files = [path for path in files if path not in moments]
    read = {path: _read(path) for path in files}
    # One table compares sharpness at one rho and p: those that most files have.
    measured = {path: dict.fromkeys((r.measure, r.rho, r.p) for r in results if isinstance(r, Sharpness)) for path, results in read.items()}
    settings = Counter(key for keys in measured.values() for key in keys)
    # Of several m where there are; the other measures have a table of their own: `landscape sharpness --measures all`.
    settings = Counter({key: count for key, count in settings.items() if key[0].endswith("m_sharpness")}) or settings
    chosen = settings.most_common(1)[0][0] if settings else None
    if len(settings) > 1:
        print(f"landscape: sharpness was measured in {len(settings)} ways; shown is rho {chosen[1]:g}, p {chosen[2]:g}", file=sys.stderr)  # type: ignore[index]
    runs = [_run_report(path, results, chosen) for path, results in read.items()]
    names = [run.name for run in runs]
    runs = [replace(run, name=_name_of(path)) if names.count(run.name) > 1 else run for run, path in zip(runs, read, strict=True)]
    names = [run.name for run in runs]
    runs = [replace(run, name=str(path)) if names.count(run.name) > 1 else run for run, path in zip(runs, read, strict=True)]
    return [
        _with_moments(run, {epoch: at for at, (epoch, of) in moments.items() if of == path}) for run, path in zip(runs, read, strict=True)
    ]


def _moments(files: Sequence[Path]) -> dict[Path, tuple[int, Path]]:
    """Return which files hold an earlier epoch of a run: the epoch, and the one file of that run, which lies in the same folder."""
    epochs = {path: int(found[1]) for path in files if (found := re.fullmatch(r"epoch_?(\d+)", path.stem))}
    moments: dict[Path, tuple[int, Path]] = {}
    for folder in dict.fromkeys(path.resolve().parent for path in epochs):
        here = [path for path in dict.fromkeys(files) if path.resolve().parent == folder]
        runs = [path for path in here if path not in epochs]
        if not runs:  # then the last epoch is the run
            runs = [max((path for path in here), key=epochs.__getitem__)]
        if len(runs) == 1:
            moments |= {path: (epochs[path], runs[0]) for path in here if path in epochs and path != runs[0]}
    return moments


def _with_moments(run: RunReport, files: Mapping[int, Path]) -> RunReport:
    """Return the run with its earlier epochs, and itself as the last one."""
    if not files:
        return run
    assert run.file is not None
    epochs = {epoch: _run_report(path, _read(path), None) for epoch, path in files.items()}
    found = re.fullmatch(r"epoch_?(\d+)", run.file.stem)
    last = int(found[1]) if found else int(run.training.epoch[-1]) if run.training is not None and len(run.training.epoch) else None
    return replace(run, epochs=epochs | ({last: run} if last is not None else {}))


def _read(path: Path) -> list[Result]:
    """Return the results in a file, which must all be of one model."""
    results = [store.load(path, group, vectors=False) for group in store.open(path).groups()]
    check_one_model(path, results)
    return results


def _name_of(path: Path) -> str:
    return path.resolve().parent.name if path.name == "run.h5" else path.stem


def _run_report(path: Path, results: Sequence[Result], sharpness: tuple[str, float, float] | None) -> RunReport:
    attributes = store.attributes(path)

    def the(kind: type[R]) -> R | None:
        return next((result for result in results if isinstance(result, kind)), None)

    training = the(TrainingHistory)
    config = attributes.get("config")
    final = config.get("final", {}) if isinstance(config, dict) else {}
    return RunReport(
        name=training.method if training is not None else _name_of(path),
        training=training,
        eigen=the(Eigenpairs),
        trace=the(TraceEstimate),
        density=the(SpectralDensity),
        sharpness={r.m: r for r in results if isinstance(r, Sharpness) and (r.measure, r.rho, r.p) == sharpness},
        surfaces={result.name: result for result in results if isinstance(result, Surface)},
        paths={result.name: result for result in results if isinstance(result, LossPath)},
        gradients=the(GradientTrace),
        curvature=the(CurvatureTrace),
        command=str(attributes.get("command", "")),
        attributes=final if isinstance(final, dict) else {},
        file=path,
        settings={key: value for key, value in config.items() if key != "final"} if isinstance(config, dict) else {},
        measures={name: found for name, found in _measures(results).items() if not _shown(found, sharpness)},
    )


def _measures(results: Sequence[Result]) -> dict[str, Sharpness | Subsampled]:
    """Return every measure of sharpness and every number with its spread over parts of the data, by what it is."""
    return {
        _words(result) if isinstance(result, Sharpness) else f"{result.measure} {len(result.per_part)}": result
        for result in results
        if isinstance(result, Sharpness | Subsampled)
    }


def _words(result: Sharpness) -> str:
    """Return the name that a measure is stored under as words: the measure, then every setting that is not plain."""
    _, _, further = sharpness_name(result).partition(",")
    text = f"{result.measure.replace('_', ' ')}, ρ = {result.rho:g}, m = {result.m}" + (f", p = {result.p:g}" if result.p != 2 else "")
    return f"{text}, {further.replace('=', ' = ').replace(',', ', ').replace('_', ' ')}" if further else text


def _shown(result: Sharpness | Subsampled, setting: tuple[str, float, float] | None) -> bool:
    """Tell whether the first table of the report holds a measure already."""
    return isinstance(result, Sharpness) and (result.measure, result.rho, result.p) == setting
