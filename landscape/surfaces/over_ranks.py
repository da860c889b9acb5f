"""Points computed by several processes ("ranks"): pieces are handed out as they are asked for, and the first rank collects.

What is handed out, and what comes back, goes through the key-value store at which the ranks met, so that nobody waits for anybody but for
the end of a round. A rank that fails says so there, and all of them fail. Every rank gives signs of life there too, from a thread of its
own: who waits for a rank that was killed stops waiting, and says which one and since when.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from landscape.results.types import Array
from sam_core import ranks

Given = TypeVar("Given")
Places = NDArray[np.intp]
_PIECES = 8  # of a round, for each rank: the last ones even out who is slow
_LOOK = 0.02  # seconds between looks at what has come back
_BEAT = 1.0  # seconds between signs of life, and between looks at those of others
SILENCE = 60.0  # seconds without one after which a rank is given up
ARRIVAL = 1800.0  # seconds within which it has to give the first one; the ranks' own time limit is that by default

_made = 0  # surfaces and paths of this process: all ranks compute the same ones, in the same order


class RankFailedError(RuntimeError):
    """Another rank could not compute its part."""


class Dealer:
    """Deals pieces of points out among the ranks.

    Raises:
        ValueError: there are no ranks.
    """

    def __init__(self) -> None:
        global _made
        if not ranks.meeting():
            raise ValueError("ranks=True needs an initialised torch.distributed: start with torchrun and call init_process_group")
        _made += 1
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.leads = self.rank == 0
        self._store: Any = dist.distributed_c10d.PrefixStore(f"landscape/surface/{_made}", dist.distributed_c10d._get_default_store())
        self._agreements = 0
        self._seen: dict[int, tuple[bytes, float]] = {}  # the last sign of life of each other rank, and when it was new to us
        self._looked, self._waiting = 0.0, 0.0
        stop = threading.Event()
        beating = threading.Thread(target=_beat, args=(self._store, self.rank, stop), name="signs of life", daemon=True)
        beating.start()
        weakref.finalize(self, _leave, self._store, self.rank, stop, beating)

    def agreed(self, given: Given) -> Given:
        """Return what the first rank gives."""
        self._agreements += 1
        key = f"agreed/{self._agreements}"
        if self.leads:
            self._asked("set", key, pickle.dumps(given))
            return given
        self._await(key)
        return pickle.loads(self._asked("get", key))  # what our own first rank has put there

    def after(self, name: str, given: Given) -> Given:
        """Return what the first rank gives as soon as it has it, however long that takes and however large it is."""
        if self.leads:
            self._asked("set", name, b"1")
        else:
            self._await(name)
        box = [given]
        dist.broadcast_object_list(box, 0)
        return box[0]

    def pieces(self, places: Places) -> list[Places]:
        """Return the pieces of a round, the same in every rank."""
        return np.array_split(places, max(1, min(len(places), _PIECES * self.world)))

    def mine(self, round_: int | str, count: int) -> Iterator[int]:
        """Yield the numbers of pieces that fall to this rank, one after the other.

        Args:
            round_: what they are pieces of.
            count: how many there are.

        Yields:
            A number.

        Raises:
            RankFailedError: a rank failed meanwhile.
        """
        while (i := self._asked("add", f"{round_}/next", 1) - 1) < count:
            if self.there("failed"):
                raise RankFailedError(self._asked("get", "failed").decode())
            yield i

    def hand_in(self, name: str, values: Array) -> None:
        """Give numbers to whoever asks for them by this name."""
        self._asked("set", name, np.ascontiguousarray(values, dtype=np.float64).tobytes())

    def there(self, name: str) -> bool:
        """Say whether somebody has handed that in."""
        return bool(self._asked("check", [name]))

    def taken(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the numbers of that name, when they are there.

        Args:
            name: under which they are handed in.
            shape: of the numbers.

        Returns:
            The numbers, float64.
        """
        self._await(name)
        return np.frombuffer(self._asked("get", name), dtype=np.float64).reshape(shape).copy()

    def fail(self, error: BaseException) -> None:
        """Tell the others."""
        if not isinstance(error, RankFailedError):
            said = " ".join(str(error).split())
            with contextlib.suppress(RankFailedError):  # the error that is raised is the one to be seen
                self._asked("set", "failed", f"rank {self.rank} failed: {type(error).__name__}: {said}".encode())

    def _asked(self, what: str, *arguments: Any) -> Any:
        """Return what the store says.

        Args:
            what: its method.
            arguments: of that.

        Returns:
            The answer.

        Raises:
            RankFailedError: it says nothing.
        """
        try:
            return getattr(self._store, what)(*arguments)
        except RuntimeError as error:  # the store is in the memory of one process
            raise RankFailedError(
                f"rank {self.rank} has lost the process where the ranks met, usually that of rank 0: it was killed, or its machine is gone"
            ) from error

    def _await(self, name: str) -> None:
        """Return when that is there.

        Raises:
            RankFailedError: a rank failed, has left, or gives no signs of life any more.
        """
        self._waiting, self._seen = time.monotonic(), {}
        while not self.there(name):
            if self.there("failed"):
                raise RankFailedError(self._asked("get", "failed").decode())
            missing = self._missing()
            if missing and not self.there(name):
                raise RankFailedError(missing)
            time.sleep(_LOOK)

    def _missing(self) -> str:
        """Say which rank will not hand in anything any more, and since when; nothing if all live."""
        now = time.monotonic()
        if now - self._looked < _BEAT / 2:
            return ""
        self._looked = now
        for rank in range(self.world):
            if rank == self.rank:
                continue
            if self.there(f"left/{rank}"):
                return f"rank {rank} has left and its part is missing: it failed, see what it printed"
            if not self.there(f"alive/{rank}"):
                if now - self._waiting > ARRIVAL:
                    return f"rank {rank} has not come within {ARRIVAL:g} seconds, and rank {self.rank} waits for it"
                continue
            sign = self._asked("get", f"alive/{rank}")
            before, since = self._seen.get(rank, (b"", 0.0))
            if sign != before:
                self._seen[rank] = sign, now
            elif now - since > SILENCE:
                last = time.strftime("%H:%M:%S", time.localtime(float(sign)))
                return f"rank {rank} has given no sign of life since {last}: it was killed, or its machine is gone; start all of them again"
        return ""


def _beat(store: Any, rank: int, stop: threading.Event) -> None:
    """Put the time where others can see it, again and again."""
    with contextlib.suppress(RuntimeError):  # the place where the ranks met is gone: whoever waits finds out
        while True:
            store.set(f"alive/{rank}", str(time.time()))
            if stop.wait(_BEAT):
                return


def _leave(store: Any, rank: int, stop: threading.Event, beating: threading.Thread) -> None:
    """End the signs of life of a dealer that is not needed any more; whoever still waits for this rank waits in vain."""
    stop.set()
    if beating is not threading.current_thread():
        beating.join(timeout=5)
    with contextlib.suppress(RuntimeError):
        store.set(f"left/{rank}", "1")
