"""Running statistics of normalisation layers, frozen for passes that are not at the weights being trained."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.modules.batchnorm import _NormBase

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def tracking_layers(model: nn.Module) -> list[_NormBase]:
    """Return the layers that would update running statistics in a forward pass (batch, sync-batch and instance norm)."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.track_running_stats and module.running_mean is not None
    ]


@contextmanager
def frozen_statistics(model: nn.Module | None) -> Iterator[None]:
    """Within the block, running statistics end as they began; the normalisation itself works as it would without.

    The layers still normalise with the statistics of the batch in training mode and with the running ones in eval mode.
    Values are saved and written back, so that every layer kind and setting is covered (`momentum=None` counts batches, a
    layer may switch modes inside); blocks may be nested, and an exception leaves the statistics as they were too.
    """
    buffers: list[Tensor] = []
    if model is not None:
        for layer in tracking_layers(model):
            buffers += [b for b in (getattr(layer, name, None) for name in STATISTICS) if b is not None]
    saved = [b.detach().clone() for b in buffers]
    # Graphs made before the block stay valid after it (second-order terms): the values are the same again.
    with _unsafe_preserve_version_counter(tuple(buffers)) if buffers else nullcontext():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, saved, strict=True):
                    buffer.copy_(value)
