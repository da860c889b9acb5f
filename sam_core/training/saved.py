"""What is read from a saved state of training, looked at before it is used."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sam_core.optim.base_state import alike
from sam_core.training.evaluation import EpochRecord


def read_history(records: Any) -> tuple[EpochRecord, ...]:
    """Return the records of the finished epochs.

    Args:
        records: a list of dictionaries.

    Returns:
        The records.

    Raises:
        ValueError: they are not those of epochs 1, 2, ... with numbers in them.
    """
    if not isinstance(records, list):
        raise ValueError(f"history must be a list, not {type(records).__name__}")
    history = []
    for i, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise ValueError(f"history: record {i + 1} is a {type(record).__name__}")
        for field in fields(EpochRecord):
            value = record.get(field.name)
            if isinstance(value, bool) or not isinstance(value, int if field.name == "epoch" else int | float):
                raise ValueError(f"history: {field.name} of record {i + 1} must be a number, not {value!r}")
        if record["epoch"] != i + 1:
            raise ValueError(f"history: record {i + 1} is of epoch {record['epoch']}")
        if not all(0 <= record[name] < math.inf for name in ("seconds", "gradients_computed")):
            raise ValueError(f"history: record {i + 1} counts {record['seconds']} seconds, {record['gradients_computed']} gradients")
        history.append(EpochRecord(**record))
    return tuple(history)


def check_progress(step: Any, finished: int, steps_per_epoch: int | None, epochs: int) -> None:
    """Refuse a number of steps that does not go with the finished epochs.

    Args:
        step: steps made.
        finished: epochs finished.
        steps_per_epoch: None where it is not known.
        epochs: epochs of the whole run.

    Raises:
        ValueError: as said above.
    """
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"step must be a whole number of at least 0, not {step!r}")
    if finished > epochs or step < finished or (steps_per_epoch is not None and step // steps_per_epoch != finished):
        raise ValueError(f"{step} steps and {finished} finished epochs of {epochs} do not go together")


def fitting(state: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a scheduler's saved state that the scheduler has too.

    Args:
        state: what was saved.
        own: the scheduler's own state.

    Returns:
        The entries.

    Raises:
        ValueError: one is missing that counts, or is of another kind.
    """
    if not isinstance(state, Mapping) or ("last_epoch" in own and "last_epoch" not in state):
        raise ValueError("scheduler: its state is missing")
    for name, value in own.items():
        if name in state and not alike(state[name], value):
            raise ValueError(f"scheduler: {name} is {state[name]!r}, where {value!r} would be expected")
    return {name: state[name] for name in own if name in state}
