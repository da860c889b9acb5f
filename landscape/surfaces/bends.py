"""Training the bends of a curve between two minima, step by step, such that it can go on from any step to the same bits.

Each step draws one t, uniformly, and moves the bends along their parts c_k(t) of the gradient at w(t) (Garipov et al. 2018, algorithm 1).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from landscape.batches import count_examples, seed_torch
from landscape.objective import NonFiniteLossError, Objective, Parameters, differentiable
from landscape.progress import progress as progress_bar
from landscape.stateless import recurrent_gradients
from landscape.surfaces.curves import CurveType, coefficients, place
from landscape.surfaces.over_ranks import Dealer
from landscape.surfaces.unfinished import Stage, Unfinished
from landscape.surfaces.weights import Weights, statistics_names


class Training:
    """The bends of a curve while they are trained, and what is needed to go on from any step to the same bits."""

    def __init__(
        self,
        objective: Objective,
        ends: Sequence[Weights],
        curve: CurveType,
        bends: int,
        epochs: int,
        lr: float,
        momentum: float,
        weight_decay: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self._objective, self._curve, self._epochs, self._lr, self._weight_decay = objective, curve, epochs, lr, weight_decay
        first, last = (end.parameters for end in ends)
        self.bends = [{n: torch.lerp(first[n], last[n], (k + 1) / (bends + 1)) for n in objective.names} for k in range(bends)]
        self._corners = [first, *self.bends, last]
        self._optimizer = torch.optim.SGD([bend[n] for bend in self.bends for n in objective.names], lr=lr, momentum=momentum)
        self._generator = torch.Generator().manual_seed(seed)
        self._read = _reader(objective, batch_size)
        self.history: list[float] = []  # the mean loss of every epoch
        self._step = self._in_epoch = 0
        self._epoch_began = self._step_began = self._generator.get_state()
        self._total, self._weight = torch.zeros((), dtype=torch.float64, device=objective.device), 0.0
        self._examples, self.seconds_before, self._started = 0, 0.0, time.perf_counter()
        self._whole = True  # not in the middle of a step

    @property
    def gradients(self) -> float:
        """Passes over the data with their gradients."""
        return self._examples / self._objective.examples

    def state(self) -> Stage:
        """Return what `_go_on` takes, before or after a step."""
        return {
            "bends": [{n: t.cpu() for n, t in bend.items()} for bend in self.bends],
            "optimizer": self._optimizer.state_dict(),
            "generators": (self._epoch_began, self._step_began),
            "history": list(self.history),
            "at": (self._step, self._in_epoch, self._weight, self._examples),
            "total": self._total.clone(),
            "seconds": self.seconds_before + time.perf_counter() - self._started,
        }

    def _go_on(self, state: Stage) -> None:
        for bend, kept in zip(self.bends, state["bends"], strict=True):
            for n, t in kept.items():
                bend[n].copy_(t)
        self._optimizer.load_state_dict(state["optimizer"])
        self._epoch_began, self._step_began = state["generators"]
        self.history = list(state["history"])
        self._step, self._in_epoch, self._weight, self._examples = state["at"]
        self._total.copy_(state["total"])
        self.seconds_before = state["seconds"]

    def run(self, unfinished: Unfinished | None, dealer: Dealer | None, show: bool | None) -> None:
        """Train to the end; among ranks the first one does, and the others wait for what it finds."""
        if dealer is None or dealer.leads:
            begun = None if unfinished is None else unfinished.stage("training")
            if begun is not None:
                self._go_on(begun)
            try:
                self._train(unfinished, show)
            except BaseException:
                if unfinished is not None and self._whole:
                    unfinished.keep("training", self.state, now=True)
                raise
            if unfinished is not None:
                unfinished.note("training", self.state())
        if dealer is not None:
            found = dealer.after("trained", self.state() if dealer.leads else {})
            if not dealer.leads:
                self._go_on(found | {"seconds": 0.0})

    def _train(self, unfinished: Unfinished | None, show: bool | None) -> None:
        objective, corners, generator = self._objective, self._corners, self._generator
        here = {n: differentiable(p.clone()) for n, p in corners[0].items()}
        with (
            recurrent_gradients(objective.model, objective.device),
            progress_bar(self._epochs * objective.examples, f"training {self._curve}", "example", show=show) as bar,
        ):
            bar.update(self._examples)
            training = _with_batch_statistics(objective)
            while len(self.history) < self._epochs:
                self._optimizer.param_groups[0]["lr"] = self._lr * _slowed((len(self.history) + 0.5) / self._epochs)
                generator.set_state(self._epoch_began)
                with closing(self._read(generator)) as batches:
                    for index, batch in enumerate(batches):
                        if index < self._in_epoch:
                            continue
                        if index:  # the first step follows on the order of the examples
                            generator.set_state(self._step_began)
                        self._take_step(training, here, batch)
                        bar.update(count_examples(batch))
                        if unfinished is not None:
                            unfinished.keep("training", self.state)
                if not self._weight:
                    raise ValueError("every batch holds one example, and batch norm trains with the statistics of two or more")
                mean = float(self._total) / self._weight
                if not np.isfinite(mean):
                    raise NonFiniteLossError(
                        f"training the curve diverged in epoch {len(self.history) + 1}: try a smaller lr than {self._lr}"
                    )
                self._whole = False
                objective.count("gradients", self._weight)
                self.history.append(mean)
                self._epoch_began = self._step_began = generator.get_state()
                self._in_epoch, self._weight = 0, 0.0
                self._total.zero_()
                self._whole = True

    def _take_step(self, training: Objective, here: Parameters, batch: Any) -> None:
        """Move the bends along their parts of the gradient at one place on the curve."""
        names, device, n = self._objective.names, self._objective.device, count_examples(batch)
        t = torch.rand((), generator=self._generator, dtype=torch.float64).numpy().reshape(1)
        shares = coefficients(self._curve, len(self._corners), t)[0].tolist()
        place(self._corners, shares, here)
        seed_torch(self._step, device)
        with torch.enable_grad():
            loss = training.batch_loss(here, batch)
            grads = torch.autograd.grad(loss, list(here.values()), allow_unused=True)
        for k, bend in enumerate(self.bends):
            for name, g in zip(names, grads, strict=True):
                decay = self._weight_decay * here[name].detach() if self._weight_decay else None
                whole = g if decay is None else decay if g is None else g + decay
                bend[name].grad = None if whole is None else whole * shares[k + 1]
        self._whole = False
        self._optimizer.step()
        self._total += loss.detach().double() * n
        self._weight += n
        self._examples += n
        self._step, self._in_epoch, self._step_began = self._step + 1, self._in_epoch + 1, self._generator.get_state()
        self._whole = True


def _slowed(done: float) -> float:
    """Return the factor of the learning rate after a share of the epochs (Garipov et al. 2018)."""
    return 1.0 if done < 0.5 else max(0.01, 1 - 0.99 * (done - 0.5) / 0.4)


def _with_batch_statistics(objective: Objective) -> Objective:
    """Return the same loss with batch norm as in training, of which only `batch_loss` is asked."""
    if not statistics_names(objective):
        return objective
    return Objective(
        objective.model,
        objective.loss_function,
        [next(iter(objective.batches))],
        params=[_literally(name) for name in objective.names],
        dtype=objective.dtype,
        device=objective.device,
        batch_norm="batch",
        takes=objective.takes,
        reduction=objective.reduction,
        weight=objective.weight,
    )


def _literally(name: str) -> str:
    """Return the pattern that only this name matches."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def has_batch_norm(objective: Objective) -> bool:
    """Say whether a model has batch norm."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in objective.model.modules())


def _reader(objective: Objective, batch_size: int) -> Callable[[torch.Generator], Generator[Any, None, None]]:
    """Return a function that yields the batches of an epoch: shuffled if the data are tensors, else as the loader gives them."""
    least = 2 if has_batch_norm(objective) else 1  # one example has no batch statistics
    if not objective.batches.in_memory:

        def given(_: torch.Generator) -> Generator[Any, None, None]:
            with closing(iter(objective.batches)) as batches:
                yield from (batch for batch in batches if count_examples(batch) >= least)

        return given
    parts = list(objective.batches)
    whole = tree_map(lambda *t: torch.cat(t) if isinstance(t[0], Tensor) else t[0], *parts)

    def read(generator: torch.Generator) -> Generator[Any, None, None]:
        order = torch.randperm(objective.examples, generator=generator).to(objective.device)
        for chosen in torch.split(order, batch_size):
            if len(chosen) >= least:
                yield tree_map(lambda t, i=chosen: t[i] if isinstance(t, Tensor) else t, whole)

    return read
