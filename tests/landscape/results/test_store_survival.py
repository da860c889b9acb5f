"""What happens on real machines: killed writers, two writers, readers in between, full disks, folders that cannot be written to."""

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from result_samples import assert_same, eigen, gradients, history, sharpness, surface

import landscape
from landscape.results import store
from landscape.results.errors import StoreError

pytest.importorskip("fcntl", reason="the processes of these tests need a POSIX system")
from result_writers import heard, hold_the_lock, started, write_for_ever, write_on_a_full_disk, write_some, write_without_permission


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def killed_writer(path: Path, begin: int, seconds: float) -> dict[str, int]:
    """Start a writer, kill it after a while and return the last round of each surface that it said to be on the disk."""
    with started(write_for_ever, path, begin) as (process, connection):
        said = [connection.recv()]
        time.sleep(seconds)
        process.kill()
        said += heard(connection)
        process.join()
        assert process.exitcode == -9, "the writer ended by itself"
    return dict(said)


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_killed_at_random_moments(path: Path, kills: int) -> None:
    bystanders = {store.save(path, result): result for result in (surface(), gradients(), eigen(torch.ones(3, 700)), sharpness())}
    rng = random.Random(kills)
    last = 0
    for _ in range(kills):
        flushed = killed_writer(path, last + 1, rng.uniform(0.005, 0.06))
        found = store.load(path, "surfaces/a").loss  # type: ignore[attr-defined]
        assert (found == found[0, 0]).all() and found[0, 0] in {flushed["a"], flushed["a"] + 1}, "what was flushed is there"
        partial = store.load_partial(path, "b")
        if flushed.get("b", -1) > 0 and partial is not None:
            assert partial[1]["batch"] in {flushed["b"], flushed["b"] + 1} and (partial[0]["sums"] == partial[1]["batch"]).all()
        for group, result in bystanders.items():
            assert_same(store.load(path, group), result)
        last = int(found[0, 0])
    assert last >= kills and not store.describe(path).damaged
    store.save(path, history())
    assert [p.name for p in path.parent.iterdir()] == [path.name], "the next writer clears up after the killed ones"


def test_readers_see_old_or_new_while_a_writer_writes(path: Path) -> None:
    seen = []
    with started(write_for_ever, path, 1) as (_, connection):
        connection.recv()
        for _ in range(40):
            loss = landscape.open(path).surfaces["a"].loss
            assert (loss == loss[0, 0]).all()
            seen.append(loss[0, 0])
    assert seen == sorted(seen) and len(set(seen)) > 2


Holder = tuple[ForkServerProcess, Connection]


@pytest.fixture
def holder(path: Path) -> Iterator[Holder]:
    """Run a process that holds the lock of `path` until it is told to let go."""
    with started(hold_the_lock, path) as (process, connection):
        assert connection.recv() == "held"
        yield process, connection


def test_a_second_writer_is_told_who_writes(path: Path, holder: Holder) -> None:
    process, connection = holder
    before = time.monotonic()
    words = rf"is being written by process {process.pid} on {socket.gethostname()}; wait for it, or delete .*run.h5.lock"
    for write in (lambda: store.save(path, history(), wait=0.2), lambda: store.check_writable(path, wait=0.0)):
        with pytest.raises(StoreError, match=words):
            write()
    assert 0.2 <= time.monotonic() - before < 5 and not path.exists()
    connection.send("let go")
    store.save(path, history(), wait=20)
    assert_same(store.load(path, "training"), history())


def test_the_lock_of_a_killed_writer_is_taken_over(path: Path, holder: Holder) -> None:
    process, _ = holder
    process.kill()
    process.join()
    lock = path.with_name("run.h5.lock")
    assert json.loads(lock.read_text())["pid"] == process.pid
    store.save(path, history(), wait=0.0)
    assert not lock.exists()


def test_locks_that_were_left_behind(path: Path) -> None:
    lock = path.with_name("run.h5.lock")
    for content in ("", "garbage", "[]", json.dumps({"pid": 2**22 + 5, "host": socket.gethostname()})):
        lock.write_text(content)
        store.save(path, history(), wait=0.0)
        assert not lock.exists()
    lock.write_text(json.dumps({"pid": 1, "host": "another"}))
    with pytest.raises(StoreError, match="process 1 on another; wait for it, or delete"):
        store.save(path, history(), wait=0.1)
    assert lock.exists() and store.groups(path) == ["training"]


