"""Methods whose climb uses another point's gradient: SAMPa, OptSAM, RandSAM, Momentum-SAM; and SAM-db, another batch's.

SAMPa (Xie, Pethick, Cevher 2024, arXiv 2410.10683), with eta the learning rate:

    x~_t    = x_t + rho grad f(y_t) / ||grad f(y_t)||
    y_{t+1} = x_t - eta grad f(y_t)
    x_{t+1} = x_t - eta (1 - lam) grad f(x~_t) - eta lam grad f(y_{t+1})

The two gradients of a step do not depend on each other. y_0 = x_0, whose gradient costs one extra pass in the first step.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_core.optim import vectors
from sam_core.optim.ascent import Ascent, PNorm, Site, with_rho
from sam_core.optim.carried import Carrier
from sam_core.optim.checks import in_range, whole
from sam_core.optim.gradients import Gradient, Shards, accumulated
from sam_core.optim.optimizer import Options, Overflow, SharpnessAware
from sam_core.optim.passes import Draws
from sam_core.optim.schedule import Schedule
from sam_core.optim.uncommitted import step_without_commit


class Previous(PNorm):
    """OptSAM: climbs along the last gradient that was taken at perturbed weights; one gradient per step."""

    differentiable = False
    along_gradient = False

    def needs_gradient(self) -> bool:
        """Say whether there is no previous gradient yet."""
        return "previous" not in self.carried

    def remembers(self) -> bool:
        """Say that the direction comes from the step before."""
        return True

    def direction(self, gradients: list[Tensor] | None, site: Site) -> list[Tensor]:
        """Return the previous gradient."""
        if gradients is not None and self.needs_gradient():
            return gradients
        known = self.recall("previous", site.params)
        return [torch.zeros_like(p) if g is None else g.clone() for p, g in zip(site.params, known, strict=True)]

    def observe(self, params: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Keep a copy of the perturbed gradient for the next step."""
        self.keep("previous", params, vectors.clone(gradients))


class Random(PNorm):
    """RandSAM: climbs along a Gaussian direction, drawn in float32 on the CPU: the same on every device and number of ranks."""

    differentiable = False
    along_gradient = False
    settings = ("rho", "seed", "p")

    def __init__(self, rho: float | None = None, seed: int = 0, p: float = 2) -> None:
        super().__init__(rho, p)
        self.seed = whole("seed", seed, 0)
        self.generator = torch.Generator().manual_seed(seed)

    def needs_gradient(self) -> bool:
        """Say that no gradient is needed."""
        return False

    def direction(self, gradients: list[Tensor] | None, site: Site) -> list[Tensor]:
        """Return the draw."""
        return vectors.gaussian_like(site.params, self.generator)


class Momentum(PNorm):
    """Momentum-SAM (Becker et al. 2024, arXiv 2401.12033): climbs against the momentum of the base optimizer, -rho v / ||v||.

    v is the buffer `momentum_buffer` of SGD or `exp_avg` of the Adam family; before there is one, nothing moves. The weights
    are back after every step; the iterates w are those of the paper.
    """

    differentiable = False
    along_gradient = False

    def needs_gradient(self) -> bool:
        """Say that no gradient is needed."""
        return False

    def direction(self, gradients: list[Tensor] | None, site: Site) -> list[Tensor]:
        """Return -v."""
        v: list[Tensor] = []
        for p in site.params:
            state = site.base.state.get(p, {})
            buffer = state.get("momentum_buffer", state.get("exp_avg"))
            v.append(torch.zeros_like(p) if buffer is None else -buffer.to(p.dtype))
        return v


