"""A batch that is a closure, and of which methods can ask more: outputs, losses of single examples, parts of it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Losses = Callable[[Any, Any], Tensor]


class Minibatch:
    """Forward and backward of a batch, in pieces: what `step()` takes wherever it takes a closure.

    Methods that change the loss (SAF, MESA, ESAM, BiSAM, sparse SAM's Fisher mask) need it; to the others it is a closure:

        loss = opt.step(Minibatch(model, x, y, index=index))

    Args:
        forward: Model, or any function of `inputs`.
        inputs: A tensor, or a tuple, list or dict of tensors; examples along dimension 0.
        targets: The same for the targets.
        losses: Function (outputs, targets) -> one loss per example, of shape (n,), or for methods that do without their mean, a
            0-dim tensor. Default: cross-entropy.
        index: Positions of the examples in the data set, int64 of shape (n,); for methods that remember examples (SAF).

    Raises:
        TypeError: An argument is of another kind.
        ValueError: Inputs, targets and index are of different lengths, or there is no example.
    """

    def __init__(
        self,
        forward: Callable[[Any], Any],
        inputs: Any,
        targets: Any,
        losses: Losses | None = None,
        *,
        index: Tensor | None = None,
    ) -> None:
        for name, function in (("forward", forward), ("losses", losses)):
            if not callable(function) and not (name == "losses" and function is None):
                raise TypeError(f"{name} must be a function, not {function!r}")
        self.forward, self.inputs, self.targets, self.index = forward, inputs, targets, index
        self._losses: Losses = partial(F.cross_entropy, reduction="none") if losses is None else losses
        lengths = {length_of("inputs", inputs), length_of("targets", targets)}
        if index is not None:
            if not isinstance(index, Tensor) or index.dim() != 1 or index.dtype != torch.int64:
                raise TypeError(f"index must be an int64 tensor with the position of every example, not {index!r}")
            lengths.add(len(index))
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"inputs, targets and index must hold equally many examples, at least one, not {sorted(lengths)}")

    def __len__(self) -> int:
        return length_of("targets", self.targets)

    def outputs(self) -> Any:
        """Return forward(inputs)."""
        return self.forward(self.inputs)

    def losses(self, outputs: Any) -> Tensor:
        """Return the loss of every example, of shape (n,).

        Raises:
            ValueError: The function that was given returns something else.
        """
        values = self._losses(outputs, self.targets)
        if values.shape != (len(self),):
            raise ValueError(
                f"losses must return one loss for each of the {len(self)} examples, not a tensor of shape {tuple(values.shape)}: "
                'most losses do with reduction="none"'
            )
        return values

    def loss(self, outputs: Any) -> Tensor:
        """Return the mean loss, a 0-dim tensor."""
        return self._losses(outputs, self.targets).mean()

    def part(self, chosen: Tensor) -> "Minibatch":
        """Return the examples chosen by a mask or by positions, as a batch of its own."""
        index = None if self.index is None else self.index.to(chosen.device)[chosen]
        return Minibatch(self.forward, taken(self.inputs, chosen), taken(self.targets, chosen), self._losses, index=index)

    def __call__(self) -> Tensor:
        """Compute loss and gradients, return the loss: a closure."""
        loss = self.loss(self.outputs())
        loss.backward()
        return loss


def length_of(name: str, data: Any) -> int:
    """Return the number of examples.

    Raises:
        TypeError: These are no tensors.
    """
    if isinstance(data, Mapping):
        data = tuple(data.values())
    while isinstance(data, tuple | list) and data:
        data = data[0]
    if not isinstance(data, Tensor) or data.dim() == 0:
        raise TypeError(f"{name} must be tensors with the examples along dimension 0, not {type(data).__name__}")
    return len(data)


def mapped(function: Callable[[Tensor], Any], data: Any) -> Any:
    """Return `data` with function(tensor) in the place of each tensor in it, at any depth; what is no tensor stays."""
    if isinstance(data, Mapping):
        return {name: mapped(function, value) for name, value in data.items()}
    if isinstance(data, tuple | list):
        parts = [mapped(function, value) for value in data]
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    return function(data) if isinstance(data, Tensor) else data


def taken(data: Any, chosen: Tensor) -> Any:
    """Return the chosen examples of a tensor, or of all tensors in a tuple, list or dict."""
    return mapped(lambda t: t[chosen.to(t.device)], data)
