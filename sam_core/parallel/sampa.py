"""SAMPa with its two gradients at the same time: one half of the processes takes grad f(x~), the other half grad f(y)."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, Unpack

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from sam_core import ranks
from sam_core.optim.ascent import Ascent
from sam_core.optim.checks import flag, whole
from sam_core.optim.gradients import Gradient, Shards
from sam_core.optim.minibatch import Minibatch
from sam_core.optim.optimizer import Options
from sam_core.optim.sampa import SAMPa
from sam_core.parallel.exchange import Exchange
from sam_core.parallel.replicas import broadcast_, compare, must_be_of_one_kind, share_buffers
from sam_core.parallel.roles import AHEAD, Roles


class ParallelSAMPa(SAMPa):
    """SAMPa-lam on two devices, or two groups of them: the iterates of `SAMPa`, one gradient of wall time per step.

    Every process calls `step(closure, next_closure)` with its part (`roles.part`) of both batches, and runs the closure of its
    role only. Weights, momentum and all that is carried are the same in all processes, to the bit; a checkpoint of one is a
    checkpoint of `SAMPa`, and the other way round. Batches of several processes per role are averaged by their sizes where
    closures are `Minibatch` objects, else equally.

    Running statistics live in the processes that take grad f(y): call `share_buffers()` before evaluating or saving. An error in one
    process's closure undoes the step in all of them: the others raise a RankLostError.

    With a model in DistributedDataParallel over `roles.data_group`, or sharded by `fully_shard` over `roles.mesh["data"]`, those
    wrappers average over the processes of a role; without one, this optimizer does, which overlaps better.

    Args:
        base: Optimizer instance.
        rho: Radius, unless `ascent` has its own.
        lam: Share of grad f(y_{t+1}) in the update, in [0, 1].
        roles: This process's place, from `sam_core.parallel.start()`.
        ascent: The climb from grad f(y_t); default: `PNorm(rho)`.
        compare_every: Steps between comparisons of all weights between the processes; 0: never.
        overlap: Send gradients off while backward computes the rest. Closures must then run backward once, and leave .grad alone.
        **options: See `SharpnessAware`.

    Raises:
        TypeError: roles is something else.
        ValueError: An option does not go with two roles.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        lam: float = 0.2,
        *,
        roles: Roles,
        ascent: Ascent | None = None,
        compare_every: int = 100,
        overlap: bool = True,
        **options: Unpack[Options],
    ) -> None:
        if not isinstance(roles, Roles):
            raise TypeError(f"roles must be what sam_core.parallel.start() returned, not {roles!r}")
        if len(roles.mesh.mesh) != 2:
            raise ValueError(f"SAMPa needs two roles, this mesh has {len(roles.mesh.mesh)}: parallel.start(roles=2)")
        super().__init__(base, rho, lam, ascent=ascent, **options)
        if self.criterion.climbs_on_other_loss:
            raise ValueError(f"{type(self.criterion).__name__} takes two gradients at y: use SAMPa on one device")
        if options.get("same_rng"):
            raise ValueError("same_rng=True: the two gradients are taken in different processes, which draw apart; use SAMPa on one device")
        self.roles = roles
        self.compare_every = whole("compare_every", compare_every, 0)
        self.overlap = flag("overlap", overlap)
        self._exchange: Exchange | None = None
        self._start_alike(self.parameters())
        if self.model is not None:  # what else the gradients depend on
            own = set(map(id, self.parameters()))
            self._start_alike([p for p in (*self.model.parameters(), *self.model.buffers()) if id(p) not in own])

    def _start_alike(self, params: list[Tensor]) -> None:
        """Give all processes the weights of the first; of tensors cut over a role, those of the first role."""
        self.roles.careful(self.steps, self.roles.others, lambda: must_be_of_one_kind(params, self.roles))
        first = int(self.roles.mesh.mesh[0, self.roles.index])
        cut = ranks.any_cut(params)
        broadcast = (first, self.roles.role_group) if cut else (0, None)
        self.roles.careful(self.steps, self.roles.others, lambda: broadcast_(ranks.held(params), *broadcast))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, in all processes; its weights are those of the first."""
        super().add_param_group(param_group)
        if self._base is not None:
            self._start_alike(self.param_groups[-1]["params"])

    def __getstate__(self) -> dict[str, Any]:
        self._passes.watch = None  # belongs to the exchange, which is made anew where it is missing
        return {**super().__getstate__(), "_exchange": None}

    def share_buffers(self) -> None:
        """Copy the buffers of `model` (running statistics) from where the unperturbed gradients are taken to all processes."""
        if self.model is not None:
            model = self.model
            self.roles.careful(self.steps, [self.roles.source], lambda: share_buffers(model, self.roles))

    @property
    def _exchanging(self) -> Exchange:
        """The exchange for the parameters that there are now."""
        params = self.parameters()
        if self._exchange is None or not self._exchange.fits(params):
            if self._exchange is not None:
                self._exchange.close()
            self._exchange = Exchange(params, self.roles, averages=not self._averaged)
        return self._exchange

    @property
    def _averaged(self) -> bool:
        """Whether gradients come as averages over the role, from a wrapper of the model."""
        return bool(ranks.data_parallel(self.model)) or ranks.any_cut(self.parameters())

    def _weight(self, shards: Shards) -> float:
        """Return this process's share of the examples of its role, times the number of processes in it."""
        if self.roles.size == 1 or self._averaged:
            return 1.0
        size = torch.tensor([float(sum(len(c) if isinstance(c, Minibatch) else 1 for c, _ in shards))], dtype=torch.float64)
        total = size.clone()
        dist.all_reduce(total, group=self.roles.data_group)
        return float(size / total) * self.roles.size

    @property
    def _others(self) -> list[int]:
        """The ranks that a step waits for."""
        return [self.roles.partner, *(r for r in self.roles.mesh.mesh[self.roles.role].tolist() if r != self.roles.rank)]

    def _pass(self, shards: Shards, move: Callable[[], None], *, perturbed: bool, frozen: bool) -> tuple[Tensor, Gradient, Gradient]:
        """Move, take this role's gradient while it is exchanged for the other's; return this role's share of the loss, and both."""
        exchange = self._exchanging
        exchange.step = self.steps
        weight = self.roles.careful(self.steps, self._others, lambda: self._weight(shards))
        # where the gradient is worked on after backward, it is sent after that
        overlap = self.overlap and len(shards) == 1 and not self.decay_in_ascent and not self._averaged
        self._passes.watch = exchange.must_be_unchanged if overlap else None
        try:
            move()
            with exchange.overlapping(weight) if overlap else nullcontext():
                loss, own = self._gradient(shards, perturbed=perturbed, frozen=frozen)
        except Exception:
            nothing: Gradient = [None] * len(exchange.params)
            self.roles.careful(self.steps, self._others, lambda: exchange.finish(nothing, weight, failed=True))
            raise
        finally:
            self._passes.watch = None
        own, theirs = self.roles.careful(self.steps, self._others, lambda: exchange.finish(own, weight))
        if overlap and self._passes.scaler is not None:  # what was sent off was scaled
            own, theirs = self._passes.unscaled(own), self._passes.unscaled(theirs)
        return loss * (weight / self.roles.size), own, theirs

    def _run(self, here: Shards, there: Shards) -> Tensor:
        params = self.parameters()
        ahead = self.roles.role == AHEAD
        if not self.memory.shares:
            loss, own, theirs = self._pass(here, lambda: None, perturbed=False, frozen=True)
            self._keep(own if ahead else theirs, loss)
            self.gradients_computed += 1
        try:
            move = self._step_ahead if ahead else partial(self._climb_along, self.y_gradient)
            loss, own, theirs = self._pass(there if ahead else here, move, perturbed=not ahead, frozen=not ahead)
        finally:
            self._home.come_back()
        self.gradients_computed += 2
        y, perturbed = (own, theirs) if ahead else (theirs, own)
        loss = loss if ahead else torch.zeros_like(loss)
        self.roles.careful(self.steps, self._others, lambda: dist.all_reduce(loss))
        self._keep(y, loss)
        self._descend_along(loss, perturbed, [y], [1.0])
        if self.compare_every and (self.steps + 1) % self.compare_every == 0:
            batch = [t for c, _ in here if isinstance(c, Minibatch) for t in (c.inputs, c.targets) if isinstance(t, Tensor)]
            cut = ranks.any_cut(params)
            self.roles.careful(self.steps, self._others, lambda: compare(ranks.held(params), self.roles, self.steps, cut=cut, batch=batch))
        return loss

    def _keep(self, gradient: Gradient, loss: Tensor) -> None:
        """Carry grad f(y) to the next step."""
        self._must_be_finite(gradient, loss)
        found = {p: g for p, g in zip(self.parameters(), gradient, strict=True) if g is not None}
        self.memory.carried, self.memory.shares, self.memory.draws = {"y_gradient.0": found}, [1.0], []
