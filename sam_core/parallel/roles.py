"""Who does what: processes in a mesh of shape (role, data), as torchrun or `landscape train --devices` starts them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

CLIMBS, AHEAD = 0, 1  # takes grad f(x~); takes grad f(y)
ROLES = ("x~", "y")

Result = TypeVar("Result")


class RankLostError(ConnectionError):
    """Another process of the same training died, failed, or did not answer in time.

    Attributes:
        cause: What happened to whom.
        notice: Who noticed, and in which step.
    """

    def __init__(self, cause: str, notice: str) -> None:
        super().__init__(f"{cause}, {notice}")
        self.cause, self.notice = cause, notice


@dataclass(frozen=True)
class Roles:
    """This process's place in a mesh of shape (role, data)."""

    device: torch.device
    mesh: DeviceMesh
    role: int  # CLIMBS or AHEAD; with a single role 0
    index: int  # place among the processes that share the role, and a batch
    size: int  # number of those

    @property
    def rank(self) -> int:
        """Number of this process."""
        return dist.get_rank()

    @property
    def partner(self) -> int:
        """Rank of the process with the same part of the batch and the other role."""
        return int(self.mesh.mesh[1 - self.role, self.index])

    @property
    def data_group(self) -> Any:
        """The processes that share this role."""
        return self.mesh.get_group("data")

    @property
    def role_group(self) -> Any:
        """The processes with the same part of the batch."""
        return self.mesh.get_group("role")

    @property
    def source(self) -> int:
        """Rank whose running statistics count: the first that takes unperturbed gradients."""
        return int(self.mesh.mesh[-1, 0])

    def part(self, examples: Tensor) -> Tensor:
        """Return this process's part of a batch: the batch itself unless several processes share the role."""
        return examples.tensor_split(self.size)[self.index]

    def name(self, rank: int) -> str:
        """Return what a rank is called in messages."""
        role = int((self.mesh.mesh == rank).nonzero()[0, 0])
        return f"rank {rank}" + (f" ({ROLES[role]})" if len(self.mesh.mesh) == 2 else "")

    @property
    def others(self) -> list[int]:
        """All ranks but this one."""
        return [rank for rank in range(self.mesh.mesh.numel()) if rank != self.rank]

    def noticed(self, step: int) -> str:
        """Return the end of a message about another rank."""
        return f"noticed by {self.name(self.rank)} in step {step + 1}"

    def careful(self, step: int, others: list[int], work: Callable[[], Result]) -> Result:
        """Return what `work` returns; if it fails because other ranks do not answer, say which (a RankLostError)."""
        try:
            return work()
        except RuntimeError as error:
            cause = lost(error)
            if cause is None:
                raise
            who = " or ".join(self.name(rank) for rank in others)
            raise RankLostError(f"{who} {cause}", self.noticed(step)) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "Roles":
        return self  # groups of processes are not copied

    def __reduce__(self) -> NoReturn:
        raise TypeError("a place among processes means nothing to others: save optimizer.state_dict() in place of the optimizer")


def lost(error: RuntimeError) -> str | None:
    """Return what an error of torch.distributed says of the other ranks; None for an error of another kind."""
    text = " ".join(str(error).split())
    lower = text.lower()
    if not isinstance(error, dist.DistError) and not any(name in lower for name in ("gloo", "nccl")):
        return None
    if "timed out" in lower or "timeout" in lower:
        return "did not answer in time"
    if any(word in lower for word in ("closed", "reset by peer", "broken pipe", "refused", "aborted")):
        return "is gone"
    return f"failed: {text[:200]}"


def start(device: torch.device | str | None = None, *, roles: int = 2, timeout: float = 120.0, meeting: str | None = None) -> Roles:
    """Join the other processes and return this one's place.

    Every process calls it once, first of all. Rank, number of processes and where they meet come from the environment, as
    `torchrun --nproc-per-node 2` sets it. Ranks 0 to N - 1 take grad f(x~), N to 2 N - 1 grad f(y).

    Args:
        device: Where this process computes; default: the GPU of its local rank if there is one, else the CPU.
        roles: 2 for SAMPa; 1 for data parallelism alone.
        timeout: Seconds after which a rank that does not answer counts as lost.
        meeting: Where the processes meet, a URL as `torch.distributed` has them; None: as the environment says.

    Returns:
        The place.

    Raises:
        ValueError: The number of processes is no multiple of `roles`, or they were not started as a group.
    """
    if roles not in (1, 2):
        raise ValueError(f"roles must be 1 or 2, not {roles!r}")
    if not timeout > 0:
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    if not dist.is_initialized() and not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        raise ValueError("there is one process only: start several with `torchrun --nproc-per-node 2 script.py`")
    if device is None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        device = f"cuda:{local}" if local < torch.cuda.device_count() else "cpu"
    device = torch.device(device)
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ["WORLD_SIZE"])
    if world % roles or world < 2:
        raise ValueError(f"{world} processes cannot share {roles} roles equally: start a multiple of {roles}, at least 2")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank = int(os.environ["RANK"])
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))
    if device.type == "cuda" and "gloo" not in dist.get_backend_config():
        raise ValueError(
            f"the group of processes has the backend {dist.get_backend_config()!r} alone, and small messages travel between CPUs: "
            'init_process_group("cpu:gloo,cuda:nccl"), or leave it to start()'
        )
    ranks = torch.arange(world).reshape(roles, -1)
    # groups of one's own, because those that a mesh makes wait for half an hour whatever the timeout
    groups = []
    for rows in (ranks.T, ranks):  # all processes make all groups
        made = {tuple(row): dist.new_group(row, timeout=timedelta(seconds=timeout)) for row in rows.tolist()}
        groups.append(next(group for row, group in made.items() if dist.get_rank() in row))
    mesh = DeviceMesh.from_group(groups, device.type, mesh=ranks, mesh_dim_names=("role", "data"))
    role, index = divmod(dist.get_rank(), world // roles)
    return Roles(device, mesh, role, index, world // roles)