class YGradients(Carrier):
    """What SAMPa knows of y_t: grad f(y_t), the direction to climb along where that is another one, the random draws behind it.

    One set of tensors for each shard that climbs by itself, and the shards' shares of the mean; and lam.
    """

    settings = ("lam", "shares", "draws")

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = in_range("lam", lam, 0, 1, closed_right=True)
        self.shares: list[float] = []
        self.draws: list[Draws] = []

    def check_state(self, state: Any, params: Sequence[Tensor]) -> None:
        """Refuse a state whose shares are no shares of a mean, or not those of the gradients in it."""
        super().check_state(state, params)
        shares = state["settings"].get("shares")
        fine = isinstance(shares, list) and all(isinstance(s, float) and 0 <= s <= 1 for s in shares)
        if not fine or (shares and abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"state_dict: the shares of the shards must be a list of numbers that sum to 1, not {shares!r}")
        if not is_states(state["settings"].get("draws", [])):
            raise ValueError("state_dict: the draws of SAMPa's y pass are no states of random generators")
        if {int(name.rpartition(".")[2]) for name in state["carried"] if name.rpartition(".")[2].isdigit()} - set(range(len(shares))):
            raise ValueError(f"state_dict: {len(state['carried'])} gradients for {len(shares)} shards")


def is_states(draws: Any) -> bool:
    """Say whether `draws` are states of random generators, or lists of such."""
    if isinstance(draws, list):
        return all(map(is_states, draws))
    return isinstance(draws, Tensor) and draws.dtype == torch.uint8 and draws.dim() == 1


