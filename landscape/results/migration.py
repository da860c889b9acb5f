"""Groups of older versions of the schema, made into groups of the present one while they are read."""

from __future__ import annotations

import json
from collections.abc import Callable

from landscape.results.schema import SCHEMA_VERSION
from landscape.results.values import Group, checksum, descriptions, sums_of, verify


def migrated(group: Group, version: int) -> Group:
    """Return a group of a file of an older version as the present version has it; a damaged one is a StoreError."""
    for step in range(version, SCHEMA_VERSION):
        group = STEPS[step](group)
    return group


def _from_1(group: Group) -> Group:
    """Version 1 had no checksums of axes, units and long names, and the first of its sharpness results no settings."""
    sums = sums_of(group.attributes)
    verify(group.attributes, group.datasets, with_axes=False)
    ours = {name: group.attributes[name] for name in sums["names"]}
    if ours.get("kind") == "sharpness":
        ours.setdefault("settings", "{}")
    sums |= {"attributes": checksum(ours), "names": sorted(ours), **descriptions(group.datasets)}
    return Group(group.path, {**group.attributes, **ours, "checksums": json.dumps(sums)}, group.datasets)


STEPS: dict[int, Callable[[Group], Group]] = {1: _from_1}
