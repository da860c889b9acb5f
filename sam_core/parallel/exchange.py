"""Two processes hand each other their gradients, bucket by bucket, while backward still computes the rest.

Parameters are packed in reverse order, in which backward finishes them. A full bucket is first averaged over the processes
that share the role (if there are several), then sent to the partner while the partner's is received: 1 P each way, as much as
an all-reduce among two moves. Nothing is recovered by subtraction: both gradients arrive as they are.

Of tensors that are cut over the processes of a role (fully_shard) each hands over its part.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sam_core import ranks
from sam_core.optim.gradients import Gradient
from sam_core.parallel.roles import RankLostError, Roles

LARGEST, SMALLEST = 25 * 2**20, 2**18  # bytes in a bucket; a smaller one costs more than it hides
PIECES = 8  # at least so many buckets where they do not get too small, so that there is something to overlap


@dataclass
class Bucket:
    """Parameters that travel together, and their gradients on the way."""

    index: list[int]
    offsets: list[int]
    size: int
    like: Tensor
    missing: int = 0
    sent: Tensor = field(default_factory=lambda: torch.empty(0))
    received: Tensor = field(default_factory=lambda: torch.empty(0))
    mean: Any = None  # under way: the average over the role
    works: list[Any] = field(default_factory=list)  # under way: the exchange


class Exchange:
    """The exchange of one gradient for another with the partner.

    Args:
        params: All parameters, in the same order in all processes.
        roles: This process's place.
        averages: Average over the processes that share the role, which a wrapper of the model may have done already.
        largest: Bytes in a bucket.
    """

    def __init__(self, params: Sequence[Tensor], roles: Roles, *, averages: bool = True, largest: int = LARGEST) -> None:
        self._handles: list[Any] = []
        self.params, self.roles = list(params), roles
        self.moving = [p.requires_grad for p in self.params]
        self._averages = averages and roles.size > 1
        self._cut = ranks.any_cut(self.params)
        local = [p.detach() for p in ranks.held(self.params)]
        # in the memory format of the parameter: sums run in the order of one process, and optimizers have their fast paths
        self._strides = [p.stride() if 1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True)) == p.numel() else None
                         for p in local]  # fmt: skip
        self._shapes = [p.shape for p in local]
        travelling = [i for i, p in enumerate(local) if self.moving[i] and p.numel()]
        total = sum(local[i].nbytes for i in travelling)
        place = {id(local[i]): i for i in travelling}
        self.buckets: list[Bucket] = []
        for row in ranks.buckets([local[i] for i in reversed(travelling)], min(largest, max(SMALLEST, total // PIECES))):
            offsets = [0]
            for p in row:
                offsets.append(offsets[-1] + p.numel())
            like = torch.empty(0, dtype=row[0].dtype, device=row[0].device)
            self.buckets.append(Bucket([place[id(p)] for p in row], offsets, offsets[-1], like))
        self._slot = {i: (b, k) for b, bucket in enumerate(self.buckets) for k, i in enumerate(bucket.index)}
        self._watching = False
        self._weight = 1.0
        self._next = 0  # the first bucket that was not launched
        self._arrived: set[int] = set()
        self._known: dict[int, tuple[Tensor, int]] = {}  # gradients as they were when they were packed, and their versions
        self._failure: RuntimeError | None = None  # of a launch inside of backward
        self.bytes_sent = 0
        self.step = 0  # for messages
        leaves = [i for i in travelling if self.params[i].is_leaf and not self._cut]
        self._handles = [self.params[i].register_post_accumulate_grad_hook(watcher(weakref.ref(self), i)) for i in leaves]

    def fits(self, params: Sequence[Tensor]) -> bool:
        """Say whether this is the exchange for these parameters, as they are now."""
        same = len(self.params) == len(params) and all(p is q for p, q in zip(self.params, params, strict=True))
        return same and self.moving == [p.requires_grad for p in params]

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for handle in self._handles:
            handle.remove()

    def __del__(self) -> None:
        self.close()

    # -- while backward runs

    @contextmanager
    def overlapping(self, weight: float) -> Iterator[None]:
        """Send gradients off as one backward pass inside the block finishes them; `finish()` collects.

        Args:
            weight: Share of this process's examples among those of its role, times the number of processes in it.
        """
        self._begin(weight)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _begin(self, weight: float) -> None:
        self._weight, self._next = weight, 0
        self._arrived, self._known, self._failure = set(), {}, None
        for b in self.buckets:
            # new storage in every step: what was received is carried to the next one
            b.sent = torch.empty(b.size, dtype=b.like.dtype, device=b.like.device)
            b.received = torch.empty_like(b.sent)
            b.missing, b.mean, b.works = len(b.index), None, []

    def on_gradient(self, i: int) -> None:
        """Send the gradient of parameter `i` off; called in the middle of backward."""
        gradient = self.params[i].grad
        if self._watching and i not in self._arrived and gradient is not None and self._failure is None:
            if gradient.layout != torch.strided:
                return  # it is refused after the closure
            self._known[i] = gradient, gradient._version
            try:
                self._put(i, gradient)
            except RuntimeError as error:  # it is told in finish(), not from within autograd
                self._failure = error

    def must_be_unchanged(self) -> None:
        """Look at .grad after the closure: it must be what was sent.

        Raises:
            RuntimeError: It is not.
        """
        if not all(self.params[i].grad is g and g._version == version for i, (g, version) in self._known.items()):
            raise RuntimeError(
                "the closure changed .grad after it was sent to the other process (several backward passes, or clipping): "
                "give overlap=False"
            )

    def _put(self, i: int, gradient: Tensor | None) -> None:
        """Pack one gradient, zeros where there is none, and launch what is complete."""
        self._arrived.add(i)
        b, k = self._slot[i]
        bucket = self.buckets[b]
        place = self._part(bucket.sent, i, bucket.offsets[k], bucket.offsets[k + 1])
        if gradient is None:
            place.zero_()
        else:
            place.copy_(ranks.held([gradient.detach()])[0])
        bucket.missing -= 1
        self._launch(wait=False)

    def _part(self, flat: Tensor, i: int, start: int, end: int) -> Tensor:
        """Return the place of parameter `i` in a bucket, as a tensor of its shape."""
        piece, strides = flat[start:end], self._strides[i]
        return piece.view(self._shapes[i]) if strides is None else piece.as_strided(self._shapes[i], strides)

    def _launch(self, wait: bool) -> None:
        """Launch complete buckets, in their order, which is that of the partner; averages first."""
        if self._averages:
            for bucket in self.buckets[self._next :]:
                if bucket.missing:
                    break
                if bucket.mean is None:
                    bucket.sent.mul_(self._weight / self.roles.size)
                    bucket.mean = dist.all_reduce(bucket.sent, group=self.roles.data_group, async_op=True)
                    self.bytes_sent += 2 * bucket.sent.nbytes * (self.roles.size - 1) // self.roles.size
        while self._next < len(self.buckets) and not self.buckets[self._next].missing:
            bucket = self.buckets[self._next]
            if bucket.mean is not None:
                # on a GPU waiting is a matter of streams, and costs the host nothing
                if not (wait or bucket.sent.is_cuda or bucket.mean.is_completed()):
                    return
                bucket.mean.wait()
            self._swap(bucket, self._next)
            self._next += 1

    def _swap(self, bucket: Bucket, tag: int) -> None:
        partner = self.roles.partner
        operations = [
            dist.P2POp(dist.isend, bucket.sent, partner, tag=tag),
            dist.P2POp(dist.irecv, bucket.received, partner, tag=tag),
        ]
        bucket.works = dist.batch_isend_irecv(operations)
        self.bytes_sent += bucket.sent.nbytes

    # -- afterwards

    def finish(self, gradient: Gradient, weight: float, *, failed: bool = False) -> tuple[Gradient, Gradient]:
        """Return this role's gradient and the other's, each averaged over the processes that share the role.

        Args:
            gradient: This process's own, as a pass gave it; sent off now where that has not happened inside `overlapping`.
            weight: See `overlapping`.
            failed: There is no gradient, but the others wait for one: all processes give the step up.

        Raises:
            RankLostError: Another process gave it up.
        """
        if self._failure is not None:
            raise self._failure
        if not self._arrived:
            self._begin(weight)
        for bucket in self.buckets:
            for i in bucket.index:
                if i not in self._arrived:
                    self._put(i, gradient[i])
        self._launch(wait=True)
        here, there, failing = self._report(gradient, failed)
        for bucket in self.buckets:
            for work in bucket.works:
                work.wait()
        self._arrived, self._known = set(), {}
        if failing is not None and not failed:
            raise RankLostError(f"{self.roles.name(failing)} raised an error, and the step was undone", self.roles.noticed(self.step))
        result = self._unpack("sent", here, gradient), self._unpack("received", there, gradient)
        for bucket in self.buckets:
            bucket.sent = bucket.received = torch.empty(0)
        return result

    def _report(self, gradient: Gradient, failed: bool) -> tuple[list[bool], list[bool], int | None]:
        """Return for both roles which parameters took part, and a rank that failed; this small message is on the host, on GPUs too."""
        mine = torch.tensor([*(int(g is not None) for g in gradient), (self.roles.rank + 1) * failed], dtype=torch.int32)
        if self.roles.size > 1:
            dist.all_reduce(mine, dist.ReduceOp.MAX, self.roles.data_group)
        theirs = torch.empty_like(mine)
        tag, partner = len(self.buckets), self.roles.partner
        for work in [dist.isend(mine, partner, tag=tag), dist.irecv(theirs, partner, tag=tag)]:
            assert work is not None
            work.wait()
        *here, one = mine.tolist()
        *there, other = theirs.tolist()
        return [bool(x) for x in here], [bool(x) for x in there], max(one, other) - 1 if one or other else None

    def _unpack(self, name: str, present: list[bool], gradient: Gradient) -> Gradient:
        # what has no numbers did not travel
        result: Gradient = [g if i not in self._slot else None for i, g in enumerate(gradient)]
        for bucket in self.buckets:
            flat = getattr(bucket, name)
            for i, start, end in zip(bucket.index, bucket.offsets[:-1], bucket.offsets[1:], strict=True):
                if present[i]:
                    result[i] = self._whole(self._part(flat, i, start, end), i)
        return result

    def _whole(self, part: Tensor, i: int) -> Tensor:
        """Return a part as what it is a part of."""
        p = self.params[i]
        if not self._cut or not ranks.any_cut([p]):
            return part
        from torch.distributed.tensor import DTensor

        assert isinstance(p, DTensor)
        return DTensor.from_local(part, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def watcher(exchange: "weakref.ref[Exchange]", i: int) -> Any:
    """Return a hook for parameter `i` that does not keep the exchange alive."""

    def hook(param: Tensor) -> None:
        found = exchange()
        if found is not None:
            found.on_gradient(i)

    return hook