def test_writers_take_turns_and_nothing_is_lost(path: Path) -> None:
    with (
        started(write_some, path, 0, 8) as (_, one),
        started(write_some, path, 1, 8) as (_, two),
        started(write_some, path, 2, 8) as (_, three),
    ):
        assert [connection.recv() for connection in (one, two, three)] == [("done", 8)] * 3
    assert set(landscape.open(path).surfaces) == {f"{n}-{i}" for n in range(3) for i in range(8)}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    store.save(path, history())
    with started(write_on_a_full_disk, path) as (_, connection):
        *refused, last = heard(connection)
    assert len(refused) == 2 and last == "went well"
    for words in refused:
        assert f"cannot write {path}" in words and "nothing was changed" in words
    assert_same(store.load(path, "training"), history(2))
    assert store.groups(path) == ["training"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
import numpy as np
from result_samples import assert_same, history, surface
from landscape.cli import main
from landscape.results import store
from landscape.results.errors import StoreError

path, kept = Path(sys.argv[1]) / "run.h5", 0
while True:  # until the disk is full
    noise = np.random.default_rng(kept).random((30, 30))
    try:
        store.save(path, surface(str(kept), ny=30, nx=30, loss=noise))
    except StoreError as error:
        print(error)
        break
    kept += 1
assert kept > 3 and store.groups(path) == [f"surfaces/{i}" for i in range(kept)]
for i in range(kept):
    assert_same(store.load(path, f"surfaces/{i}").loss, np.random.default_rng(i).random((30, 30)))
assert not store.describe(path).damaged
try:
    store.save_partial(path, "a", {"x": np.random.default_rng(0).random(9999)}, {})
except StoreError as error:
    print(error)
assert main(["export", str(path), "--to", "csv"]) == main(["export", str(path), "--to", "npz"]) == 2
assert [p.name for p in path.parent.iterdir() if p.suffix in {".tmp", ".lock"}] == []
assert_same(store.load(path, "surfaces/0").loss, np.random.default_rng(0).random((30, 30)))
print("done")
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_all_that_was_written(tmp_path: Path) -> None:
    """On a file system of 600 kB of our own, where the kernel lets us mount one."""
    mount = ["unshare", "--map-root-user", "--mount", "--user"]
    disk = f"mount -t tmpfs -o size=600k tmpfs {shlex.quote(str(tmp_path))}"
    if shutil.which("unshare") is None or subprocess.run([*mount, "sh", "-c", disk], capture_output=True).returncode:
        pytest.skip("this system lets no user mount a tmpfs; a limit on the size of files stands in for it above")
    program = tmp_path.with_name("on_a_small_disk.py")
    program.write_text(ON_A_SMALL_DISK)
    paths = f"{Path(__file__).parent}:{Path(__file__).parents[3]}"
    run = shlex.join([sys.executable, str(program), str(tmp_path), paths])
    done = subprocess.run([*mount, "sh", "-c", f"{disk} && exec {run}"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    for said in (first, second):
        assert "No space left on device; nothing was changed, make room" in said
    assert last == "done" and done.stderr.count("No space left on device") == 2 and "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_to() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.h5"
        store.save(path, history())
        Path(folder).chmod(0o555)
        with started(write_without_permission, path) as (_, connection):
            loaded, *refused = heard(connection)
        Path(folder).chmod(0o755)
        assert loaded == "went well" and len(refused) == 3
        assert all("Permission denied; choose a place that can be written to" in str(words) for words in refused)
        assert [p.name for p in Path(folder).iterdir()] == ["run.h5"]


def test_a_parent_that_is_no_folder(path: Path) -> None:
    path.write_text("text")
    for call in (lambda: store.save(path / "x.h5", history()), lambda: store.check_writable(path / "x.h5")):
        with pytest.raises(StoreError, match="cannot write"):
            call()


def test_an_interrupt_leaves_nothing_half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(path, history())
    before = path.read_bytes()

    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(path, surface())
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_checking_changes_nothing(path: Path) -> None:
    store.check_writable(path)
    assert list(path.parent.iterdir()) == []
    store.save(path, history())
    before = path.read_bytes()
    store.check_writable(path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]
