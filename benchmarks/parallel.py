"""SAMPa on two devices against everything it replaces: seconds, bytes, how much of the exchange is hidden, accuracy for the time.

    python benchmarks/parallel.py [--data-dir FOLDER] [--rounds 7] [--epochs 4] [--quick] [--out DIR]

Contenders in one run, one CPU thread for each device: SGD, SAM and SAMPa sequentially on one, SAM with data parallelism on two, SAMPa
on two, and what the two cores allow at best: one gradient on each, with a barrier after it, and nothing sent. ResNet-20 and a small ViT,
batches of 128. FOLDER holds CIFAR-10 in its binary version; with it each contender also trains, for
accuracy; without, images are random and the times are the same.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from contenders import RESULTS, Target, machine, note, save, table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import sam_core
from sam_core import data, models, parallel
from sam_core.allocator import reuse_freed_memory

BATCH, STEPS_PER_EPOCH = 128, 391  # of the whole of CIFAR-10
NETS = {"resnet20": "ResNet-20", "vit_tiny": "small ViT"}
CONTENDERS = ("SGD", "SAM", "SAMPa, one device", "SAM, data parallel on 2", "SAMPa on 2")
BEST = "a gradient on each of 2, nothing sent"  # no contender: the least that a step of SAMPa can take
TWO = (*CONTENDERS[3:], BEST)


class Runner:
    """One contender in one process: a network, its optimizer, and steps on given batches."""

    def __init__(self, name: str, net: str, roles: parallel.Roles) -> None:
        self.name, self.roles = name, roles
        torch.manual_seed(0)
        self.net = models.make(net, 10, 3, image_size=32).to(memory_format=torch.channels_last)
        base = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.waited = 0.0
        if name in ("SGD", BEST):
            self.opt = sam_core.make("none", base, model=self.net)
        elif name == "SAM":
            self.opt = sam_core.SAM(base, rho=0.05, model=self.net)
        elif name == "SAMPa, one device":
            self.opt = sam_core.SAMPa(base, rho=0.1, model=self.net)
        elif name == "SAM, data parallel on 2":
            self.forward: nn.Module = DistributedDataParallel(self.net, gradient_as_bucket_view=True)
            self.opt = sam_core.SAM(base, rho=0.05, model=self.forward)
        else:
            self.opt = parallel.ParallelSAMPa(base, rho=0.1, model=self.net, roles=roles)
        if name != "SAM, data parallel on 2":
            self.forward = self.net

    @property
    def takes_part(self) -> bool:
        return self.roles.rank == 0 or self.name in TWO

    def closure(self, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        if self.name == "SAM, data parallel on 2":
            x, y = (t.tensor_split(2)[self.roles.rank] for t in (x, y))

        def run() -> Tensor:
            self.opt.zero_grad()
            loss = cross_entropy(self.forward(x), y)
            loss.backward()
            return loss

        return run

    def step(self, here: tuple[Tensor, Tensor], there: tuple[Tensor, Tensor]) -> None:
        if "SAMPa" in self.name:
            self.opt.step(self.closure(*here), self.closure(*there))
        else:
            self.opt.step(self.closure(*here))
        if self.name == BEST:
            dist.barrier()


def timed(runner: Runner, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Return seconds per step; the other process rests where it has no part."""
    dist.barrier()
    start = time.perf_counter()
    if runner.takes_part:
        for here, there in zip(batches, batches[1:], strict=False):
            runner.step(here, there)
    dist.barrier()
    return (time.perf_counter() - start) / (len(batches) - 1)


def communication(runner: Runner, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return seconds and bytes of SAMPa's exchange: by itself, and what of it a step still waits for."""
    opt = runner.opt
    assert isinstance(opt, parallel.ParallelSAMPa)
    exchange = opt._exchanging
    gradient: list[Tensor | None] = [torch.randn_like(p) for p in opt.parameters()]
    alone: list[float] = []
    for _ in range(20):
        dist.barrier()
        start = time.perf_counter()
        exchange.finish(list(gradient), 1.0)
        alone.append(time.perf_counter() - start)
    finish = exchange.finish
    waited: list[float] = []

    def watched(own: Any, weight: float) -> Any:
        dist.barrier()  # the slower of the two passes is not communication
        start = time.perf_counter()
        result = finish(own, weight)
        waited.append(time.perf_counter() - start)
        return result

    exchange.finish = watched  # type: ignore[method-assign]
    before = exchange.bytes_sent
    for here, there in zip(batches, batches[1:], strict=False):
        runner.step(here, there)
    exchange.finish = finish  # type: ignore[method-assign]
    return {
        "alone": statistics.median(alone),
        "waited": statistics.median(waited),
        "bytes": (exchange.bytes_sent - before) / (len(batches) - 1),
        "parameters": float(sum(p.nbytes for p in opt.parameters())),
    }


def accuracy(name: str, net: str, roles: parallel.Roles, folder: Path, epochs: int, examples: int) -> dict[str, float]:
    """Train from the start and return seconds and test accuracy."""
    images = data.load("cifar10", folder)
    runner = Runner(name, net, roles)
    train, test = images.train.take(examples), images.test.take(2000)
    x, y = train.tensors()
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(y), generator=generator) for _ in range(epochs)])
    batches = [(x[i].to(memory_format=torch.channels_last), y[i]) for i in order.split(BATCH)]
    seconds = timed(runner, [*batches, batches[0]]) * len(batches)
    if isinstance(runner.opt, parallel.ParallelSAMPa):
        runner.opt.share_buffers()
    found = 0.0
    if runner.roles.rank == 0:
        runner.net.eval()
        with torch.no_grad():
            tx, ty = test.tensors()
            found = float((torch.cat([runner.net(part) for part in tx.split(500)]).argmax(1) == ty).float().mean())
    return {"seconds": seconds, "accuracy": found}


