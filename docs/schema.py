"""Writes docs/schema.md: the tables from `landscape/results/schema.py`, the rest from this file. Run it after a change to either.

A test compares the committed page with what this script would write, and the tables with files of every kind of result.
"""

import inspect
from pathlib import Path

from landscape.results.layout import Attribute, Layout, Variable
from landscape.results.migration import STEPS
from landscape.results.schema import COST, GROUP, LAYOUTS, PARTIAL, PROVENANCE, ROOT, SCHEMA_VERSION

PAGE = Path(__file__).with_suffix(".md")

DTYPES = {
    "float": "float64",
    "int": "int64",
    "status": "uint8",
    "text": "string",
    "tensor": "float32 or float64",
}
KINDS = {"str": "string", "int": "int64", "float": "float64", "bool": "int64, 0 or 1", "json": "string of JSON"}

INTRODUCTION = f"""
# The result file

Written by `docs/schema.py` from `landscape/results/schema.py`. This page describes schema version {SCHEMA_VERSION}.

One run is one `.h5` file: HDF5 as netCDF-4 uses it, so that these read it as it stands:

    landscape inspect run.h5                                    # everything in it, with error bars, as a table
    landscape.open("run.h5").surfaces["filter"].loss            # typed, checked against its checksums
    xarray.open_datatree("run.h5", engine="h5netcdf")           # labelled arrays
    h5dump -H run.h5;  ncdump -h run.h5;  h5disp('run.h5')      # HDF5, netCDF, MATLAB

* The root holds attributes only. Each measurement is a group with coordinates of its own.
* Every axis of every dataset has a dimension scale; every dataset has `units` and `long_name`.
* Missing numbers are NaN, never -1. A value of None is an attribute or dataset that is not there.
* Configurations are one string of JSON. Nothing is pickled; no dataset holds objects, references or links to other files.
* Strings are UTF-8. A dataset of 64 kB or more is in chunks, compressed with DEFLATE, with Fletcher-32 checksums.
* Real numbers are written as they were measured: float64, or float32 where the array was.
"""

NAMES = """
## Names

Where a file holds several results of a kind, each lies in a group under its name. Letters and digits of any script, `_ + = , - .` and inner
spaces stay as they are; of anything else (slashes, quotes, `<`, control characters, a leading dot, letters that are not in their
composed form) the UTF-8 bytes are written as `%XX`. The attribute `name` has the name as it was given. At most 255 bytes; a name that
holds NUL is refused.
"""

CHECKSUMS = """
## Checksums

The attribute `checksums` of the root and of every group is JSON:

| key | |
| --- | --- |
| `attributes` | CRC-32, in hexadecimal, of the JSON text of the attributes in `names`, with sorted keys |
| `names` | which attributes these are: what somebody adds by hand later is no damage |
| `datasets` | for each dataset the CRC-32 of its values, after that of the text of their NumPy dtype and shape |
| `described` | for each dataset the CRC-32 of the JSON text of its axes, units, long name and flags |
| `shapes` | for each dataset its dtype and shape, which are compared before it is read |

A reader compares them: a flipped bit is an error that names the file and the group, never another number. A dataset that declares more
bytes than its share of the file can hold, or than the machine has, is refused before it is read; so are virtual datasets and those in other
files, and links out of the file are not followed.
"""

WRITING = """
## How it is written

Every write makes the whole new file in memory, puts it beside the old one, pushes it to the disk and moves it into place. A reader sees
the old file or the new one, whenever it looks; `kill -9`, a power cut or a full disk leaves one of the two. Nothing stays open in
between, and no reader takes a lock. One process writes at a time: `run.h5.lock` names process and host. A second writer waits ten seconds
and then says who writes; the lock of a process that died on this host is taken over, that of another host is named in the error, to be
deleted by hand. Under `torchrun` rank 0 writes.
"""

VERSIONS = """
## Versions

`schema_version` of the root is the version of the file. A newer one than the library knows is refused, with both versions named. An older
one is migrated while it is read, group by group, and nothing on the disk changes; the first write to such a file brings all of it to
the present version. A group that is damaged is not: it is reported as before.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in lines)


def attributes(found: tuple[Attribute, ...]) -> str:
    """Return the table of some attributes."""
    return table(["attribute", "type", "what it is"], [[f"`{a.name}`", KINDS[a.kind], a.long_name] for a in found])


def shape(variable: Variable, layout: Layout) -> str:
    """Return the axes of a dataset; one in brackets is not there where its coordinate is not."""
    left_out = {v.name for v in layout.variables if v.is_coordinate and v.optional and v.field}
    return ", ".join(f"[{dim}]" if dim in left_out else dim for dim in variable.dims) or "scalar"


def meaning(variable: Variable) -> str:
    """Return what a dataset is, and what its numbers stand for."""
    flags = ", ".join(f"{value} {text.replace('_', ' ')}" for value, text in variable.meanings)
    return f"{variable.long_name}{f': {flags}' if flags else ''}{' (optional)' if variable.optional else ''}"


def section(layout: Layout) -> str:
    """Return what is to be known of one group."""
    coordinates = [v for v in layout.variables if v.is_coordinate or v.scalar_coordinate]
    data = [v for v in layout.variables if v not in coordinates]

    def rows(variables: list[Variable]) -> list[list[str]]:
        return [[f"`{v.name}`", shape(v, layout), DTYPES[v.kind], v.units, meaning(v)] for v in variables]

    parts = [
        f"## /{layout.group}{'/&lt;name&gt;' if layout.named else ''}",
        f"`landscape.results.types.{layout.type.__name__}`, kind `{layout.type.kind}`: {inspect.getdoc(layout.type)}",
        table(["coordinate", "axes", "dtype", "units", "what it is"], rows(coordinates)),
        table(["dataset", "axes", "dtype", "units", "what it is"], rows(data)),
    ]
    return "\n\n".join([*parts, attributes(layout.attributes)] if layout.attributes else parts)


def page() -> str:
    """Return the whole page."""
    steps = "\n".join(f"* {version} to {version + 1}: {inspect.getdoc(step)}" for version, step in sorted(STEPS.items()))
    parts = [
        INTRODUCTION,
        "## /",
        attributes(ROOT),
        "## Every group",
        "What was measured, what it cost and what it was computed on. One pass over all examples counts as 1.",
        attributes((*GROUP, *COST, *PROVENANCE)),
        *map(section, LAYOUTS),
        f"## /{PARTIAL}/surfaces/&lt;name&gt;",
        "A surface that is not finished: its datasets as far as they are known (the rest is NaN, with status 0), and beside them what is\n"
        "needed to go on: sums over batches, and the attribute `state`, a string of JSON. Saving the finished surface removes it.",
        NAMES,
        CHECKSUMS,
        WRITING,
        VERSIONS,
        steps,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
