"""Processes ("ranks") that train one model together: gradients averaged over them, tensors cut between them.

With this module, and the package `parallel` above it, `torch.distributed` ends in `sam_core`. Nothing here needs it to be there:
without it, no model is wrapped and no tensor is cut.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

BUCKET = 25 * 2**20  # bytes that travel together: as much as in a bucket of DistributedDataParallel


def started_as_group() -> bool:
    """Say whether this process is one of several that `torchrun` or `landscape train --devices` has started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def meeting() -> bool:
    """Say whether this process has met others: `torch.distributed` is initialised."""
    return dist.is_available() and dist.is_initialized()


def leads() -> bool:
    """Say whether this process is the one that writes and prints: the first of several, or the only one."""
    return not started_as_group() or os.environ["RANK"] == "0"


# -- every rank has the whole model, and examples of its own


def data_parallel(model: nn.Module | None) -> list[DistributedDataParallel]:
    """Return the parts of `model` that are wrapped in DistributedDataParallel; the model itself is one of its parts."""
    return [] if model is None else [m for m in model.modules() if isinstance(m, DistributedDataParallel)]


def bare(model: nn.Module) -> nn.Module:
    """Return the model without the wrapper around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def group_of(model: nn.Module | None) -> Any | None:
    """Return the process group over which DistributedDataParallel averages the gradients of `model`; None if it does not.

    Raises:
        ValueError: Parts of the model are averaged over different groups.
    """
    groups = [part.process_group for part in data_parallel(model)]
    if any(group is not groups[0] for group in groups):
        raise ValueError("model has parts in DistributedDataParallel over different process groups: which one averages is undefined")
    return groups[0] if groups else None


def shares_buckets(model: nn.Module | None) -> bool:
    """Say whether gradients are views of communication buckets, into which the next synchronised backward pass writes."""
    return any(part.gradient_as_bucket_view for part in data_parallel(model))


def finds_unused(model: nn.Module | None) -> bool:
    """Say whether parameters may take no part in a pass: the wrapper then takes what a pass in `no_sync` used for used by the next."""
    return any(part.find_unused_parameters for part in data_parallel(model))


@contextmanager
def no_sync(model: nn.Module | None) -> Iterator[None]:
    """Within the block (forward and backward belong inside) DistributedDataParallel averages nothing.

    Buffers are broadcast by the next forward pass, wherever it is: a model that trains in such blocks alone keeps one set of
    running statistics, that of rank 0, as it would without them.
    """
    parts = data_parallel(model)
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.no_sync())
        try:
            yield
        finally:
            for part in parts:
                part.require_forward_param_sync = True


@torch.no_grad()
def mean_(tensors: Sequence[Tensor], group: Any | None = None) -> None:
    """Overwrite tensors with their average over the ranks of `group` (None: all); every rank calls it with the same shapes.

    They travel together, in pieces of at most `BUCKET` bytes (or one tensor), so that the copy that travels stays small.
    """
    ranks = dist.get_world_size(group)
    for bucket in buckets(tensors):
        flat = torch.cat([x.reshape(-1) for x in bucket]).div_(ranks)  # before the sum, which may overflow in half precision
        dist.all_reduce(flat, group=group)
        pieces = flat.split([x.numel() for x in bucket])
        torch._foreach_copy_(bucket, [piece.view(x.shape) for piece, x in zip(pieces, bucket, strict=True)])


def sum_(tensor: Tensor, group: Any | None = None) -> Tensor:
    """Overwrite a tensor with its sum over the ranks of `group` (None: all), in one message; every rank gets the same bits."""
    dist.all_reduce(tensor, group=group)
    return tensor


def taking_part(present: Sequence[bool], device: torch.device, group: Any | None = None) -> list[bool]:
    """Say for each parameter whether any rank of `group` has a gradient of it, given which ones this rank has.

    Every rank must call.

    Returns:
        One truth value per parameter, read from the device only if this rank lacks a gradient.
    """
    seen = torch.tensor([int(p) for p in present], dtype=torch.uint8).to(device, non_blocking=True)
    dist.all_reduce(seen, dist.ReduceOp.MAX, group)
    return list(present) if all(present) else [bool(p) for p in seen.tolist()]


def buckets(tensors: Iterable[Tensor], limit: int = BUCKET) -> Iterator[list[Tensor]]:
    """Cut a list into pieces of at most `limit` bytes (or one tensor), each of one dtype and on one device."""
    rows: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for x in tensors:
        rows.setdefault((x.dtype, x.device), []).append(x)
    for row in rows.values():
        bucket: list[Tensor] = []
        size = 0
        for x in row:
            if bucket and size + x.nbytes > limit:
                yield bucket
                bucket, size = [], 0
            bucket.append(x)
            size += x.nbytes
        yield bucket


# -- every rank has a part of each tensor (DTensor, as made by fully_shard)


def any_cut(xs: Iterable[Tensor]) -> bool:
    """Say whether one of the tensors is a DTensor: this rank holds a part of it."""
    api = sys.modules.get("torch.distributed.tensor")  # half a second to import, and until somebody did there is no such tensor
    return api is not None and dist.is_initialized() and any(issubclass(kind, api.DTensor) for kind in set(map(type, xs)))


def held(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return what this rank holds of the tensors: of a DTensor its part, in its storage and without its graph; others as they are."""
    if not any_cut(xs):
        return list(xs)
    with torch.no_grad():
        return [x.to_local() if hasattr(x, "to_local") else x for x in xs]


