"""What goes wrong with run files, in one line that says why and what to do."""

from __future__ import annotations


class StoreError(ValueError):
    """A run file cannot be read or written; the message is one line that says why and what to do."""


class GroupMissingError(StoreError, KeyError):
    """A file holds no such group; the message lists what it holds."""

    def __str__(self) -> str:
        return str(self.args[0])


def reason(error: BaseException) -> str:
    """Return what an error says, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(text).split()) or type(error).__name__
