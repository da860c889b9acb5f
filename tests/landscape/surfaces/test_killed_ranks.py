"""Ranks that wait for one that was killed, or that never comes, stop and say which; real processes, and a real SIGKILL."""

import os
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from problems import network

from landscape.objective import Objective
from landscape.surfaces import loss_surface, over_ranks, random_plane

pytestmark = pytest.mark.distributed


def member(rank: int, folder: Path, what: str, port: int) -> None:
    """Be one of two ranks; one dies in the middle of its work, or comes too late."""
    torch.set_num_threads(1)
    over_ranks.SILENCE = over_ranks.ARRIVAL = 1.0
    over_ranks._BEAT = 0.1
    meeting = f"tcp://127.0.0.1:{port}" if what == "store" else f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    calls = 0

    def deadly(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if rank == (what != "store") and calls > 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(outputs, target)

    problem = network("mlp")
    objective = Objective(problem.model, deadly, problem.data, takes="outputs", batch_size=5)
    if what == "never" and rank == 0:
        time.sleep(60)
    try:
        loss_surface(objective, random_plane(objective), (-1, 1, 9), (-1, 1, 9), ranks=True)
    except over_ranks.RankFailedError as error:
        (folder / "said").write_text(str(error))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        pytest.param("killed", "rank 1 has given no sign of life since", marks=pytest.mark.slow),
        pytest.param("store", "rank 1 has lost the process where the ranks met", marks=pytest.mark.slow),
        pytest.param("never", "rank 0 has not come within 1 seconds", marks=pytest.mark.slow),
    ],
)
def test_a_killed_rank_is_not_waited_for(tmp_path: Path, what: str, said: str) -> None:
    mp.get_context("forkserver").set_forkserver_preload(["sam_core", "torch.distributed.fsdp"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.start_processes(member, (tmp_path, what, port), nprocs=2, join=False, start_method="forkserver")
    survivor, lost = context.processes if what == "killed" else context.processes[::-1]
    try:
        survivor.join(timeout=60)
        assert survivor.exitcode == 0, "it waits for ever"
        assert what == "never" or lost.exitcode == -signal.SIGKILL
        assert said in (tmp_path / "said").read_text()
    finally:
        for process in context.processes:
            process.kill()
            process.join()
