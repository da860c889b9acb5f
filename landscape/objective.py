"""The loss of a model on a data set as a function of its parameters: the one thing that every measurement asks.

The model is never written to. Its modules are copied without their tensors' memory (parameters and buffers are shared), the copy is put
into evaluation mode, and every call passes the parameters in (`torch.func.functional_call`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from landscape.batches import Batches, count_examples, leaves, seed_torch
from landscape.fastforms import Form, images_last, rewrite
from landscape.overwriting import overwriting
from landscape.provenance import command_line, device_name, library_version, names_sha256, tensors_sha256
from landscape.results.types import Cost, Provenance
from landscape.stateless import (
    LossCall,
    Lowered,
    form_of,
    recurrent_gradients,
    scalar,
    skeleton_of,
    twice_differentiable,
    undisturbed,
    unwrapped,
    written_buffers,
)

__all__ = ["Evaluation", "Held", "Meter", "NonFiniteLossError", "Objective", "Parameters", "tensors_sha256", "twice_differentiable"]

Parameters = dict[str, Tensor]


class NonFiniteLossError(ValueError):
    """The loss, or its gradient, is NaN or infinite where a measurement needs a number."""


class Evaluation(NamedTuple):
    """Loss and accuracy over the whole data, still on the device."""

    loss: Tensor  # float64 scalar
    accuracy: Tensor  # float64 scalar, NaN where the task has none


class Held(NamedTuple):
    """What the loss holds fixed while parameters vary, as the model had it at one moment."""

    fixed: Parameters  # frozen parameters, and the buffers that are only read
    written: Parameters  # buffers that a forward pass may write: every call gets a copy


class Objective:
    r"""The mean loss over a data set, L(w) = sum_b n_b loss_b(w) / sum_b n_b, with n_b the number of examples in batch b.

    A model that draws random numbers where it is evaluated draws the same ones for a batch at every point, whatever the global seed.
    Forward hooks are part of the model: they run in every evaluation.

    Args:
        model: any `torch.nn.Module`; it is only read, now and later: after further training the objective sees the new parameters.
        loss: `loss(outputs, target)` for batches that are pairs, with outputs = model(inputs) (`model(*inputs)` for a tuple,
            `model(**inputs)` for a dictionary); or `loss(model, batch)` for anything else. Both return a scalar.
        data: a tuple (inputs, targets) of tensors, a DataLoader, or a list of batches. Every pass reads the same batches.
        params: which parameters to vary: None for those with requires_grad, "all", or glob patterns on their names.
        dtype: floating dtype to compute in; None for the parameters' own.
        device: where to compute; None for where the parameters are.
        batch_size: examples per pass through the model for data given as tensors; None chooses by their size.
        batch_norm: "eval" uses running statistics; "batch" the statistics of each batch (then the batch size matters).
        takes: "outputs" or "model", which form `loss` has; None tells by its argument names and the batches.
        reduction: "mean" if the loss averages over the examples of a batch, "sum" if it adds them up.
        weight: the weight of a batch in the mean, such as its number of tokens; None for its number of examples.

    Raises:
        TypeError: `model` is no module, or `data` cannot be read twice.
        ValueError: no parameter to vary, an empty data set, or an option outside what is allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        data: Any,
        *,
        params: Literal["all"] | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        batch_norm: Literal["eval", "batch"] = "eval",
        takes: Literal["outputs", "model"] | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        weight: Callable[[Any], float] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not callable(loss):
            raise TypeError(f"loss must be callable: loss(outputs, target) or loss(model, batch), got {type(loss).__name__}")
        for name, value, allowed in (
            ("batch_norm", batch_norm, ("eval", "batch")),
            ("takes", takes, ("outputs", "model", None)),
            ("reduction", reduction, ("mean", "sum")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point dtype, got {dtype}")
        self.model = unwrapped(model)
        self.loss_function, self.reduction, self.batch_norm = loss, reduction, batch_norm
        self.names = _chosen_names(self.model, params)
        first = dict(self.model.named_parameters())[self.names[0]]
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype or first.dtype
        self._convert = dtype is not None or device is not None
        # Data keep their own dtype unless ours differs from the model's: a float32 network may well want float64 inputs cast by itself.
        self.batches = Batches(data, batch_size=batch_size, device=self.device, dtype=dtype)
        self._weight = weight or count_examples
        first_batch = next(iter(self.batches))
        self.takes = takes or form_of(loss, first_batch)
        self._classification = self.takes == "outputs" and _is_class_index(first_batch)
        self._of_classes = _is_loss_of_classes(loss)
        if isinstance(loss, nn.Module) and self._convert:  # class weights and the like follow the model's dtype
            loss = copy.deepcopy(loss).to(self.device, self.dtype)
        skeleton = skeleton_of(self.model, batch_norm)
        self._caller = LossCall(skeleton, loss, self.takes)
        self._callers: dict[Form, LossCall] = {"plain": self._caller}
        self._frozen = [name for name, _ in skeleton.named_parameters() if name not in set(self.names)]
        self._buffers = [name for name, _ in skeleton.named_buffers()]  # batch statistics have replaced some of the model's
        self._written = written_buffers(skeleton)
        self._inputs_kept = False  # whether a pass has shown that the model leaves its inputs as they are
        self._total: float | None = None
        self._fingerprint: tuple[str, float] | None = None
        self._done = {"forwards": 0.0, "gradients": 0.0, "hvps": 0.0}

    # ---- parameters -------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Parameters:
        """The parameters to vary, by name, as the model has them now; in the objective's dtype and on its device; not to be written to."""
        named = dict(self.model.named_parameters())
        return {name: self._place(named[name]) for name in self.names}

    @property
    def size(self) -> int:
        """Number of parameters that vary."""
        named = dict(self.model.named_parameters())
        return sum(named[name].numel() for name in self.names)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """Return parameters by name as one vector (n,), in the order of `names`."""
        return torch.cat([params[name].reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> Parameters:
        """Return a vector (n,) as parameters by name; the tensors are views of it."""
        named = dict(self.model.named_parameters())
        parts = torch.split(vector, [named[name].numel() for name in self.names])
        return {name: part.view(named[name].shape) for name, part in zip(self.names, parts, strict=True)}

    def _place(self, tensor: Tensor) -> Tensor:
        if not self._convert:
            return tensor.detach()
        return tensor.detach().to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def held(self) -> Held:
        """Return what does not vary, as the model has it now: for `batch_loss`, taken once for a pass over the data."""
        # By name: tensors are exchanged by `load_state_dict(assign=True)` and `to`. Detached: a graph must not grow towards parameters
        # nobody asked for. Buffers are copies: not even a forward pass that counts its calls in one may reach the user's model.
        parameters, buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        fixed = {name: self._place(parameters[name]) for name in self._frozen}
        fixed = {name: p.clone() if p.is_inference() else p for name, p in fixed.items()}  # autograd cannot save what inference mode made
        copies = {name: self._place(buffers[name]).clone() for name in self._buffers}
        fixed |= {name: b for name, b in copies.items() if name not in self._written}
        return Held(fixed, {name: b for name, b in copies.items() if name in self._written})

    # ---- one batch --------------------------------------------------------------------------------------------------

    def caller(self, form: Form = "plain") -> LossCall:
        """Return model and loss as one module without state, in one of the forms of `landscape.fastforms`; not to be written to."""
        if form not in self._callers:
            skeleton = skeleton_of(self._caller.model, self.batch_norm)
            rewrite(skeleton)
            self._callers["rewritten"] = self._callers["channels_last"] = LossCall(skeleton, self._caller.loss[0], self.takes)
        return self._callers[form]

    def batch_loss(self, params: Mapping[str, Tensor], batch: Any, held: Held | None = None, form: Form = "plain") -> Tensor:
        """Return the mean loss of one batch at `params`: differentiable, and in the plain form safe under `torch.func` transforms."""
        return self.batch_loss_and_outputs(params, batch, held, form)[0]

    def batch_loss_and_outputs(
        self, params: Mapping[str, Tensor], batch: Any, held: Held | None = None, form: Form = "plain"
    ) -> tuple[Tensor, Any]:
        """Return the mean loss of one batch and the model's outputs (None where the loss takes the model itself)."""
        held = self.held() if held is None else held
        if form == "channels_last":
            batch = images_last(batch)
        # Copied for every call, not set back after it: a graph may still need what this call has seen.
        written = {name: b.clone() for name, b in held.written.items()}
        replaced = {f"model.{name}": t for group in (held.fixed, written, params) for name, t in group.items()}
        loss, outputs = functional_call(self.caller(form), replaced, (batch,))
        return (loss / self.weight(batch) if self.reduction == "sum" else loss), outputs

    def loss_of_outputs(self, outputs: Any, target: Any, weight: float) -> Tensor:
        """Return the mean loss of a batch from the model's outputs; `weight` is the batch's, see `weight`.

        Args:
            outputs: what the model returned.
            target: what they are compared with.
            weight: of the batch.

        Returns:
            The loss, 0-d.
        """
        loss = scalar(self._caller.loss[0](outputs, target))
        return loss / weight if self.reduction == "sum" else loss

    def bound(
        self,
        params: Mapping[str, Tensor],
        form: Form = "plain",
        held: Held | None = None,
        overwrite: bool = False,
        low: torch.dtype | None = None,
    ) -> Callable[[Any, int], tuple[Tensor, Any]]:
        """Return a function from (batch, its number) to (loss, outputs) that reads these very tensors: write into them to move.

        It equals `batch_loss_and_outputs(params, batch, held, form)` in a pass of `Batches.seeded`, without what that spends on putting
        parameters in place at every call. Tensors that require gradients get them, unless the network may `overwrite` what it has made.
        With `low` the model computes in that dtype where it is safe (autocast), and the loss of outputs in ours.
        """
        model, held = self.caller(form).model, held or self.held()
        varied = {name: params[name] if params[name].requires_grad else params[name].detach() for name in self.names}
        now = held.fixed | held.written | varied
        replaced = {id(t): now[name] for tensors in (model.named_parameters(), model.named_buffers()) for name, t in tensors}
        skeleton = skeleton_of(model, self.batch_norm, replaced)
        network = (overwriting(skeleton) if overwrite else None) or skeleton
        outputs_alone = low is not None and self.takes == "outputs"
        caller = LossCall(
            Lowered(network, low, self.dtype) if low is not None and outputs_alone else network, self._caller.loss[0], self.takes
        )
        whole = None if outputs_alone else low
        written = {id(b): b for b in held.written.values()}
        slots = [(module._buffers, key, id(b)) for module in skeleton.modules() for key, b in module._buffers.items() if id(b) in written]

        def call(batch: Any, index: int) -> tuple[Tensor, Any]:
            seed_torch(index, self.device)
            if slots:
                fresh = {identity: b.clone() for identity, b in written.items()}
                for buffers, key, identity in slots:
                    buffers[key] = fresh[identity]
            with nullcontext() if whole is None else torch.autocast(self.device.type, whole):
                loss, outputs = caller(images_last(batch) if form == "channels_last" else batch)
            return (loss / self.weight(batch) if self.reduction == "sum" else loss), outputs

        return call

    def batch_correct(self, outputs: Any, batch: Any) -> Tensor | None:
        """Return how many examples of a batch are classified correctly (0-d), or None where the task is no classification."""
        if not self._classification or not isinstance(outputs, Tensor) or outputs.ndim < 2:
            return None
        target = batch[1]
        # Integers may be counts, or classes that a loss of the user's own seeks on another dimension: no accuracy, before an invented one.
        if outputs.shape[1] < 2 or target.shape != outputs.shape[:1] + outputs.shape[2:] or (target.ndim > 1 and not self._of_classes):
            return None
        # Segmentation and the like have classes on dimension 1 too; their share of correct pixels counts for the example.
        return (outputs.argmax(1) == target).double().flatten(1).mean(1).sum() if target.ndim > 1 else (outputs.argmax(1) == target).sum()

    def weight(self, batch: Any) -> float:
        """Return the weight of a batch in the mean over the data."""
        return float(self._weight(batch))

    @property
    def weighs_examples(self) -> bool:
        """Whether batches count by their numbers of examples."""
        return self._weight is count_examples

    @property
    def total_weight(self) -> float:
        """Sum of the weights of all batches."""
        if self._total is None:
            if self._weight is count_examples:
                self._total = float(self.batches.examples)
            else:
                self._total = sum(self.weight(batch) for batch in self.batches)
        return self._total

    @property
    def examples(self) -> int:
        """Number of examples in the data."""
        return self.batches.examples

    # ---- all batches ------------------------------------------------------------------------------------------------

    def evaluate(self, params: Mapping[str, Tensor] | None = None) -> Evaluation:
        """Return loss and accuracy at `params` (the model's own by default), without looking whether they are finite."""
        found, examples = self._evaluated(self.parameters if params is None else params)
        self.count("forwards", examples)
        return found

    def _evaluated(self, params: Mapping[str, Tensor]) -> tuple[Evaluation, int]:
        """Return loss and accuracy, and the number of examples that they took."""
        weight, examples = 0.0, 0
        classified = True
        with undisturbed(self.device), closing(self.batches.seeded()) as batches:
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            correct = torch.zeros((), dtype=torch.float64, device=self.device)
            held = self.held()
            for _, batch in batches:
                if not self._inputs_kept and self.takes == "outputs":  # on a copy: the user's data must not be changed by the look
                    batch = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, batch)
                value, outputs = self.batch_loss_and_outputs(params, batch, held)
                if not self._inputs_kept and self.takes == "outputs" and any(t._version for t in leaves(batch)):
                    raise ValueError(
                        f"{type(self.model).__name__} writes into its inputs, so every pass would see other data: give its first layers "
                        "inplace=False, or let it copy what it changes"
                    )
                self._inputs_kept = True
                n, size = self.weight(batch), count_examples(batch)
                loss += value.double() * n
                right = self.batch_correct(outputs, batch)
                classified = classified and right is not None
                if right is not None:
                    correct += right
                weight, examples = weight + n, examples + size
            accuracy = correct / examples if classified else torch.full_like(correct, math.nan)
            return Evaluation(loss / weight, accuracy), examples

    def loss(self, params: Mapping[str, Tensor] | None = None) -> float:
        """Return the mean loss over the data.

        Args:
            params: where to evaluate; the model's own parameters by default.

        Returns:
            The loss.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        value = float(self.evaluate(params).loss)
        if not math.isfinite(value):
            raise NonFiniteLossError(self._where_not_finite(self.parameters if params is None else params, value))
        return value

    def gradient(self, params: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Parameters]:
        """Return the mean loss and its gradient over the data.

        Args:
            params: where to evaluate; the model's own parameters by default.

        Returns:
            The loss (0-d, float64) and the gradient by parameter name.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
        """
        params = self.parameters if params is None else params
        weight, examples = 0.0, 0
        with undisturbed(self.device), recurrent_gradients(self.model, self.device), closing(self.batches.seeded()) as batches:
            leaves_ = {name: differentiable(params[name]) for name in self.names}
            total = [torch.zeros_like(p) for p in leaves_.values()]
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            held = self.held()
            for _, batch in batches:
                with torch.enable_grad():
                    value = self.batch_loss(leaves_, batch, held)
                    grads = torch.autograd.grad(value, list(leaves_.values()), allow_unused=True)
                n = self.weight(batch)
                used = [(t, g) for t, g in zip(total, grads, strict=True) if g is not None]
                if used:
                    torch._foreach_add_([t for t, _ in used], [g for _, g in used], alpha=n)
                loss += value.detach().double() * n
                weight, examples = weight + n, examples + count_examples(batch)
            torch._foreach_div_(total, weight)
            loss /= weight
        self.count("gradients", examples)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteLossError(self._where_not_finite(params, float(loss)))
        return loss, dict(zip(self.names, total, strict=True))

    def _where_not_finite(self, params: Mapping[str, Tensor], value: float) -> str:
        bad = [name for name in self.names if not bool(torch.isfinite(params[name]).all())]
        if bad:
            return f"the loss is {value}: parameter {bad[0]!r} has entries that are not finite"
        with undisturbed(self.device), closing(self.batches.seeded()) as batches:
            held = self.held()
            for index, batch in batches:
                batch_value = float(self.batch_loss(params, batch, held))
                if not math.isfinite(batch_value):
                    inputs = [t for t in leaves(batch) if t.is_floating_point() and not bool(torch.isfinite(t).all())]
                    why = "its data hold NaN or infinity" if inputs else "its data are finite, so the model or the loss overflows"
                    return f"the loss is {batch_value} on batch {index} (counted from 0): {why}"
        return f"the loss is {value}"

    def on(self, batches: Batches) -> Objective:
        """Return the same loss on other batches; the work done on them counts here too."""
        other = copy.copy(self)
        other.batches, other._total, other._fingerprint = batches, None, None
        return other

    # ---- bookkeeping ------------------------------------------------------------------------------------------------

    def count(self, kind: Literal["forwards", "gradients", "hvps"], examples: float) -> None:
        """Note work done on so many examples."""
        self._done[kind] += examples

    def meter(self) -> Meter:
        """Return a meter that starts now; its `cost()` says what has been spent since."""
        return Meter(self)

    @property
    def parameter_sha256(self) -> str:
        """Hash over names, shapes and values of all parameters and buffers of the model as it is now."""
        return tensors_sha256(dict(self.model.named_parameters()) | dict(self.model.named_buffers()))

    @property
    def loss_at_parameters(self) -> float:
        """Loss at the model's parameters as they are now, NaN and all: it tells losses apart that have the same name, or none."""
        return self._loss_at_parameters(self.parameter_sha256)

    def _loss_at_parameters(self, now: str) -> float:
        if self._fingerprint is None or self._fingerprint[0] != now:
            self._fingerprint = now, float(self._evaluated(self.parameters)[0].loss)  # bookkeeping: no part of any result's cost
        return self._fingerprint[1]

    def remember_loss(self, value: float) -> None:
        """Take note of the loss at the model's parameters as they are now, for those who have computed it: `loss_at_parameters`."""
        self._fingerprint = self.parameter_sha256, value

    def provenance(self, seed: int | None = None) -> Provenance:
        """Return what results of this objective were computed on; once for every state of the model this takes a forward pass."""
        now = self.parameter_sha256
        return Provenance(
            model=type(self.model).__name__,
            parameters=self.size,
            parameter_sha256=now,
            data_sha256=self.batches.sha256,
            examples=self.examples,
            batch_norm=self.batch_norm,
            batch_size=self.batches.batch_size if self.batch_norm == "batch" else None,
            varied_sha256=names_sha256(self.names),
            loss_at_parameters=self._loss_at_parameters(now),
            seed=seed,
            dtype=str(self.dtype).removeprefix("torch."),
            device=device_name(self.device),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            torch_version=torch.__version__,
            numpy_version=np.__version__,
            creation_library="landscape",
            creation_library_version=library_version(),
            command=command_line(),
        )

    def __repr__(self) -> str:
        return f"<Objective {type(self.model).__name__}, {self.size:,} parameters, {self.dtype}, {self.device}>"


def differentiable(tensor: Tensor) -> Tensor:
    """Return a leaf with the same values that gradients are taken by; autograd has no use for tensors made in inference mode."""
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


class Meter:
    """Measures what a computation on one objective costs."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._before = dict(objective._done)
        self._started = time.perf_counter()

    def cost(self) -> Cost:
        """Return the work and the seconds since the meter was made."""
        examples = max(self._objective.examples, 1)
        done = {kind: (total - self._before[kind]) / examples for kind, total in self._objective._done.items()}
        return Cost(**done, seconds=time.perf_counter() - self._started)


def _chosen_names(model: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    named = dict(model.named_parameters())
    if not named:
        raise ValueError(f"model {type(model).__name__} has no parameters to vary")
    if params is None:
        names = [name for name, p in named.items() if p.requires_grad]
        if not names:
            raise ValueError("every parameter of the model has requires_grad=False; pass params='all' to measure them all the same")
    elif params == "all":
        names = list(named)
    else:
        patterns: Iterable[str] = [params] if isinstance(params, str) else params
        patterns = list(patterns)
        names = [name for name in named if any(fnmatchcase(name, pattern) for pattern in patterns)]
        missing = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in named)]
        if missing or not names:
            raise ValueError(f"params: no parameter matches {missing}; the model has {', '.join(list(named)[:6])}, ...")
    return [name for name in names if named[name].numel()]


def _is_loss_of_classes(loss: Callable[..., Tensor]) -> bool:
    """Tell the losses of PyTorch that seek classes on dimension 1."""
    while isinstance(loss, partial):
        loss = loss.func
    return loss in (F.cross_entropy, F.nll_loss) or isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)


def _is_class_index(batch: Any) -> bool:
    target = batch[1]
    return not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