def total(parts: Sequence[Tensor], xs: Sequence[Tensor], op: str = "sum") -> Tensor:
    """Return the sum (or "max") of 0-dim tensors, one for what this rank holds of each of `xs`, over all that the ranks hold.

    One small message for each way in which tensors are cut; what every rank has whole is counted once.
    """
    device = parts[0].device
    rows: dict[Any, list[Tensor]] = {}
    if any_cut(xs):
        for part, x in zip(parts, xs, strict=True):
            rows.setdefault(cut(x), []).append(part.to(device))
    else:
        rows[None, ()] = [part.to(device) for part in parts]
    results: list[Tensor] = []
    for (mesh, dims), row in rows.items():
        result = reduced(row, op)
        for dim in dims:
            dist.all_reduce(result, dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX, mesh.get_group(dim))
        results.append(result)
    return results[0] if len(results) == 1 else reduced(results, op)


def reduced(row: list[Tensor], op: str) -> Tensor:
    """Return the sum or the maximum of 0-dim tensors."""
    return torch.stack(row).sum() if op == "sum" else torch.stack(row).amax()


def cut(x: Tensor) -> tuple[Any, tuple[int, ...]]:
    """Return the mesh of a tensor and the dimensions of the mesh along which it is cut; (None, ()) for a whole tensor.

    Raises:
        ValueError: The ranks hold summands of the tensor, not parts of it.
    """
    if not any_cut([x]):
        return None, ()
    mesh, placements = x.device_mesh, x.placements  # type: ignore[attr-defined]
    if any(placement.is_partial() for placement in placements):
        raise ValueError(f"a tensor of shape {tuple(x.shape)} is a sum over ranks that was not taken yet: its placements are {placements}")
    return mesh, tuple(i for i, placement in enumerate(placements) if not placement.is_replicate())


def reshard(model: nn.Module | None) -> None:
    """Let go of whole copies of sharded parameters that a forward pass without backward has left: the next pass would take them.

    To be called when the weights have moved.
    """
    api = sys.modules.get("torch.distributed.fsdp")
    if api is None or model is None:
        return
    for module in model.modules():
        if isinstance(module, api.FSDPModule):
            module.reshard()


def refuse_flat(model: nn.Module | None, params: Iterable[Tensor]) -> None:
    """Refuse the older FullyShardedDataParallel, whose parameters look like whole ones and are pieces.

    Raises:
        ValueError: The model or a part of it is wrapped in it.
    """
    api = sys.modules.get("torch.distributed.fsdp")
    hidden = api is not None and model is not None and any(isinstance(m, api.FullyShardedDataParallel) for m in model.modules())
    if hidden or any(getattr(p, "_is_flat_param", False) for p in params):
        raise ValueError(
            "FullyShardedDataParallel hides how parameters are cut, so that no norm is right: use torch.distributed.fsdp.fully_shard"
        )


def portable(x: Tensor) -> Tensor:
    """Return `x`, or a copy if it is a part of a tensor in a buffer of others, which `torch.save` cannot write."""
    return x.detach().clone() if any_cut([x]) else x


def placed(whole: Tensor, like: Tensor) -> Tensor:
    """Return `whole`, of which every rank has a copy, in dtype, device and cut of `like`; without messages."""
    if not any_cut([like]):
        return whole.to(like)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(whole.to(like.dtype), mesh, placements, src_data_rank=None)
