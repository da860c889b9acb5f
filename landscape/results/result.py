"""What every measurement has in common: what it cost, what it was computed on, and how it shows itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, ClassVar

from landscape.results.names import printable


@dataclass(frozen=True)
class Cost:
    """Work done, in passes over the whole data set, and the time it took."""

    forwards: float = 0.0
    gradients: float = 0.0
    hvps: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{getattr(self, kind):.4g} {kind}" for kind in ("forwards", "gradients", "hvps") if getattr(self, kind)]
        return ", ".join([*parts, f"{self.seconds:.3g} s"])


@dataclass(frozen=True)
class Provenance:
    """What a number was computed on."""

    model: str = ""
    parameters: int = 0
    parameter_sha256: str = ""
    data_sha256: str = ""
    examples: int = 0
    batch_norm: str = "eval"
    batch_size: int | None = None  # where numbers depend on it: with the statistics of each batch
    varied_sha256: str = ""  # of the names of the parameters that vary
    loss_at_parameters: float | None = None  # the mean loss at the model's own weights, which tells one loss from another
    seed: int | None = None
    dtype: str = ""
    device: str = ""
    created_at: str = ""
    torch_version: str = ""
    numpy_version: str = ""
    creation_library: str = ""
    creation_library_version: str = ""
    command: str = ""  # the command line that measured it; empty where there was none, as in a notebook

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        return asdict(self)


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Common to every measurement."""

    kind: ClassVar[str] = "result"

    cost: Cost = field(default_factory=Cost, kw_only=True)
    provenance: Provenance = field(default_factory=Provenance, kw_only=True)

    def summary(self) -> str:
        """Return the value and its error bar in a few words."""
        return ""

    def __repr__(self) -> str:
        return printable(f"<{type(self).__name__} {self.summary()} | {self.cost}>")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Show the result in a notebook, with its figure where it has one."""
        # By name, when a notebook asks: results are below the pictures and know nothing of them.
        bundle: dict[str, Any] = import_module("landscape.plots.display").mime_bundle(self, include, exclude)
        return bundle