class SAMPa(SharpnessAware):
    """SAMPa-lam, sequentially on one device.

    `step(closure, next_closure)` takes grad f(x~_t) on the batch of `closure` and grad f(y_{t+1}) on the next one, as in
    the paper; without `next_closure` both are taken on the same batch. It returns the loss of the y pass, which is not
    perturbed and from which running statistics are taken too. lam = 0 is SAMPa-0, lam = 1 is optimistic gradient descent.

    The y-step is the base optimizer's own step with grad f(y_t) (momentum, weight decay, preconditioning), made without
    committing its state. With a list of closures and `per_shard=True` (SAMPa with mSAM) the shards climb each along its own
    grad f(y_t). With a criterion that climbs on another loss (SAMPa with BiSAM) that loss's gradient at y_t is the direction, for
    one backward pass more.

    Args:
        base: Optimizer instance.
        rho: Radius, unless `ascent` has its own.
        lam: Share of grad f(y_{t+1}) in the update, in [0, 1].
        ascent: The climb from grad f(y_t); default: `PNorm(rho)`.
        per_shard: Every closure of a list climbs by itself.
        **options: See `SharpnessAware`.
    """

    takes_next_batch = True
    memory: YGradients

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        lam: float = 0.2,
        *,
        ascent: Ascent | None = None,
        per_shard: bool = False,
        **options: Unpack[Options],
    ) -> None:
        memory = YGradients(lam)  # checks lam first
        super().__init__(base, ascent=with_rho(ascent, rho), per_shard=per_shard, **options)
        self.memory = memory

    @property
    def lam(self) -> float:
        """Share of grad f(y_{t+1}) in the update. May be set."""
        return self.memory.lam

    @lam.setter
    def lam(self, value: float) -> None:
        self.memory.lam = in_range("lam", value, 0, 1, closed_right=True)

    def _check_composition(self) -> None:
        super()._check_composition()
        if self.scope == "local":
            raise ValueError('scope="local": SAMPa carries grad f(y) from step to step, which would differ from rank to rank')
        if not self.ascent.along_gradient:
            raise ValueError(f"SAMPa climbs along grad f(y_t); {type(self.ascent).__name__} brings a direction of its own")
        if type(self.schedule).climbs is not Schedule.climbs:
            raise ValueError(f"SAMPa climbs in every step; {type(self.schedule).__name__} leaves steps out")

    @property
    def y_gradient(self) -> Gradient:
        """Gradient of f at y_t for the coming step, aligned with parameters(); empty before the first step. For reading."""
        params = self.parameters()
        shares = self.memory.shares
        if not shares:
            return []
        if len(shares) == 1:
            return self.memory.recall("y_gradient.0", params)
        total: Gradient = []
        for i, share in enumerate(shares):
            kept = self.memory.recall(f"y_gradient.{i}", params)
            total = accumulated(total, [None if g is None else g.clone() for g in kept], share)
        return total

    def _look(self, sets: list[Shards], shares: list[float], *, frozen: bool) -> tuple[Tensor, list[Gradient]]:
        """Take loss and gradient at the present weights, which are y, and carry what the next climb needs."""
        params = self.parameters()
        carried: dict[str, dict[Tensor, Tensor]] = {}
        draws: list[Draws] = []
        losses: list[Tensor] = []
        gradients: list[Gradient] = []
        for i, (shards, share) in enumerate(zip(sets, shares, strict=True)):
            draws.append([])
            loss, gradient = self._gradient(shards, frozen=frozen, record=draws[-1])
            self._must_be_finite(gradient, loss)
            if self.criterion.climbs_on_other_loss:
                carried[f"direction.{i}"] = {p: g for p, g in zip(params, gradient, strict=True) if g is not None}
                gradient = self._gradient(shards, perturbed=True, frozen=True, replay=draws[-1])[1]
                self.gradients_computed += share
            carried[f"y_gradient.{i}"] = {p: g for p, g in zip(params, gradient, strict=True) if g is not None}
            losses.append(loss * share)
            gradients.append(gradient)
        self.gradients_computed += 1
        self.memory.carried, self.memory.shares, self.memory.draws = carried, shares, draws
        return torch.stack(losses).sum(), gradients

    def _split(self, shards: Shards) -> tuple[list[Shards], list[float]]:
        """Return the sets of closures that climb together, with their shares."""
        return ([[(c, 1.0)] for c, _ in shards], [s for _, s in shards]) if self.per_shard else ([shards], [1.0])

    def _run(self, here: Shards, there: Shards) -> Tensor:
        params = self.parameters()
        sets, shares = self._split(here)
        next_sets, next_shares = self._split(there)
        if not self.memory.shares:
            self._look(sets, shares, frozen=True)
        if len(self.memory.shares) != len(sets):
            raise ValueError(
                f"{len(sets)} closures, {len(self.memory.shares)} in the step before: SAMPa per shard needs the same number of shards"
                " in every step (cut each batch into that many, however small)"
            )
        along = "direction" if self.criterion.climbs_on_other_loss else "y_gradient"
        perturbed: Gradient = []
        for i, (shards, share) in enumerate(zip(sets, shares, strict=True)):
            draws = self.memory.draws[i] if self.memory.draws else []
            try:
                self._climb_along(self.memory.recall(f"{along}.{i}", params))
                replay = draws if len(draws) == len(shards) else None
                one = self._gradient(shards, perturbed=True, frozen=True, replay=replay)[1]
            finally:
                self._home.come_back()
            perturbed = one if len(sets) == 1 else accumulated(perturbed, one, share)
        self.gradients_computed += 1
        try:
            self._step_ahead()
            loss, results = self._look(next_sets, next_shares, frozen=False)
        finally:
            self._home.come_back()
        self._descend_along(loss, perturbed, results, next_shares)
        return loss

    def _climb_along(self, gradient: Gradient) -> None:
        """Go to x~_t."""
        index, site = self._site(gradient)
        self._climb(vectors.clone([g for g in (gradient[k] for k in index) if g is not None]), site)

    def _step_ahead(self) -> None:
        """Go to y_{t+1}."""
        params, gradient = self.parameters(), self.y_gradient
        moved = [i for i, g in enumerate(gradient) if g is not None]
        if self.decay_in_ascent:  # the base optimizer is going to add it
            gradient = self._with_decay([None if g is None else g.clone() for g in gradient], -1.0)
        self._home.leave([params[i] for i in moved], None)
        step_without_commit(self.base, [params[i] for i in moved], [g for g in gradient if g is not None])

    def _descend_along(self, loss: Tensor, perturbed: Gradient, ys: Sequence[Gradient], shares: Sequence[float]) -> None:
        """Let the base optimizer step along (1 - lam) grad f(x~_t) + lam grad f(y_{t+1}); writes into `perturbed`."""
        update: Gradient = [None if g is None else g.mul_(1 - self.lam) for g in perturbed]
        for y, share in zip(ys, shares, strict=True):
            for i, g in enumerate(y):
                if g is not None:
                    own = update[i]
                    update[i] = g * (self.lam * share) if own is None else own.add_(g, alpha=self.lam * share)
        if not self._descend(None, update):
            raise Overflow(loss)

    def _climb_from_grad(self, keep_grad: bool) -> None:
        raise RuntimeError("SAMPa climbs along the gradient of another point, not along .grad: use loss = opt.step(closure, next_closure)")
