"""Processes that write run files, to be killed, starved and locked out. They are forked from a server that has torch imported already."""

import contextlib
import itertools
import multiprocessing
import os
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
from result_samples import assert_same, history, surface

from landscape.results import store
from landscape.results.errors import StoreError
from landscape.results.files import writing

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["landscape.results.store", "landscape.results.runfile"])


@contextlib.contextmanager
def started(work: Callable[..., None], *arguments: object) -> Iterator[tuple[ForkServerProcess, Connection]]:
    """Run `work(connection, *arguments)` in a process, which is killed in the end if it still runs."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def heard(connection: Connection) -> list[tuple[str, int]]:
    """Return all that a process said until it ended."""
    said = []
    with contextlib.suppress(EOFError, ConnectionResetError):
        while True:
            said.append(connection.recv())
    return said


def write_for_ever(connection: Connection, path: Path, begin: int) -> None:
    """Write two surfaces again and again, say so after each, and put the number of the round into every value."""
    for i in itertools.count(begin):
        store.save(path, surface("a", ny=30, nx=30, loss=np.full((30, 30), float(i))))
        connection.send(("a", i))
        store.save_partial(path, "b", {"x": np.arange(30.0), "sums": np.full(30, float(i))}, {"batch": i, "text": "x" * 5000})
        connection.send(("b", i))
        store.save(path, history(i % 5))
        if i % 7 == 0:
            store.save(path, surface("b"))
            connection.send(("b", -1))


def write_some(connection: Connection, path: Path, writer: int, count: int) -> None:
    for i in range(count):
        store.save(path, surface(f"{writer}-{i}"), wait=60)
    connection.send(("done", count))


def hold_the_lock(connection: Connection, path: Path) -> None:
    with writing(path, 1):
        connection.send("held")
        connection.recv()


def _errors(connection: Connection, *calls: Callable[[], object]) -> None:
    for call in calls:
        try:
            call()
            connection.send("went well")
        except StoreError as error:
            connection.send(str(error))


def write_on_a_full_disk(connection: Connection, path: Path) -> None:
    """The kernel refuses to make a file longer than 30 kB, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    _errors(
        connection,
        lambda: store.save(path, surface(ny=100, nx=100)),
        lambda: store.save_partial(path, "a", {"x": np.arange(9999.0)}, {}),
        lambda: store.save(path, history(2)),
    )


def write_without_permission(connection: Connection, path: Path) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    _errors(
        connection,
        lambda: store.load(path, "training"),
        lambda: store.save(path, surface()),
        lambda: store.save(path.with_name("new.h5"), surface()),
        lambda: store.check_writable(path),
    )


def load_flipped(connection: Connection, path: Path, trials: int) -> None:
    """Flip bits and load; say how many results were refused, or what went wrong."""
    try:
        connection.send(_refusals(path, trials))
    except Exception:
        connection.send(traceback.format_exc())


def _refusals(path: Path, trials: int) -> int:
    truth, root = {group: store.load(path, group) for group in store.groups(path)}, store.attributes(path)
    partial, rows = store.load_partial(path, "growing"), {f"{row.group}/{row.dataset}": row for row in store.describe(path)}
    whole, victim, rng, refused = path.read_bytes(), path.with_name("victim.h5"), random.Random(trials), 0
    for trial in range(trials):
        broken = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 8])):
            broken[rng.randrange(len(broken))] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        victim.write_bytes(broken)
        for group in rng.sample(sorted(truth), 3):
            try:
                found = store.load(victim, group)
            except StoreError as error:
                assert "\n" not in str(error), error
                refused += 1
            else:
                assert_same(found, truth[group])
        with contextlib.suppress(StoreError):
            assert store.attributes(victim) == root
        with contextlib.suppress(StoreError):
            store.open(victim)
        with contextlib.suppress(StoreError):
            found = store.load_partial(victim, "growing")
            assert found is not None and found[1] == partial[1] and all(np.array_equal(found[0][k], v) for k, v in partial[0].items())
        if trial % 10 == 0:
            with contextlib.suppress(StoreError):
                told = store.describe(victim)
                assert all(row == rows[f"{row.group}/{row.dataset}"] for row in told if row.group not in told.damaged), trial
    return refused
