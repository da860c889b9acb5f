"""What a result was computed on: hashes, versions, device."""

from __future__ import annotations

import functools
import hashlib
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath

import torch
from torch import Tensor

from landscape.results.types import Provenance

# What makes two measurements answers to one question; their own settings come on top.
_QUESTION = ("parameter_sha256", "data_sha256", "examples", "varied_sha256", "batch_norm", "batch_size", "dtype", "device")
# Losses that are closer than this are the same but for rounding: other thread counts and batch sizes sum in another order.
_SAME_LOSS = {"float64": 1e-10, "float32": 1e-5}
_SAME_LOSS_IN_SHORT = 2e-2
_NO_COMMAND = ("", "-", "-c", "ipykernel_launcher.py")
_LONGEST_COMMAND = 8_000  # an attribute of HDF5 holds 64 kB


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash over names, shapes, dtypes and bytes of tensors; their device does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def names_sha256(names: Sequence[str]) -> str:
    """Return a hash over names and their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def differing(one: Provenance, other: Provenance) -> list[str]:
    """Return the fields that make two measurements answers to different questions, the loss only where nothing else does.

    A field that one of them lacks differs. Losses differ if they do by more than rounding.
    """
    found = [name for name in _QUESTION if getattr(one, name) != getattr(other, name)]
    return found if found or same_loss(one, other) else ["loss_at_parameters"]


def same_loss(one: Provenance, other: Provenance) -> bool:
    """Tell whether two losses at the same weights are equal up to the rounding of their dtypes; NaN is like NaN."""
    a, b = one.loss_at_parameters, other.loss_at_parameters
    if a is None or b is None:
        return False
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    tolerance = max(_SAME_LOSS.get(p.dtype, _SAME_LOSS_IN_SHORT) for p in (one, other))
    return math.isclose(a, b, rel_tol=tolerance)


def device_name(device: torch.device) -> str:
    """Return the name of the hardware behind a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


@functools.cache
def library_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("landscape-sam")
    except PackageNotFoundError:
        return "unknown"


def command_line() -> str:
    """Return the command that this process runs, to be typed again in the folder where it was typed; empty where nobody typed one."""
    name = PurePath(sys.argv[0] if sys.argv else "").name
    module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    if name in _NO_COMMAND:
        return ""
    if module:
        program = ["python", "-m", module.removesuffix(".__main__")]
    else:
        program = ["python", sys.argv[0]] if name.endswith(".py") else [name]
    text = shlex.join([*program, *sys.argv[1:]])
    return text if len(text) <= _LONGEST_COMMAND else ""
