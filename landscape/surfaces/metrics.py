"""Further numbers of a model's outputs, measured in the same pass as the loss: the error, whether the class is among the first five, ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from landscape.objective import Objective
from landscape.stateless import undisturbed

Metric = Callable[[Any, Any], Any]  # (outputs, target) of a batch to its mean over the examples


def error(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the share of examples (n, ...) whose largest output (n, c, ...) is not that of their class."""
    return (outputs.argmax(1) != target).double().mean()


def top5(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the share of examples (n, ...) whose class is among the five largest outputs (n, c, ...), all of fewer."""
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return (best == target.unsqueeze(1)).any(1).double().mean()


def confidence(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the largest softmax probability."""
    return outputs.softmax(1).amax(1).double().mean()


def brier(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean of sum_c (p_c - [c = target])^2, p the softmax of the outputs (n, c) (Brier 1950)."""
    p = outputs.double().softmax(1)
    at_class = p.gather(1, target.unsqueeze(1)).squeeze(1)
    return ((p**2).sum(1) - 2 * at_class + 1).mean()


def margin(outputs: Tensor, target: Tensor) -> Tensor:
    """Return the mean of the output (n, c) of the class minus the largest other one."""
    own = outputs.gather(1, target.unsqueeze(1))
    others = outputs.scatter(1, target.unsqueeze(1), -math.inf)
    return (own.squeeze(1) - others.amax(1)).double().mean()


METRICS: dict[str, Metric] = {f.__name__: f for f in (error, top5, confidence, brier, margin)}


def check_metrics(metrics: object) -> dict[str, Metric]:
    """Return metrics by name.

    Args:
        metrics: functions by name, or None.

    Returns:
        The same, sorted.

    Raises:
        ValueError: they are not that.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ValueError(f"metrics must be a dictionary of functions (outputs, target) by name, got {type(metrics).__name__}")
    for name, function in metrics.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"metrics: names must be words, got {name!r}")
        if name in ("loss", "accuracy", "stderr"):
            raise ValueError(f"metrics: {name} is there by itself, choose another name")
        if not callable(function):
            raise ValueError(f"metrics: {name} must be a function (outputs, target), got {type(function).__name__}")
    return dict(sorted(metrics.items()))  # as JSON keeps them


def measured(metrics: tuple[Metric, ...], outputs: Any, target: Any, device: torch.device) -> Tensor:
    """Return the metrics (m,) of a batch, float64, without a look at them."""
    values = [torch.as_tensor(metric(outputs, target), device=device).detach().to(torch.float64).reshape(()) for metric in metrics]
    return torch.stack(values) if values else torch.zeros(0, dtype=torch.float64, device=device)


def fingerprint(objective: Objective, metrics: Mapping[str, Metric]) -> dict[str, dict[str, Any]]:
    """Return what tells metrics apart: their functions' names, and what they are on the first batch at the model's parameters.

    Args:
        objective: whose outputs and targets they take.
        metrics: by name.

    Returns:
        "function" and "at_parameters" of each, ready for JSON.

    Raises:
        ValueError: there are no outputs to give them, or one of them returns no number.
    """
    if not metrics:
        return {}
    if objective.takes != "outputs":
        raise ValueError("metrics take (outputs, target), and a loss of the form loss(model, batch) gives no outputs")
    found: dict[str, dict[str, Any]] = {}
    with undisturbed(objective.device), closing(objective.batches.seeded()) as batches:
        batch = next(batches)[1]
        _, outputs = objective.batch_loss_and_outputs(objective.parameters, batch)
        for name, metric in metrics.items():
            try:
                value = float(measured((metric,), outputs, batch[1], objective.device))
            except (TypeError, ValueError, RuntimeError, IndexError) as wrong:
                said = " ".join(str(wrong).split())[:200]
                raise ValueError(f"metrics: {name} gives no number for the outputs and targets of a batch: {said}") from wrong
            module, called = (getattr(metric, key, None) for key in ("__module__", "__qualname__"))
            function = f"{module}.{called}" if called else type(metric).__qualname__
            found[name] = {"function": function, "at_parameters": value if math.isfinite(value) else None}
    return found


def same_metrics(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether fingerprints are of the same metrics, on whatever machine they were taken."""
    return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    a, b = one.get("at_parameters"), other.get("at_parameters")
    alike = a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-6)
    return one.get("function") == other.get("function") and alike
