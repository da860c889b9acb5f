"""Replacing a file whole, by one writer at a time, so that a killed process leaves the old file or the new one.

The lock is a file beside the target that names process and host. It is held through `flock`, which the system lets go of when the process
dies; where a file system has no `flock`, or the lock was taken on another host, the name written in it decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from landscape.results.errors import StoreError, reason

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

PAUSE = 0.02  # seconds between two tries for the lock


@contextlib.contextmanager
def writing(path: Path, wait: float) -> Iterator[None]:
    """Hold the lock of a file, having waited at most `wait` seconds for another writer.

    Yields:
        Nothing; the lock is held inside.

    Raises:
        StoreError: Another process keeps writing, or the folder cannot be written to.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(lock, path, wait)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason(error)}; choose a place that can be written to") from error
    try:
        for left in path.parent.glob(f"{_glob_text(_temporary_prefix(path))}*.tmp"):  # of writers that were killed
            left.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # before the handle closes, so that nobody can take a lock that is about to vanish
        os.close(handle)


def replace(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file beside `path`, push it to the disk and move it into place.

    Raises:
        StoreError: It cannot be written; what was there before is untouched.
    """
    temporary = path.with_name(f"{_temporary_prefix(path)}{os.getpid()}.tmp")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else None
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason(error)}; nothing was changed, make room or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_signature(path: Path) -> None:
    """Find out that a file is there, can be read and begins like HDF5.

    Raises:
        StoreError: It does not.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}; check the path") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from error
    if start != b"\x89HDF\r\n\x1a\n":
        raise StoreError(f"{path} is {'no HDF5 file' if start else 'empty'}; give a run file written by landscape")


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}."


def _glob_text(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _acquire(lock: Path, path: Path, wait: float) -> int:
    deadline = time.monotonic() + wait
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            owner: dict[str, Any] = {}
            free = _flock(handle)
            if free is not False and _is_at(handle, lock):
                owner = _owner(handle)
                if not owner or (owner.get("host") == socket.gethostname() and (free or not _is_alive(owner.get("pid")))):
                    _sign(handle, lock)
                    return handle
            elif free is False:
                owner = _owner(handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if time.monotonic() >= deadline:
            who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
            raise StoreError(f"{path} is being written by {who}; wait for it, or delete {lock} if that process is gone")
        time.sleep(PAUSE)


def _flock(handle: int) -> bool | None:
    """Return whether the lock is ours; None where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), lock.stat())
    except FileNotFoundError:
        return False


def _owner(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}  # killed before it signed
    return found if isinstance(found, dict) else {}


def _sign(handle: int, lock: Path) -> None:
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(record).encode(), 0)
    except OSError:
        with contextlib.suppress(OSError):
            lock.unlink()
        raise


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
