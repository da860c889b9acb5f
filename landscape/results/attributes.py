"""The attributes that every group and the root of a run file have: what a result cost, what it was computed on, what the run was."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

from landscape.results.layout import Attribute, AttributeKind
from landscape.results.types import Cost, Provenance

KIND_OF_HINT: dict[Any, AttributeKind] = {str: "str", int: "int", float: "float", bool: "bool", int | None: "int", float | None: "float"}


def _attributes_of(cls: type, texts: dict[str, str]) -> tuple[Attribute, ...]:
    hints = get_type_hints(cls)
    return tuple(Attribute(f.name, KIND_OF_HINT.get(hints[f.name], "json"), texts.get(f.name, f.name)) for f in fields(cls))


COST = _attributes_of(
    Cost,
    {
        "forwards": "forward passes over the data",
        "gradients": "gradients over the data",
        "hvps": "Hessian-vector products over the data",
        "seconds": "wall time in seconds",
    },
)
PROVENANCE = _attributes_of(
    Provenance,
    {
        "model": "class of the model",
        "parameters": "number of parameters",
        "parameter_sha256": "hash of the parameters and buffers",
        "data_sha256": "hash of the examples",
        "examples": "number of examples",
        "batch_norm": "statistics that batch norm used",
        "batch_size": "examples in a batch, where numbers depend on it",
        "varied_sha256": "hash of the names of the parameters that vary",
        "loss_at_parameters": "mean loss at the model's own parameters",
        "seed": "seed of the random numbers",
        "dtype": "type of the parameters",
        "device": "device of the parameters",
        "created_at": "when it was measured, ISO 8601",
        "torch_version": "version of torch",
        "numpy_version": "version of numpy",
        "creation_library": "library that measured",
        "creation_library_version": "its version",
        "command": "command line that measured it; empty where there was none",
    },
)
GROUP = (
    Attribute("kind", "str", "what was measured"),
    Attribute("name", "str", "name that the user gave"),
    Attribute("checksums", "json", "CRC-32 of the attributes, and of every dataset's values, axes, units and long name"),
)
ROOT = (
    Attribute("schema_version", "int", "version of this layout"),
    Attribute("created_at", "str", "when the file was made, ISO 8601"),
    Attribute("creation_library", "str", "library that made the file"),
    Attribute("creation_library_version", "str", "its version"),
    Attribute("torch_version", "str", "version of torch"),
    Attribute("numpy_version", "str", "version of numpy"),
    Attribute("git_commit", "str", "commit of the working directory, -dirty where it has changes; empty outside of a repository"),
    Attribute("device", "str", "device of the parameters"),
    Attribute("dtype", "str", "type of the parameters"),
    Attribute("seed", "int", "seed of the run"),
    Attribute("world_size", "int", "number of processes"),
    Attribute("model", "str", "class of the model"),
    Attribute("parameter_sha256", "str", "hash of the parameters and buffers"),
    Attribute("data_sha256", "str", "hash of the examples"),
    Attribute("command", "str", "command line that made the file"),
    Attribute("config", "json", "configuration of the run"),
)
