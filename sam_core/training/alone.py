"""What a training asks of the processes that share it; here it is one, with all examples, which counts and writes."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_core.data import Batch
from sam_core.optim import SharpnessAware
from sam_core.training.config import TrainConfig

if TYPE_CHECKING:
    from sam_core.training.checkpoint import Checkpoint

Result = TypeVar("Result")
Counted = tuple[Tensor, Tensor | None, int]  # of a step: mean loss, correct, examples


class Alone:
    """One process. `sam_core.parallel.Team` is several."""

    leads = True
    size = 1  # processes among which a batch is divided

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def method(self, config: TrainConfig, base: Optimizer, model: nn.Module, total_steps: int | None) -> SharpnessAware:
        """Build the method of a configuration around its base optimizer."""
        if not config.one_gpu:
            return config.wrap(base, model, total_steps)
        from sam_core.parallel.streams import StreamedSAMPa  # half a second that others can do without

        return config.wrap(base, model, total_steps, lambda name, base, **options: StreamedSAMPa(base, **options))

    def shards(self, config: TrainConfig) -> int | None:
        """Return into how many pieces a process cuts its part of a batch; None where the method does not."""
        return config.shards

    def part(self, batch: Batch) -> Batch:
        """Return this process's part of a batch."""
        return batch

    def forward(self, model: nn.Module, share: float) -> Callable[[Any], Any]:
        """Return what computes the outputs for this process's share of a batch."""
        return model

    def before_step(self, step: int) -> None:
        """Prepare a step."""

    def careful(self, step: int, work: Callable[[], Result]) -> Result:
        """Return what `work` returns, or say which process is missing."""
        return work()

    def totals(self, counted: Sequence[Counted], step: int) -> list[tuple[float, float, int]]:
        """Return the counts of some steps as numbers, over all processes."""
        losses = torch.stack([loss for loss, _, _ in counted]).tolist()
        corrects = [c for _, c, _ in counted if c is not None]
        counts = torch.stack(corrects).tolist() if corrects else [math.nan] * len(losses)
        return [(x, c, n) for x, c, (_, _, n) in zip(losses, counts, counted, strict=True)]

    def share_buffers(self, model: nn.Module, step: int) -> None:
        """Give all processes the running statistics that count."""

    def hand_on(self, saved: "Checkpoint | None") -> "Checkpoint | None":
        """Return the checkpoint that the first process has."""
        return saved

    def agree(self, fingerprint: str) -> None:
        """Refuse processes whose training data have different hashes."""
