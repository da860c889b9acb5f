"""SharpnessAware: one machine for all methods, put together from an ascent, a combination and a schedule.

    loss_0, g = gradient at w              (not for ascents that do without)
    eps       = ascent(g, w)               (in steps in which the schedule climbs, as far as it says)
    g_s       = gradient at w + eps
    w         = base optimizer's step from w with combine(g, g_s)

The weights come back by copying a saved copy over them, so w is restored to the bit, also when a closure raises.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from sam_core.optim import vectors
from sam_core.optim.ascent import Ascent, PNorm, Site
from sam_core.optim.base_state import check_base_state
from sam_core.optim.batchnorm import frozen_statistics, save_statistics
from sam_core.optim.carried import Carrier
from sam_core.optim.checks import chosen_parameters, flag, in_range
from sam_core.optim.combine import Combine, FromFunction, Perturbed
from sam_core.optim.gradients import Closure, Gradient, Shards, accumulated, clear, dense, filled, present, shards_of
from sam_core.optim.home import Home
from sam_core.optim.schedule import EveryStep, Never, Schedule
from sam_core.optim.second_order import eps_with_graph, with_second_order


class Options(TypedDict, total=False):
    """Keywords that every method takes."""

    model: nn.Module | None  # freezes running statistics in perturbed passes; names and layer types for methods that ask
    schedule: Schedule | None  # when to climb and how far
    only: Iterable[Tensor] | None  # perturb these parameters only


class Visit(NamedTuple):
    """What one shard (or the whole batch) gave."""

    loss: Tensor
    clean: Gradient | None
    perturbed: Gradient | None  # None: the schedule did not climb
    passes: int


def added(mean: Visit | None, visit: Visit, share: float) -> Visit:
    """Return the weighted mean so far with one more visit."""
    before = mean or Visit(torch.zeros_like(visit.loss), None, None, 0)
    return Visit(
        before.loss + visit.loss * share,
        None if visit.clean is None else accumulated(before.clean or [], visit.clean, share),
        None if visit.perturbed is None else accumulated(before.perturbed or [], visit.perturbed, share),
        visit.passes,
    )


class Pending(NamedTuple):
    """What first_step() or perturb() leaves for second_step()."""

    clean: Gradient | None
    climbed: bool
    undo: Callable[[], None]
    versions: list[int] | None  # of the parameters after perturb(): a step since then shows in them


class SharpnessAware(Optimizer):
    """A sharpness-aware method around a `torch.optim` optimizer.

    `step(closure)` returns the loss of the clean pass (of the only pass for methods with one gradient). A closure clears
    the gradients, runs forward and backward and returns the loss; a list of closures is a batch in pieces, whose gradients
    are averaged: the same step as with the whole batch, or with `per_shard=True` a climb of its own for every piece (mSAM).

    Parameter groups are those of the base optimizer. A group may set its own `rho`, and `perturb=False` keeps it out of
    the climb (and out of its norm); learning-rate schedulers go on the base optimizer or on this one.
    """

    takes_next_batch = False  # step(closure, next_closure): the method uses two different batches

    def __init__(
        self,
        base: Optimizer,
        *,
        ascent: Ascent | None = None,
        combine: Combine | Callable[[list[Tensor], list[Tensor]], list[Tensor]] | None = None,
        schedule: Schedule | None = None,
        model: nn.Module | None = None,
        only: Iterable[Tensor] | None = None,
        per_shard: bool = False,
        second_order: bool = False,
    ) -> None:
        if not isinstance(base, Optimizer):
            shown = f"the class {base.__name__}" if isinstance(base, type) else repr(base)[:80]
            raise TypeError(
                "base must be a torch.optim.Optimizer instance, as in "
                f"SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05); not {shown}"
            )
        if isinstance(base, (SharpnessAware, LBFGS)):
            raise TypeError(f"base cannot be a {type(base).__name__}: its step runs closures of its own")
        ascent = PNorm(0.05) if ascent is None else ascent
        combine = Perturbed() if combine is None else combine
        schedule = EveryStep() if schedule is None else schedule
        if not isinstance(combine, Combine) and (isinstance(combine, type) or not callable(combine)):
            raise TypeError(f"combine must be a Combine instance or a function (g, g_s) -> gradient, not {combine!r}")
        for name, part, kind in (("ascent", ascent, Ascent), ("schedule", schedule, Schedule)):
            if not isinstance(part, kind):
                raise TypeError(f"{name} must be a {kind.__name__} instance, not {part!r}")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {model!r}")
        self._base: Optimizer | None = None
        super().__init__(base.param_groups, dict(base.defaults))  # checks the groups; they stay the base's own
        self._base = base
        self.ascent = ascent.fresh()
        self.combine = (combine if isinstance(combine, Combine) else FromFunction(combine)).fresh()
        self.schedule = schedule.fresh()
        self.memory = Carrier()  # what the method as a whole carries along
        self.model = model
        self.per_shard = flag("per_shard", per_shard)
        self.second_order = flag("second_order", second_order)
        self.steps = 0  # steps made
        self.gradients_computed = 0  # in units of one gradient of the whole batch
        self._only = None if only is None else chosen_parameters(only, self.parameters())
        self._scaled: tuple[int, list[bool] | None] | None = None
        self._home = Home()
        self._pending: Pending | None = None
        self._frozen = ExitStack()  # running statistics between first_step and second_step
        self._check_composition()
        for group in base.param_groups:
            self._check_group(group)

    def _check_composition(self) -> None:
        """Refuse parts that make no sense together."""
        if self.ascent.rho is None:
            raise ValueError("rho is not set: give it to the ascent, as in ascent=PNorm(rho=0.05)")
        if self.per_shard and self.ascent.remembers():
            raise ValueError(
                f"{type(self.ascent).__name__} carries a direction from step to step, which the shards of one step do not "
                "have: use it without per_shard"
            )
        if self.per_shard and self.schedule.looks_at_gradient:
            raise ValueError(f"{type(self.schedule).__name__} decides by the gradient of the batch: use it without per_shard")
        if self.second_order and not self.ascent.differentiable:
            raise ValueError(f"second_order=True needs an ascent that depends on g and w alone, not {type(self.ascent).__name__}")

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group whose own settings are invalid."""
        flag("perturb of a parameter group", group.get("perturb", True))
        if group.get("maximize") and not isinstance(self.schedule, Never):
            raise ValueError("maximize=True: the climb would lead towards the optimum; minimise the negative loss instead")
        if "rho" in group and "rho" not in self.base.defaults:
            in_range("rho of a parameter group", group["rho"], 0, float("inf"))

    # -- the base optimizer's groups and state are shared, also after base.load_state_dict() replaced them

    @property
    def base(self) -> Optimizer:
        """The optimizer that makes the steps."""
        assert self._base is not None
        return self._base

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base optimizer."""
        return self.__dict__["_own_groups"] if self._base is None else self._base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self._base is None:
            self.__dict__["_own_groups"] = groups
        else:
            self._base.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the base optimizer."""
        return self.__dict__["_own_state"] if self._base is None else self._base.state

    @state.setter
    def state(self, state: Any) -> None:
        if self._base is None:
            self.__dict__["_own_state"] = state
        else:
            self._base.state = state

    @property
    def rho(self) -> float:
        """The radius, before the schedule; groups may have their own. May be set."""
        assert self.ascent.rho is not None
        return self.ascent.rho

    @rho.setter
    def rho(self, value: float) -> None:
        self.ascent.rho = in_range("rho", value, 0, float("inf"))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if self._base is None:
            super().add_param_group(param_group)
        else:
            self._check_group(param_group)
            self._base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.base.zero_grad(set_to_none)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name}={type(part).__name__}"
            for name, part in (("ascent", self.ascent), ("combine", self.combine), ("schedule", self.schedule))
        )
        return f"{type(self).__name__}(rho={self.ascent.rho}, {parts}, base={type(self.base).__name__})"

    def __getstate__(self) -> dict[str, Any]:
        self._must_be_home("copying or pickling")
        # a scheduler hides `step` behind a function bound to this very object
        left_out = ("_own_groups", "_own_state", "step")
        return {
            **{key: v for key, v in self.__dict__.items() if key not in left_out},
            "_home": Home(),
            "_pending": None,
            "_frozen": ExitStack(),
        }

    def parameters(self) -> list[Tensor]:
        """Return all parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    # -- gradients

    def _gradient(self, shards: Shards, *, frozen: bool = False) -> tuple[Tensor, Gradient]:
        """Return mean loss and mean gradient of the shards at the present weights; .grad is empty before and after.

        Every gradient that a method asks for comes from here. `frozen` keeps running statistics as they are.

        Raises:
            TypeError: The closure returned no loss.
            ValueError: It returned more than one number, or left no gradient, or a sparse one.
        """
        params = self.parameters()
        loss: Tensor | None = None
        total: Gradient = []
        with frozen_statistics(self.model if frozen else None):
            for closure, share in shards:
                with torch.enable_grad():
                    value = closure()
                if not isinstance(value, (Tensor, float)):
                    raise TypeError(f"the closure must return the loss, a 0-dim tensor; it returned {value!r}")
                value = torch.as_tensor(value).detach()
                if value.numel() != 1:
                    raise ValueError(f"the closure must return the loss, a 0-dim tensor; it returned one of shape {tuple(value.shape)}")
                value = value.reshape(())
                gradient = self._take_gradient(params)
                if len(shards) > 1:
                    value = value * share
                    with torch.set_grad_enabled(self.second_order):
                        gradient = accumulated(total, gradient, share)
                loss, total = value if loss is None else loss + value, gradient
        assert loss is not None
        if all(g is None for g in total):
            raise ValueError("after the closure no parameter has a gradient: does it call loss.backward()?")
        return loss, total

    def _take_gradient(self, params: Sequence[Tensor]) -> Gradient:
        """Take the gradients out of .grad, detached unless the second-order term needs their graph."""
        taken = dense([p.grad for p in params])
        clear(params)
        return taken if self.second_order else [g.detach() if g is not None and g.requires_grad else g for g in taken]

    # -- moving the weights and bringing them back

    def _site(self, gradient: Gradient | None) -> tuple[list[int], Site]:
        """Return which parameters move, decided by the gradient that is at hand, and all the ascent asks about them."""
        everywhere = self.parameters()
        own_rho = "rho" not in self.base.defaults
        index: list[int] = []
        radii: list[float] = []
        i = 0
        for group in self.param_groups:
            size = len(group["params"])
            if group.get("perturb", True):
                rho = group.get("rho", self.rho) if own_rho else self.rho
                radius = self.schedule.radius(rho, self.steps, group)
                members = [
                    k
                    for k in range(i, i + size)
                    if (everywhere[k].requires_grad if gradient is None else gradient[k] is not None)
                    and (self._only is None or everywhere[k] in self._only)
                ]
                index += members
                radii += [radius] * len(members)
            i += size
        scaled = self._scales(everywhere)
        one_radius = len(set(radii)) <= 1
        return index, Site(
            params=[everywhere[k] for k in index],
            rho=(radii[0] if radii else 0.0) if one_radius else radii,
            scaled=None if scaled is None else [scaled[k] for k in index],
            base=self.base,
        )

    def _scales(self, params: Sequence[Tensor]) -> list[bool] | None:
        """Return what the ascent says about the parameters, asked once for each set of them."""
        if self._scaled is None or self._scaled[0] != len(params):
            self._scaled = (len(params), self.ascent.scales(params, self._names(params)))
        return self._scaled[1]

    def _climb(self, slope: list[Tensor] | None, site: Site) -> list[Tensor]:
        """Return eps; there may be nothing that moves, if all that has a gradient is kept out of the climb."""
        return self.ascent.climb(slope, site) if site.params else []

    def _names(self, params: Sequence[Tensor]) -> list[str] | None:
        """Return the names of the parameters, if the model or the base optimizer knows them."""
        if self.model is not None:
            names: dict[Tensor, str] = {p: name for name, p in self.model.named_parameters()}
            return [names.get(p, "") for p in params]
        if all("param_names" in group for group in self.param_groups):
            return [name for group in self.param_groups for name in group["param_names"]]
        return None

    def _must_be_home(self, what: str) -> None:
        if self._home.empty:
            raise RuntimeError(f"{what}: the weights are still perturbed; first call second_step() or restore(), or leave perturb()")

    # -- the step

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Closure | Sequence[Closure] | None = None,
        next_closure: Closure | Sequence[Closure] | None = None,
        *,
        weights: Sequence[float] | None = None,
        next_weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Make one step and return the clean loss, detached.

        Args:
            closure: Clears gradients, runs forward and backward, returns the loss; or a list of such, one per shard.
            next_closure: The same for the following batch, for methods that use two (SAMPa, SAM-db).
            weights: Sizes of the shards; None: all equal.
            next_weights: The same for `next_closure`.

        Returns:
            The loss at the weights before the step; for methods with a single gradient, where that gradient was taken.

        Raises:
            TypeError: A closure is missing, or there is one that the method does not use.
            ValueError: This batch and the next have different numbers of shards, where each shard climbs by itself.
        """
        self._must_be_home("step()")
        here = shards_of(closure, weights)
        if next_closure is None:
            there = here
        elif self.takes_next_batch:
            there = shards_of(next_closure, next_weights)
        else:
            raise TypeError(f"{type(self).__name__} uses one batch per step: leave next_closure out")
        if self.per_shard and len(here) != len(there):
            raise ValueError(f"{len(here)} closures for this batch, {len(there)} for the next: they must be equally many")
        self._let_go()
        clear(self.parameters())
        undo = self._savepoint(statistics=True)
        try:
            loss = self._run(here, there)
        except BaseException:
            undo()
            clear(self.parameters())
            raise
        self.steps += 1
        return loss

    def _run(self, here: Shards, there: Shards) -> Tensor:
        """Compute the gradients of one step and descend; return the loss."""
        climbing = None if self.schedule.looks_at_gradient else self.schedule.climbs(self.steps)
        if not self.per_shard or len(here) == 1:
            visit = self._visit(here, there, climbing)
            loss, clean, perturbed, passes = visit
        else:
            mean: Visit | None = None
            for (c, share), (d, _) in zip(here, there, strict=True):
                mean = added(mean, self._visit([(c, 1.0)], [(d, 1.0)], climbing), share)
            assert mean is not None
            loss, clean, perturbed, passes = mean
        self.gradients_computed += passes
        self._descend(clean, perturbed)
        return loss

    def _visit(self, here: Shards, there: Shards, climbing: bool | None) -> Visit:
        """Take the clean gradient, climb, take the perturbed gradient, come back. `climbing` None: ask the schedule."""
        loss: Tensor | None = None
        clean: Gradient | None = None
        if not climbing or self.combine.needs_clean or self.ascent.needs_gradient():
            loss, clean = self._gradient(here)
        if climbing is None:
            assert clean is not None
            climbing = self.schedule.climbs(self.steps, [g for g in clean if g is not None])
        if not climbing:
            assert loss is not None and clean is not None
            return Visit(loss, [None if g is None else g.detach() for g in clean], None, 1)
        index, site = self._site(clean)
        slope = None if clean is None else [g for g in (clean[i] for i in index) if g is not None]
        kept: Gradient | None = None
        if self.combine.needs_clean and clean is not None:
            kept = [None if g is None else g.detach().clone() for g in clean]
        del clean
        graph: list[Tensor] = []
        try:
            if self.second_order:
                graph = eps_with_graph(self.ascent, slope, site)
                self._home.leave(site.params, [e.detach() for e in graph], keep_graphs=True)
            else:
                self._home.leave(site.params, self._climb(slope, site))
            del slope  # eps was made in its storage: with the saved weights, one extra copy of the parameters is alive
            perturbed_loss, perturbed = self._gradient(there, frozen=loss is not None)
        finally:
            self._home.come_back()
        if self.second_order:
            perturbed = with_second_order(perturbed, self.parameters(), index, graph)
        self._observe(perturbed)
        return Visit(perturbed_loss if loss is None else loss, kept, perturbed, 1 if loss is None else 2)

    def _observe(self, perturbed: Gradient) -> None:
        _, params, gradients = present(self.parameters(), perturbed)
        self.ascent.observe(params, gradients)

    def _descend(self, clean: Gradient | None, perturbed: Gradient | None) -> None:
        """Give the combined gradient to the base optimizer and let it step."""
        params = self.parameters()
        if perturbed is None:
            assert clean is not None
            index, own, gradient = present(params, clean)
            gradient = self.combine.rest(own, gradient)
        elif self.combine.needs_clean:
            assert clean is not None
            index = [i for i, (g, s) in enumerate(zip(clean, perturbed, strict=True)) if not (g is None and s is None)]
            own = [params[i] for i in index]
            gradient = self.combine.combine(own, filled(clean, index, own), filled(perturbed, index, own))
        else:
            index, own, gradient = present(params, perturbed)
            gradient = self.combine.combine(own, None, gradient)
        for p, g in zip(own, gradient, strict=True):
            p.grad = g
        self.base.step()
        drift = self.combine.drift()
        if drift is not None:
            rates = [group["lr"] for group in self.param_groups for _ in group["params"]]
            for i, p, d in zip(index, own, drift, strict=True):
                p.sub_(d * rates[i])

    # -- the explicit forms

    def _savepoint(self, statistics: bool = False) -> Callable[[], None]:
        """Return a function that takes back what a step changes besides the weights; costs no copy of a parameter."""
        points = [part.savepoint() for part in self._parts().values()]
        if statistics:
            points.append(save_statistics(self.model)[1])
        counted = self.gradients_computed

        def put_back() -> None:
            for point in points:
                point()
            self.gradients_computed = counted

        return put_back

    def _let_go(self) -> None:
        """Forget a climb that was not followed by second_step(); what it changed in averages stays."""
        self._frozen.close()
        self._pending = None

    def _climb_from_grad(self, keep_grad: bool) -> None:
        """Climb along the gradients found in .grad, if the schedule climbs in this step."""
        if self.second_order:
            raise RuntimeError("second_order=True works with step(closure) only")
        self._let_go()
        params = self.parameters()
        clean = dense([None if p.grad is None else p.grad.detach() for p in params])
        found = [g for g in clean if g is not None]
        if not found and (self.ascent.needs_gradient() or self.combine.needs_clean):
            raise RuntimeError("no parameter has a gradient: call loss.backward() before first_step() or perturb()")
        undo = self._savepoint()
        try:
            climbing = self.schedule.climbs(self.steps, found)
            index, site = self._site(clean if self.ascent.needs_gradient() else None)
            slope = [g for g in (clean[i] for i in index) if g is not None] if self.ascent.needs_gradient() else None
            kept: Gradient | None = None
            if self.combine.needs_clean or not climbing:
                kept = [None if g is None else g.clone() for g in clean]
            if climbing:
                own = vectors.clone(slope) if slope is not None and keep_grad else slope
                self._home.leave(site.params, self._climb(own, site))
        except BaseException:
            self._home.come_back()
            undo()
            raise
        self._pending = Pending(kept, climbing, undo, None)
        self.gradients_computed += 1 if found else 0

    def _no_shards(self, what: str) -> None:
        if self.per_shard:
            raise RuntimeError(f"{type(self).__name__} climbs once for every shard, which {what} cannot do: use step([closure, ...])")

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move to w + eps, along the gradients found in .grad; second_step() comes back and descends, restore() only comes back."""
        self._must_be_home("first_step()")
        self._no_shards("first_step()")
        self._climb_from_grad(keep_grad=not zero_grad)
        self._frozen.enter_context(frozen_statistics(self.model))
        if zero_grad:
            clear(self.parameters())

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Come back to w and make the base optimizer's step; .grad holds the gradient at w + eps.

        Raises:
            RuntimeError: There was no first_step() or perturb() before, no gradient was computed since, or the weights
                have been changed since perturb().
        """
        self._no_shards("second_step()")
        if self._pending is None:
            raise RuntimeError(
                "second_step() without first_step(): the order is loss.backward(), first_step(zero_grad=True), "
                "loss.backward() again, second_step(zero_grad=True)"
            )
        clean, climbed, undo, versions = self._pending
        params = self.parameters()
        if versions is not None and versions != [p._version for p in params]:
            self._let_go()
            raise RuntimeError("second_step() without first_step(): the weights have been changed since perturb()")
        if climbed and all(p.grad is None for p in params):
            raise RuntimeError(
                "no parameter has a gradient: call loss.backward() between first_step() and second_step(), or restore() to come "
                "back without a step"
            )
        perturbed = self._take_gradient(params)
        self._home.come_back()
        self._let_go()
        try:
            if climbed:
                self._observe(perturbed)
                self.gradients_computed += 1
            self._descend(clean, perturbed if climbed else None)
        except BaseException:
            undo()
            raise
        self.steps += 1
        self._opt_called = True  # schedulers put on this optimizer watch step(), which is not called in this form
        if zero_grad:
            self.zero_grad()

    def restore(self) -> None:
        """Come back to w without a step: first_step() is undone, .grad stays. Nothing to do if there was none."""
        self._home.come_back()
        pending = self._pending
        self._let_go()
        if pending is not None:
            pending.undo()

    @contextmanager
    def perturb(self) -> Iterator[None]:
        """Within the block the weights are w + eps, along the gradients found in .grad; after it they are w, to the bit.

        .grad is empty on entering. A backward pass inside leaves its gradient there, and second_step() (which combines)
        or the base optimizer may step with it. Without one the block has only measured: .grad and all that the method
        carries are put back as they were; after an exception too.
        """
        self._must_be_home("perturb()")
        params = self.parameters()
        before = [p.grad for p in params]
        measured = True
        try:
            with torch.no_grad():
                self._climb_from_grad(keep_grad=True)
            clear(params)
            with frozen_statistics(self.model):
                yield
            measured = all(p.grad is None for p in params)
        finally:
            if measured:
                self.restore()
                for p, g in zip(params, before, strict=True):
                    p.grad = g
            else:
                self._home.come_back()
                if self._pending is not None:
                    self._pending = self._pending._replace(versions=[p._version for p in params])

    # -- checkpoints

    def _parts(self) -> dict[str, Carrier]:
        return {"ascent": self.ascent, "combine": self.combine, "schedule": self.schedule, "memory": self.memory}

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and all that the method carries; never a copy of the weights or of eps."""
        self._must_be_home("state_dict()")
        params = self.parameters()
        return {
            "base": self.base.state_dict(),
            "steps": self.steps,
            "gradients_computed": self.gradients_computed,
            **{name: part.state_dict(params) for name, part in self._parts().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what state_dict() returned.

        Raises:
            ValueError: It belongs to another method, another model, or to a bare optimizer, or it is damaged.
        """
        self._must_be_home("load_state_dict()")
        parts = self._parts()
        if not isinstance(state_dict, Mapping):
            raise ValueError(f"state_dict must be what state_dict() returned, not a {type(state_dict).__name__}")
        missing = [key for key in ("base", "steps", "gradients_computed", *parts) if key not in state_dict]
        if missing:
            raise ValueError(
                f"state_dict has no {', '.join(missing)}: it is not from {type(self).__name__}; the state of a bare "
                "optimizer is loaded with opt.base.load_state_dict(...)"
            )
        for name in ("steps", "gradients_computed"):
            number = state_dict[name]
            allowed = int if name == "steps" else (int, float)
            if isinstance(number, bool) or not isinstance(number, allowed) or not 0 <= number < float("inf"):
                raise ValueError(f"state_dict: {name} must be a number of at least 0, not {number!r}")
        params = self.parameters()
        for name, part in parts.items():
            part.check_state(state_dict[name], params)
        if state_dict["ascent"]["settings"].get("rho", 0) is None:
            raise ValueError("state_dict: the ascent has no rho")
        check_base_state(state_dict["base"], self.base)
        self.base.load_state_dict(state_dict["base"])
        for name, part in parts.items():
            part.load_state_dict(state_dict[name], params)
        self.steps, self.gradients_computed = state_dict["steps"], state_dict["gradients_computed"]
        self._scaled = None
        self._let_go()
