"""Copies of one model in several processes: made equal at the start, compared on the way, with shared running statistics."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sam_core.parallel.roles import Roles
from sam_core.ranks import buckets

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ReplicasDifferError(RuntimeError):
    """Processes that train one model have different weights."""


def must_be_of_one_kind(tensors: Sequence[Tensor], roles: Roles) -> None:
    """Compare what the processes are about to share, because messages of different lengths end a process without a word.

    Args:
        tensors: What is to be shared: number, order, shapes, dtypes and `requires_grad` must be the same.
        roles: This process's place.

    Raises:
        ReplicasDifferError: They are not.
    """
    kinds = repr([(tuple(t.shape), t.dtype, t.requires_grad) for t in tensors])
    mine = torch.frombuffer(bytearray(hashlib.sha256(kinds.encode()).digest()[:16]), dtype=torch.int64)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(found, mine)  # on the host, on GPUs too
    for rank, other in enumerate(found):
        if not torch.equal(other, found[0]):
            raise ReplicasDifferError(
                f"{roles.name(rank)} and {roles.name(0)} have different models: parameters and buffers must be the same in number, order, "
                "shape, dtype and requires_grad"
            )


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor], source: int, group: Any | None = None) -> None:
    """Overwrite tensors with those of one rank, in all processes of a group (None: all); they travel together."""
    for bucket in buckets([t.detach() for t in tensors if t.numel()]):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        dist.broadcast(flat.view(torch.uint8), source, group)  # not every backend knows every dtype
        for t, piece in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            t.copy_(piece.view(t.shape))


def share_buffers(model: nn.Module, roles: Roles) -> None:
    """Give all processes the buffers (running statistics) of the first one that takes unperturbed gradients."""
    broadcast_(model.buffers(), roles.source)


def fingerprint(tensors: Sequence[Tensor]) -> Tensor:
    """Return a number, on the device, that changes with any bit of the tensors: one pass over them, summed as integers."""
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for t in tensors:
        t = torch.view_as_real(t) if t.is_complex() else t
        # odd factors, so that no bit is lost and two tensors that change places do not go unnoticed
        total = total * 31 + t.detach().contiguous().view(_BITS[t.element_size()]).sum(dtype=torch.int64).to(total.device)
    return total


def compare(tensors: Sequence[Tensor], roles: Roles, step: int, *, cut: bool = False, batch: Sequence[Tensor] = ()) -> None:
    """Compare what should be the same in several processes.

    Args:
        tensors: The weights, of all processes; if they are `cut`, of those with the same part of the batch.
        roles: This process's place.
        step: For the message.
        cut: Each process of a role has a part of every tensor.
        batch: What should be the same in those with the same part of the batch.

    Raises:
        ReplicasDifferError: They are not the same.
    """
    empty = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    mine = torch.stack([fingerprint(tensors), fingerprint(batch).to(empty.device) if batch else empty])
    all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of_them, mine)
    weights, batches = torch.stack(all_of_them, 1).tolist()
    mesh = roles.mesh.mesh.tolist()
    columns = list(zip(*mesh, strict=True))
    for row in columns if cut else [tuple(rank for rank in range(len(weights)))]:
        other = next((rank for rank in row if weights[rank] != weights[row[0]]), None)
        if other is not None:
            raise ReplicasDifferError(
                f"the weights of {roles.name(other)} differ from those of {roles.name(row[0])} after step {step + 1}: something outside of "
                "step() changes them, or the optimizers were given different options"
            )
    for row in columns:
        other = next((rank for rank in row if batches[rank] != batches[row[0]]), None)
        if other is not None:
            raise ReplicasDifferError(
                f"{roles.name(other)} and {roles.name(row[0])} were given different batches in step {step + 1}: let a generator of its own "
                "decide the order of the data, with the same seed in all processes"
            )
