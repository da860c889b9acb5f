"""A process that `sam_core.parallel.launch` starts: `python -m sam_core.parallel.member`, with what it has to do on stdin."""

import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sam_core.allocator import reuse_freed_memory
from sam_core.parallel.launch import GRACE, LOST, MEETING, meeting
from sam_core.parallel.roles import RankLostError
from sam_core.training.config import TrainConfig
from sam_core.training.run import train


def main() -> int:
    """Train with the others until the end, theirs or this process's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for rank 0, which ends this process
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    spec: dict[str, Any] = json.loads(line)
    folder, rank = Path(spec["folder"]), str(spec["rank"])
    os.environ.update({"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(spec["world"]), MEETING: meeting(folder)})
    threading.Thread(target=outlive, args=(spec,), daemon=True).start()
    torch.set_num_threads(spec["threads"])
    reuse_freed_memory()
    try:
        train(TrainConfig.from_dict(spec["config"]), out=spec["out"], resume=spec["resume"], progress=False)
    except BaseException as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, RankLostError):
            if orphaned(spec, patience=1.0):
                farewell(spec, said.removeprefix(LOST))
            else:
                os.kill(spec["parent"], signal.SIGCONT)  # it may have been stopped, and can look around then
        if os.environ.get("LANDSCAPE_DEBUG"):
            traceback.print_exc()
        print(said, file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for links to processes that are gone
    dist.destroy_process_group()
    return 0


def outlive(spec: dict[str, Any]) -> None:
    """Wait for the end of rank 0, and soon after it end too; to be run in a thread."""
    while sys.stdin.buffer.read(1):
        pass
    time.sleep(GRACE / 2)  # in which this process may notice by itself, and say in which step
    if orphaned(spec):
        farewell(spec, f"rank 0 is gone, noticed by rank {spec['rank']}")
    os._exit(1)


def orphaned(spec: dict[str, Any], patience: float = 0.0) -> bool:
    """Say whether rank 0 is gone, for which it may take a moment."""
    deadline = time.monotonic() + patience
    while os.getppid() == spec["parent"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def farewell(spec: dict[str, Any], line: str) -> None:
    """Do what rank 0 cannot do any more: say why it ended, and clean up. One of the processes does it."""
    folder = Path(spec["folder"])
    aside = folder.with_name(f"{folder.name}.gone")
    try:
        folder.rename(aside)
    except OSError:
        return
    os.write(spec["stderr"], f"landscape: {line}\n".encode())
    shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