def member(rank: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    reuse_freed_memory()  # for all contenders alike
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(minutes=30))
    roles = parallel.start("cpu")
    results: dict[str, Any] = {}
    for net in NETS:
        generator = torch.Generator().manual_seed(1)
        batches = [
            (torch.randn(BATCH, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last), torch.arange(BATCH) % 10)
            for _ in range(options.steps + 1)
        ]
        runners = [Runner(name, net, roles) for name in (*CONTENDERS, BEST)]
        seconds: dict[str, list[float]] = {name: [] for name in (*CONTENDERS, BEST)}
        for i in range(options.rounds + 1):
            k = i % len(runners)
            for runner in (*runners[k:], *runners[:k]):
                spent = timed(runner, batches)
                if i:  # the first round warms up
                    seconds[runner.name].append(spent)
            if rank == 0:
                note(f"{NETS[net]}: round {i} of {options.rounds}")
        results[net] = {"seconds": seconds, "communication": communication(runners[CONTENDERS.index("SAMPa on 2")], batches)}
        if options.data_dir is not None:
            results[net]["trained"] = {}
            for name in CONTENDERS:
                results[net]["trained"][name] = accuracy(name, net, roles, options.data_dir, options.epochs, options.examples)
                if rank == 0:
                    note(f"{NETS[net]}, {name}: {results[net]['trained'][name]}")
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="per timed run")
    parser.add_argument("--epochs", type=int, default=4, help="of the trainings for accuracy")
    parser.add_argument("--examples", type=int, default=2048, help="of the trainings for accuracy")
    parser.add_argument("--quick", action="store_true", help="a smoke run: the numbers mean nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.epochs, options.examples = 1, 1, 1, 256
    os.environ["OMP_NUM_THREADS"] = "1"
    if "GLOO_SOCKET_IFNAME" not in os.environ and any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    header = machine("wall") | {"batch": BATCH, "rounds": options.rounds, "steps per round": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(member, (folder, options), nprocs=2, start_method="spawn")
        results = torch.load(Path(folder) / "results.pt", weights_only=False)
    sections, targets = [], []
    for net, found in results.items():
        seconds = found["seconds"]
        trained = found.get("trained", {})
        rows = []
        for name in (*CONTENDERS, BEST):
            faster = statistics.median(s / t for s, t in zip(seconds["SAM"], seconds[name], strict=True))
            run = trained.get(name)
            gain = None if run is None else 100 * run["accuracy"] - 10
            rows.append(
                [
                    name,
                    statistics.median(seconds[name]),
                    statistics.median(seconds[name]) * STEPS_PER_EPOCH,
                    faster,
                    None if run is None else run["seconds"],
                    None if run is None else 100 * run["accuracy"],
                    None if run is None or gain is None or gain <= 0 else run["seconds"] / gain,
                ]
            )
        columns = [
            "contender",
            "s / step",
            "s / epoch of 391",
            "SAM / this",
            "s of training",
            "test accuracy %",
            "s per point above chance",
        ]
        c = found["communication"]
        hidden = 1 - c["waited"] / c["alone"]
        text = (
            f"SAMPa on 2 sends {c['bytes']:,.0f} bytes per step and process, {c['bytes'] / c['parameters']:.2f} times the parameters' own. "
            f"The exchange by itself takes {1000 * c['alone']:.2f} ms; a step still waits {1000 * c['waited']:.2f} ms for it once "
            f"both backward passes are through: at most {100 * hidden:.0f} % is hidden (packing takes part of backward's time)."
        )
        sections += [f"## {NETS[net]}", table(columns, rows), text]
        ratio = statistics.median(s / t for s, t in zip(seconds["SAM"], seconds["SAMPa on 2"], strict=True))
        best = statistics.median(s / t for s, t in zip(seconds["SAM"], seconds[BEST], strict=True))
        sections.append(f"These two cores allow {best:.2f} at best: the last row. SAMPa on 2 reaches {100 * ratio / best:.0f} % of that.")
        targets += [
            Target(f"{NETS[net]}: seconds of SAM on one over seconds of SAMPa on two", ratio, 1.8, at_least=True),
            Target(f"{NETS[net]}: bytes sent over those of one all-reduce of the parameters", c["bytes"] / c["parameters"], 1.0),
        ]
    if options.data_dir is not None:
        sections.append(f"Trainings: {options.epochs} epochs on {options.examples:,} images of CIFAR-10 (JPEG), 2,000 to test.")
    print(save("parallel", "SAMPa on two devices", header, {"results": results}, sections, targets, options.out))


if __name__ == "__main__":
    sys.exit(main())
