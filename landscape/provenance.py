"""What a result was computed on: hashes, versions, device."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash over names, shapes, dtypes and bytes of tensors; their device does not matter."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def device_name(device: torch.device) -> str:
    """Return the name of the hardware behind a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def library_version() -> str:
    """Return the installed version of this package."""
    try:
        return version("landscape-sam")
    except PackageNotFoundError:
        return "unknown"
