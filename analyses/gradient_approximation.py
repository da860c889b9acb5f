"""How well does grad f(y_t) stand in for grad f(x_t) while SAMPa trains? A ResNet-20 of half the width on images of CIFAR-10.

    python analyses/gradient_approximation.py --data-dir FOLDER [--quick] [--out analyses/results/gradient_approximation]

FOLDER holds CIFAR-10 in its binary version; the committed result is from the re-encoded images, "CIFAR-10 (JPEG)". Before every fifth
step both gradients are taken on the same batch and compared, overall and by layer. File: <out>/sampa.h5, with the training history.
Some five minutes on one core. Steps 40, 80, ... come after the eight images that are left at the end of an epoch, hence their spikes.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

import sam_core
from landscape.cli.train import save_training, trace_hook
from landscape.results.types import GradientTrace

EVERY = 5


def recipe(data_dir: Path) -> sam_core.TrainConfig:
    """Return SAMPa's published setting (rho 0.1, lambda 0.2, batches of 128, cosine) on a tenth of the images and of the network's size."""
    return sam_core.TrainConfig(
        method="sampa", rho=0.1, lam=0.2, data="cifar10", data_dir=data_dir, train_examples=5000, test_examples=1000, augment=True,
        model="resnet20", model_options=("width=8",), epochs=12, batch_size=128, lr=0.1, momentum=0.9, weight_decay=5e-4,
        schedule="cosine", seed=0, device="cpu",
    )  # fmt: skip


def summary(trace: GradientTrace) -> str:
    """Return for each quarter of the training the medians of cosine and distance, and the lowest cosine."""
    lines = ["steps        cosine (lowest)   distance   distance / ||grad f(x)||"]
    for i in range(4):
        part = slice(i * len(trace.step) // 4, (i + 1) * len(trace.step) // 4)
        step, cosine, distance = trace.step[part], trace.cosine[part], trace.distance[part]
        values = (np.median(cosine), cosine.min(), np.median(distance), np.median(distance / trace.norm_x[part]))
        lines.append(f"{step[0]:4d} - {step[-1]:4d}  " + "{:.4f} ({:.4f})   {:8.3g}   {:8.3g}".format(*values))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gradient_approximation")
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that all is well; not for reading")
    arguments = parser.parse_args()
    config = recipe(arguments.data_dir)
    if arguments.quick:
        config = dataclasses.replace(config, epochs=6, train_examples=640, test_examples=128)
    hook = trace_hook(config, EVERY)
    result = sam_core.train(config, [hook])
    save_training(arguments.out / "sampa.h5", result, [hook])
    last = result.history[-1]
    print(f"train accuracy {last.train_accuracy:.3f}, test accuracy {last.test_accuracy:.3f}, {last.seconds:.0f} s")
    print(summary(hook.result()))


if __name__ == "__main__":
    main()
