"""What the root of a run file says about the run: from the process, from the first result, and from the caller."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from landscape.provenance import command_line, library_version
from landscape.results.schema import ROOT, SCHEMA_VERSION
from landscape.results.types import Provenance
from landscape.results.values import Scalar, encode_attribute

LIBRARY = "landscape-sam"
_FROM_PROVENANCE = ("device", "dtype", "seed", "model", "parameter_sha256", "data_sha256")


def git_commit() -> str:
    """Return the commit of the working directory, with -dirty where it has changes; empty outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def check_run(run: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Return the root attributes that a caller gave.

    Raises:
        ValueError: A key is none of the root's attributes.
    """
    attributes = {a.name: a for a in ROOT if a.name != "schema_version"}
    for key in run or {}:
        if key not in attributes:
            raise ValueError(f"run has the key {key!r}; allowed are {', '.join(attributes)}")
    encoded = {key: encode_attribute(attributes[key], value) for key, value in (run or {}).items()}
    return {key: value for key, value in encoded.items() if value is not None}


def root_attributes(old: Mapping[str, Any] | None, run: Mapping[str, Scalar], provenance: Provenance) -> dict[str, Scalar]:
    """Return the root's attributes: what was there, what was still empty filled from a result, and what the caller says."""
    known = {a.name: a for a in ROOT}
    if old is None:
        found: dict[str, Any] = {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "creation_library": LIBRARY,
            "creation_library_version": library_version(),
            "torch_version": torch.__version__,
            "numpy_version": np.__version__,
            "git_commit": git_commit(),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "command": command_line(),
            "config": {},
        }
    else:
        found = {key: value for key, value in old.items() if key in known and known[key].kind != "json"}
    for key in _FROM_PROVENANCE:
        if found.get(key, "") == "":
            found[key] = getattr(provenance, key)
    found["schema_version"] = SCHEMA_VERSION
    encoded = {key: encode_attribute(known[key], value) for key, value in found.items()}
    if old is not None and "config" in old:
        encoded["config"] = old["config"]
    return {key: value for key, value in encoded.items() if value is not None} | dict(run)
