"""What can be done during training without touching the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_core.training.loop import Trainer


class Hook:
    """Called by the training loop at fixed places; override what is needed.

    A hook may read everything in `run` and may call `run.closure()`. Random numbers it draws from the global generators do not
    change the training, and neither may anything else it does: what it changes in the model it has to put back.
    """

    def on_start(self, run: Trainer) -> None:
        """Before the first step, also of a continued run, when all states are loaded."""

    def before_step(self, run: Trainer) -> None:
        """Before step number `run.step`, counted from 0; `run.batch` is its batch."""

    def after_step(self, run: Trainer) -> None:
        """After a step: `run.step` have been made."""

    def after_epoch(self, run: Trainer) -> None:
        """After an epoch, with its record in `run.history[-1]`, before the checkpoint."""

    def on_end(self, run: Trainer) -> None:
        """After the last epoch; not after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a continued run needs: tensors, numbers, texts, and lists, tuples and dictionaries of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict()` returned."""
