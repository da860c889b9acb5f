"""The runs of analyses/batch_and_decay.py by batch size and weight decay, for the figures that read them."""

from __future__ import annotations

from curves import RESULTS

import landscape
from landscape.results.runfile import RunFile

BATCHES, DECAYS = (16, 300), (0.0, 0.005)


def runs() -> dict[tuple[int, float], list[RunFile]]:
    """Return the files of all seeds by batch size and weight decay."""
    folder = RESULTS / "batch_and_decay"
    return {(b, d): [landscape.open(path) for path in sorted(folder.glob(f"{b}-{d:g}-*.h5"))] for d in DECAYS for b in BATCHES}


def title(batch: int, decay: float, run: RunFile) -> str:
    """Return a title with the test error."""
    return f"batch {batch}, decay {decay:g}: {100 * (1 - run.attributes['config']['final']['test_accuracy']):.1f} %"
