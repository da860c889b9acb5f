"""The vocabulary of the schema: attributes, datasets, and the layout of a group that one result type fills."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from landscape.results.types import Result

AttributeKind = Literal["str", "int", "float", "bool", "json"]


@dataclass(frozen=True)
class Attribute:
    """One attribute of a group; a value of None is stored as no attribute at all."""

    name: str  # in the file and on the result
    kind: AttributeKind
    long_name: str


@dataclass(frozen=True)
class Variable:
    """One dataset. Named like its only dimension it is that dimension's coordinate."""

    name: str
    field: str  # of the result type; empty where the values follow from the rest and are not read back
    dims: tuple[str, ...]
    long_name: str
    units: str = "1"
    kind: Literal["float", "int", "status", "text", "tensor"] = "float"
    optional: bool = False  # the field may be None: then the dataset is left out, and a coordinate's dimension too
    derive: Callable[[Any], Any] | None = None  # values where `field` is empty; None counts 0, 1, 2, ...
    meanings: tuple[tuple[int, str], ...] = ()
    scalar_coordinate: bool = False

    @property
    def is_coordinate(self) -> bool:
        """Whether the values stand along a dimension of the same name."""
        return self.dims == (self.name,)


@dataclass(frozen=True)
class Layout:
    """Where one result type lies and what its group holds."""

    type: type[Result]
    group: str
    variables: tuple[Variable, ...]
    attributes: tuple[Attribute, ...] = ()
    named: bool = False  # several of the kind lie under `group`, each by its name
    default_name: Callable[[Any], str] | None = None
