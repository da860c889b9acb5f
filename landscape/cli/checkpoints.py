"""Parameters from files that others have written: state_dicts of `torch.save`, and safetensors. Nothing but tensors is read from them."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Where training scripts put the state_dict among other things, and what wrappers put before the names in it.
_KEYS = ("state_dict", "model_state_dict", "model", "net", "module", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "_forward_module.")

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # bytes, as the format allows


def load_state(model: nn.Module, path: Path) -> None:
    """Load the parameters in a file into a model.

    Args:
        model: the model that they fit.
        path: file written by `torch.save(model.state_dict(), path)`, a dictionary with it under "state_dict", "model" or the like, or
            safetensors. Prefixes that DistributedDataParallel, torch.compile and trainers put before names are taken away.

    Raises:
        ValueError: the file is missing, is no such file, or does not fit the model.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist" if not path.exists() else f"checkpoint {path} is no file")
    state = _safetensors(path) if _is_safetensors(path) else _state_of(_torch_saved(path), path)
    wanted = model.state_dict()
    try:
        model.load_state_dict(next((s for s in _named(state) if set(s) == set(wanted)), state))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"checkpoint {path} does not fit {type(model).__name__}: {' '.join(lines[1:3])[:300]}") from error


def _torch_saved(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(
            f"checkpoint {path} holds more than tensors or is damaged; save it by torch.save(model.state_dict(), ...)"
        ) from error


def _state_of(saved: Any, path: Path) -> dict[str, Tensor]:
    """Return the state_dict in what was saved, which may hold it under one of the usual keys, once more nested."""
    for _ in range(2):
        inner = [saved[key] for key in _KEYS if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping)]
        if inner and not all(isinstance(v, Tensor) for v in saved.values()):
            saved = inner[0]
    if not isinstance(saved, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(saved).__name__}, not a state_dict")
    state = dict(saved)
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        held = ", ".join(map(str, list(state)[:6])) or "nothing"
        raise ValueError(f"checkpoint {path} holds no tensors under {', '.join(_KEYS)}, and none by itself; it holds {held}")
    return state


def _named(state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state as it is, and without prefixes that all of its names have."""
    names = dict(state)
    yield names
    for _ in range(4):
        prefix = next((p for p in _PREFIXES if names and all(str(name).startswith(p) for name in names)), None)
        if prefix is None:
            return
        names = {name.removeprefix(prefix): value for name, value in names.items()}
        yield names


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _safetensors(path: Path) -> dict[str, Tensor]:
    """Read the format: the length of a header (8 bytes, little endian), the header in JSON, the bytes of the tensors.

    Args:
        path: the file.

    Returns:
        Tensors by name.

    Raises:
        ValueError: it is damaged, or holds a dtype that is not read.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    try:
        if not 2 <= length <= min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("its header has no length")
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        data = memoryview(content)[8 + length :]
        return {str(name): _tensor(entry, data) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"checkpoint {path} is no safetensors file, or damaged: {error}") from error


def _tensor(entry: Mapping[str, Any], data: memoryview) -> Tensor:
    dtype, shape, (start, stop) = _DTYPES.get(entry["dtype"]), [int(n) for n in entry["shape"]], entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"dtype {entry['dtype']} is not read, only {', '.join(_DTYPES)}")
    count = math.prod(shape)
    if not 0 <= start <= stop <= len(data) or min(shape, default=0) < 0 or stop - start != count * dtype.itemsize:
        raise ValueError(f"a tensor of shape {shape} does not lie at bytes {start} to {stop}")
    if not count:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[start:stop]), dtype=dtype).reshape(shape)
