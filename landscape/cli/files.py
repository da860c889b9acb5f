"""The commands for result files: what is in one, in other formats, and several made into one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from landscape.results.export import export
from landscape.results.inspection import describe
from landscape.results.merge import merge
from landscape.results.names import printable


@dataclass(frozen=True)
class Inspect:
    """Print what a result file holds: the run, every result with its error bar and cost, every dataset with its axes and units."""

    file: tyro.conf.Positional[Path]
    """Result file (.h5); it is only read, and compared with its checksums."""

    def run(self) -> None:
        """Print the table; what is damaged is said in it, and is an error in the end."""
        found = describe(self.file)
        print(found)
        if found.damaged:
            raise ValueError(f"{self.file} is damaged at {', '.join(map(printable, found.damaged))}; restore the file or measure again")


@dataclass(frozen=True)
class Export:
    """Write a result file in another format: csv, npz, netcdf, or vtp for ParaView."""

    file: tyro.conf.Positional[Path]
    """Result file (.h5); it is only read."""
    to: Literal["csv", "npz", "netcdf", "vtp"]
    """The format."""
    out: Path | None = None
    """File or folder to write; by default beside the result file."""

    def run(self) -> None:
        """Write and say where."""
        for path in export(self.file, self.to, self.out):
            print(path)


@dataclass(frozen=True)
class Merge:
    """Put the results of several files of one run into one file."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Result files (.h5); they are only read."""
    out: Path
    """Result file to write; what it holds already stays."""

    def run(self) -> None:
        """Merge and say what was added."""
        added = merge(list(self.files), self.out)
        print(f"{self.out}: " + (", ".join(map(printable, added)) if added else "nothing new"))
