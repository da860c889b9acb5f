"""What a part of a method carries from one step to the next, and how it is saved.

Tensors are carried by parameter, like the state of a `torch.optim` optimizer: `self.carried["average"][p]`. In a
`state_dict` the parameters become their positions. Everything carried is in the units of the unscaled loss.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor


class Carrier:
    """A part of a method: named tensors per parameter in `carried`, plain attributes named in `settings`."""

    settings: tuple[str, ...] = ()  # attributes that change while training and belong into a checkpoint
    generator: torch.Generator | None = None  # the source of randomness, for those that have one

    def __init__(self) -> None:
        self.carried: dict[str, dict[Tensor, Tensor]] = {}

    def fresh(self) -> Self:
        """Return a copy of this part that carries nothing yet, so that two optimizers never share an average."""
        part = copy.copy(self)
        part.carried = {}
        return part

    def recall(self, name: str, params: Sequence[Tensor]) -> list[Tensor | None]:
        """Return what is carried under `name` for these parameters, None where there is nothing yet."""
        kept = self.carried.get(name, {})
        return [kept.get(p) for p in params]

    def keep(self, name: str, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Carry `values` (taken over, not copied) under `name`; other parameters keep theirs."""
        self.carried.setdefault(name, {}).update(zip(params, values, strict=True))

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return tensors by position in `params`, and plain numbers; loads with `weights_only=True`."""
        position = {p: i for i, p in enumerate(params)}
        state: dict[str, Any] = {
            "kind": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self.settings},
            "carried": {name: {position[p]: value for p, value in kept.items()} for name, kept in self.carried.items()},
        }
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def check_state(self, state: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        """Refuse a state that does not fit, before anything is overwritten.

        Raises:
            ValueError: The state is of another kind of part, or a tensor has another shape than its parameter.
        """
        if state.get("kind") != type(self).__name__:
            raise ValueError(
                f"state_dict holds the state of {state.get('kind')!r} where this optimizer has {type(self).__name__!r}: "
                "build the optimizer with the method that was saved"
            )
        for name, kept in state["carried"].items():
            for i, value in kept.items():
                if not 0 <= i < len(params) or value.shape != params[i].shape:
                    here = tuple(params[i].shape) if 0 <= i < len(params) else f"only {len(params)} parameters"
                    raise ValueError(f"state_dict: {name}[{i}] has shape {tuple(value.shape)}, the model has {here}")

    def load_state_dict(self, state: Mapping[str, Any], params: Sequence[Tensor]) -> None:
        """Take over copies of a checked state, on the devices of the parameters."""
        for name in self.settings:
            setattr(self, name, state["settings"][name])
        self.carried = {
            name: {params[i]: value.detach().to(params[i].device, copy=True) for i, value in kept.items()}
            for name, kept in state["carried"].items()
        }
        if self.generator is not None:
            self.generator.set_state(state["generator"].cpu())
