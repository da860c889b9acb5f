"""Typed access to the results in a run file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from landscape.results import store
from landscape.results.layout import Layout
from landscape.results.schema import LAYOUTS, PARTIAL
from landscape.results.types import (
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    LossPath,
    PlaneRecord,
    Result,
    Sharpness,
    SpectralDensity,
    Subsampled,
    Surface,
    TraceEstimate,
    TrainingHistory,
)

T = TypeVar("T", bound=Result)


class Results(Mapping[str, T]):
    """The results of one kind in a run file, by name; each is read when it is asked for."""

    def __init__(self, path: Path, layout: Layout, partial: bool = False):
        self._path, self._prefix = path, f"{PARTIAL}/{layout.group}/" if partial else f"{layout.group}/"

    def __getitem__(self, name: str) -> T:
        return cast(T, store.load(self._path, self._prefix + name))

    def __iter__(self) -> Iterator[str]:
        return (g.removeprefix(self._prefix) for g in store.groups(self._path) if g.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<{len(self)} in {self._prefix[:-1]}: {', '.join(map(store.printable, self)) or 'none'}>"


class RunFile:
    """Typed access to what one run file holds; it reads on demand and keeps nothing open.

    Results of which a file holds one are properties, those with names are mappings: `run.eigen`, `run.surfaces["filter"]`. All of them by
    their place in the file: `run["surfaces/filter"]`, `for group in run`.
    """

    def __init__(self, path: store.PathLike):
        self.path = Path(path)
        self.groups()  # a file that cannot be read says so now

    def groups(self) -> list[str]:
        """Return the paths of the finished results, with names as the user gave them."""
        return [group for group in store.groups(self.path) if not group.startswith(f"{PARTIAL}/")]

    def __contains__(self, group: object) -> bool:
        return group in self.groups()

    def __getitem__(self, group: str) -> Result:
        return store.load(self.path, group)

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups())

    def __len__(self) -> int:
        return len(self.groups())

    def __repr__(self) -> str:
        return f"<RunFile {self.path}: {', '.join(map(store.printable, self.groups())) or 'no results'}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the run was: schema version, versions, command, seed, config and so on."""
        return store.attributes(self.path)

    @property
    def training(self) -> TrainingHistory:
        """The training history."""
        return self._single(TrainingHistory)

    @property
    def gradients(self) -> GradientTrace:
        """The trace of the gradients."""
        return self._single(GradientTrace)

    @property
    def curvature(self) -> CurvatureTrace:
        """The eigenvalues and the trace of the Hessian while the network trained."""
        return self._single(CurvatureTrace)

    @property
    def eigen(self) -> Eigenpairs:
        """The eigenpairs of the Hessian."""
        return self._single(Eigenpairs)

    @property
    def density(self) -> SpectralDensity:
        """The spectral density of the Hessian."""
        return self._single(SpectralDensity)

    @property
    def trace(self) -> TraceEstimate:
        """The trace of the Hessian."""
        return self._single(TraceEstimate)

    @property
    def sharpness(self) -> Results[Sharpness]:
        """The sharpness measures by name."""
        return Results(self.path, _layout(Sharpness))

    @property
    def subsampled(self) -> Results[Subsampled]:
        """Numbers with their spread over parts of the data, by name."""
        return Results(self.path, _layout(Subsampled))

    @property
    def surfaces(self) -> Results[Surface]:
        """The finished surfaces by name."""
        return Results(self.path, _layout(Surface))

    @property
    def paths(self) -> Results[LossPath]:
        """The paths by name: interpolations, mode connections, trajectories."""
        return Results(self.path, _layout(LossPath))

    @property
    def planes(self) -> Results[PlaneRecord]:
        """The planes by name; `landscape.Plane.load` makes them ready for use."""
        return Results(self.path, _layout(PlaneRecord))

    @property
    def partial(self) -> Results[Surface]:
        """The unfinished surfaces by name, their missing points pending and NaN."""
        return Results(self.path, _layout(Surface), partial=True)

    def _single(self, kind: type[T]) -> T:
        return cast(T, store.load(self.path, _layout(kind).group))


def _layout(kind: type[Result]) -> Layout:
    return next(layout for layout in LAYOUTS if layout.type is kind)
