"""Which form of a product is the cheapest: measured once, on a few examples, and reported."""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from landscape import stateless
from landscape.batches import count_examples, leaves, seed_everything
from landscape.fastforms import Form, candidates
from landscape.objective import Held, Objective

if TYPE_CHECKING:
    from landscape.curvature.over_batches import Term

_WORTH_COMPARING = 2e-3  # seconds of a product with these examples: below, the first candidate is taken unseen
_FEW = 16  # examples that are enough to compare
_CLEARLY = 0.7  # another form must take less than this share of the first one's time
_SEVERAL_CLEARLY = 0.7

_Choice = tuple[Form, dict[str, float]]
_of_objective: weakref.WeakKeyDictionary[Objective, _Choice] = weakref.WeakKeyDictionary()
_measured: dict[Any, _Choice] = {}  # by architecture, shapes and machine: one process always chooses alike
_several: dict[Any, bool] = {}


def choose(
    objective: Objective, point: Mapping[str, Tensor], held: Held, batch: Any, build: Callable[[Any, Form], Term]
) -> tuple[Form, dict[str, float]]:
    """Return the form of the model with the cheapest product, and the seconds of those that were compared.

    The first examples of the batch are enough to tell. A form is taken only if it gives them the loss and the outputs of the plain model up
    to rounding.

    Args:
        objective: whose loss.
        point: its parameters.
        held: what does not vary.
        batch: the first batch.
        build: builds what a product with a batch needs, in a form.

    Returns:
        The form, and seconds by form; none where there was nothing to compare.
    """
    if objective in _of_objective:
        return _of_objective[objective]
    forms = candidates(objective.caller().model, batch)
    batch = _first_examples(batch)
    if forms != ["plain"]:
        expected = _evaluated(objective, point, held, batch, "plain")
        forms = [form for form in forms if _same(expected, objective, point, held, batch, form)] or ["plain"]
    signature = _signature(objective, batch, forms)
    if signature not in _measured:
        _measured[signature] = _fastest(forms, partial(build, batch), point, objective.device) if len(forms) > 1 else (forms[0], {})
    _of_objective[objective] = _measured[signature]
    return _measured[signature]


def refuse_another_function(objective: Objective, point: Mapping[str, Tensor], held: Held, batch: Any, form: Form) -> None:
    """Raise ValueError if a form that somebody named gives a few examples another loss or other outputs than the plain model.

    A rewritten model is another function where modules are used in ways that no trace of the model shows, such as `conv.forward(x)`, or a
    loss that calls parts of the model.

    Args:
        objective: whose loss.
        point: its parameters.
        held: what does not vary.
        batch: the first batch.
        form: the form.

    Raises:
        ValueError: it does.
    """
    batch = _first_examples(batch)
    if form != "plain" and not _same(_evaluated(objective, point, held, batch, "plain"), objective, point, held, batch, form):
        raise ValueError(
            f"form {form!r} of this model fails, or gives another loss or other outputs than the model: leave form out, or use 'plain'"
        )


def _first_examples(batch: Any) -> Any:
    n = count_examples(batch)
    if any(t.ndim and len(t) != n for t in leaves(batch)):  # a batch that cannot be cut by examples
        return batch
    few = min(n, max(_FEW, n // 8))
    return tree_map(lambda t: t[:few] if isinstance(t, Tensor) and t.ndim else t, batch)


def _fastest(forms: list[Form], build: Callable[[Form], Term], point: Mapping[str, Tensor], device: torch.device) -> _Choice:
    """Return the first form, unless another one is clearly faster, and is so again: on a busy machine one look chooses by chance."""
    seconds: dict[str, float] = {}
    directions, chosen = list(point.values()), range(len(point))
    for look in range(2):
        for form in list(forms):
            try:
                term = build(form)
                product = partial(term.products, directions, chosen, release=False, batched=False)
                product()  # kernels are chosen in a first call
            except NotImplementedError:  # no second derivative, in whatever form
                raise
            except RuntimeError:  # such as `view` of a gradient with channels last
                forms.remove(form)
                continue
            taken = timed(product, device)
            if taken < 1.5 * seconds.get(forms[0], math.inf):  # near enough to look again
                taken = min(taken, timed(product, device))
            seconds[form] = min(taken, seconds.get(form, math.inf))
            if not look and seconds[forms[0]] < _WORTH_COMPARING:
                return forms[0], {}
            del term, product  # before the next one is built
        if not forms:
            return "plain", {}
        best = min(forms, key=lambda form: seconds[form])
        if seconds[best] >= _CLEARLY * seconds[forms[0]]:
            return forms[0], seconds
    return best, seconds


def several_at_once_pay(term: Term, parts: list[Tensor], chosen: Sequence[int], device: torch.device) -> bool:
    """Tell whether products of several vectors with one batch are clearly cheaper together than one after the other, on a GPU.

    On a CPU they never are by much, for small networks, and are slower for others (`benchmarks/products.py`).

    Args:
        term: of the batch.
        parts: the vectors, by parameter, with a first dimension of their number.
        chosen: numbers of the parameters.
        device: where they are computed.

    Returns:
        Whether they are; False where an operation of the model cannot take several.
    """
    if device.type == "cpu":
        return False
    signature = (type(term), tuple(part.shape for part in parts), device, parts[0].dtype, term.examples, torch.get_num_threads())
    if signature not in _several:

        def together() -> None:
            term.products(parts, chosen, release=False, batched=True)

        def single() -> None:
            term.products([part[0] for part in parts], chosen, release=False, batched=False)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # PyTorch warns where it takes them one after the other all the same
                timed(together, device)
            alone = min(timed(single, device) for _ in range(3))
            _several[signature] = min(timed(together, device) for _ in range(2)) < _SEVERAL_CLEARLY * alone * len(parts[0])
        except (RuntimeError, UserWarning):
            _several[signature] = False
    return _several[signature]


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, on the device, too."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _evaluated(objective: Objective, point: Mapping[str, Tensor], held: Held, batch: Any, form: Form) -> list[Tensor]:
    with stateless.undisturbed(objective.device), stateless.twice_differentiable():
        seed_everything(0, objective.device)
        loss, outputs = objective.batch_loss_and_outputs({name: t.detach() for name, t in point.items()}, batch, held, form)
    return [loss, *(t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point())]


def _same(expected: list[Tensor], objective: Objective, point: Mapping[str, Tensor], held: Held, batch: Any, form: Form) -> bool:
    try:
        found = _evaluated(objective, point, held, batch, form)
    except Exception:  # such as `view` of a tensor with channels last: whatever a model raises
        return False
    if len(found) != len(expected):
        return False
    tolerance = 3 * math.sqrt(torch.finfo(objective.dtype).eps)
    differences = [
        torch.linalg.vector_norm(a - b) <= tolerance * (1e-30 + torch.linalg.vector_norm(b)) for a, b in zip(found, expected, strict=True)
    ]
    return bool(torch.stack(differences).all())


def _signature(objective: Objective, batch: Any, forms: list[Form]) -> Any:
    shapes = tuple(tuple(p.shape) for p in objective.parameters.values())
    inputs = tuple((tuple(t.shape), t.dtype) for t in leaves(batch))
    return type(objective.model), shapes, inputs, objective.device, objective.dtype, tuple(forms), torch.get_num_threads()
