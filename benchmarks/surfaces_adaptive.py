"""Adaptive surfaces against the full grids they stand for: a small CNN on digits and ResNet-20 on CIFAR-10.

    python benchmarks/surfaces_adaptive.py --cifar FOLDER --keep FOLDER

Full grids are slow: with --keep they stay in run files and are not computed again. The networks and planes are not those on which the
rule's constants were found.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import RESULTS, Target, machine, note, save, table
from torch.nn import functional as F

import landscape
import sam_core
from landscape.results.types import Surface

GRID = (-1.0, 1.0, 51)
TOLERANCE = 0.01


def objectives(args: argparse.Namespace, keep: Path) -> Iterator[tuple[str, landscape.Objective]]:
    """Yield networks trained for a few epochs, on the examples that the surface is of."""
    configs = {"digits": sam_core.TrainConfig(method="none", epochs=4, seed=11)}
    if args.cifar is not None:
        configs["resnet20"] = sam_core.TrainConfig(
            method="none", model="resnet20", data="cifar10", data_dir=args.cifar, train_examples=2000, test_examples=200, epochs=4, seed=11
        )
    for name, config in configs.items():
        note(f"training {name}")
        run = sam_core.train(config, out=keep / name, resume=(keep / name / "checkpoint.pt").exists())
        count = args.digits_examples if name == "digits" else args.cifar_examples
        yield name, landscape.Objective(run.model, F.cross_entropy, run.data.train.take(count).tensors(), batch_size=count // 2)


def planes(objective: landscape.Objective, wanted: list[str]) -> Iterator[tuple[str, landscape.Plane]]:
    for name in wanted:
        if name == "eigen":
            yield name, landscape.eigen_plane(landscape.top_eigenpairs(objective, k=2, tol=1e-2))
        else:
            yield f"random {name}", landscape.random_plane(objective, seed=int(name))


def row(network: str, plane: str, full: Surface, adaptive: Surface) -> dict[str, Any]:
    """Compare: errors relative to the true loss, over all points; how often the estimate covers them, over interpolated ones."""
    assert adaptive.error_estimate is not None and np.isfinite(full.loss).all()
    error = np.abs(adaptive.loss - full.loss)
    between = adaptive.status == Surface.INTERPOLATED
    assert (error[~between] <= 1e-5 * full.loss[~between]).all(), "evaluated points differ from those of the full grid"
    return {
        "network": network,
        "plane": plane,
        "loss": f"{full.loss.min():.3g} ... {full.loss.max():.3g}",
        "evaluated": int((~between).sum()),
        "ratio": full.loss.size / int((~between).sum()),
        "q99": float(np.quantile(error / full.loss, 0.99)),
        "worst": float((error / full.loss).max()),
        "covered": float(np.mean(error[between] <= adaptive.error_estimate[between])),
        "accuracy_q99": float(np.quantile(np.abs(adaptive.accuracy - full.accuracy), 0.99)),
        "accuracy_worst": float(np.abs(adaptive.accuracy - full.accuracy).max()),
        "seconds": adaptive.cost.seconds,
        "full_seconds": full.cost.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, help="folder with the binary version of CIFAR-10; without it digits only")
    parser.add_argument("--digits-planes", nargs="*", default=["7", "8", "eigen"], help="seeds of random planes, or eigen")
    parser.add_argument("--cifar-planes", nargs="*", default=["7", "eigen"])
    parser.add_argument("--digits-examples", type=int, default=300)
    parser.add_argument("--cifar-examples", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="folder for networks and full grids")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        keep = args.keep or Path(folder)
        rows = []
        for network, objective in objectives(args, keep):
            for plane_name, plane in planes(objective, args.digits_planes if network == "digits" else args.cifar_planes):
                file, place = keep / f"{network}.h5", {"x": GRID, "y": GRID}
                adaptive = landscape.loss_surface(objective, plane, **place, tolerance=TOLERANCE)
                note(f"{network}, {plane_name}: {adaptive}")
                full = landscape.loss_surface(objective, plane, **place, out=file, name=f"{plane_name} {plane.sha256[0][:8]}")
                rows.append(row(network, plane_name, full, adaptive))
                note(str(rows[-1]))
    targets = []
    for r in rows:
        where = f"{r['network']}, {r['plane']}"
        targets += [
            Target(f"{where}: full / evaluated", r["ratio"], 4, at_least=True),
            Target(f"{where}: full / evaluated, aim", r["ratio"], 5, at_least=True),
            Target(f"{where}: 99 % of the points within, %", 100 * r["q99"], 1),
            Target(f"{where}: worst point, %", 100 * r["worst"], 3),
            Target(f"{where}: share within the estimate", r["covered"], 0.95, at_least=True),
        ]
    columns = (
        "network",
        "plane",
        "loss",
        "evaluated",
        "of all 1/",
        "99 %: error %",
        "worst %",
        "covered %",
        "accuracy, 99 %",
        "s",
        "full s",
    )
    cells = [
        [r["network"], r["plane"], r["loss"], r["evaluated"], r["ratio"]]
        + [100 * r["q99"], 100 * r["worst"], 100 * r["covered"], r["accuracy_q99"], r["seconds"], r["full_seconds"]]
        for r in rows
    ]
    text = (
        f"51 x 51 points, tolerance {TOLERANCE}; loss over {args.digits_examples} digits or {args.cifar_examples} images of CIFAR-10. "
        "Errors are relative to the loss of the full grid, over all points; covered: share of interpolated points whose error is within "
        "the estimate; accuracy: error of the accuracy that 99 % of the points keep. Seconds on a machine that did other work too."
    )
    print(save("surface-adaptive", "Adaptive surfaces", machine("wall"), {"rows": rows}, [text, table(columns, cells)], targets, args.out))


if __name__ == "__main__":
    main()
