"""Seconds of an epoch and accuracy against training time (after Xie et al. 2024), from benchmarks/results/parallel.json, into figures/out.

python figures/seconds_and_accuracy.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from curves import save

from landscape.plots.style import FULL, PALETTE, PaperFigure, paper_style

SOURCE = Path(__file__).parents[1] / "benchmarks" / "results" / "parallel.json"
NETWORKS = {"resnet20": "ResNet-20", "vit_tiny": "small ViT"}
STEPS = 391  # of an epoch of CIFAR-10 with batches of 128
SECONDS, TRAINING, ACCURACY = "seconds per epoch of 391 steps", "seconds of training", "test accuracy (%)"


def main() -> None:
    found = json.loads(SOURCE.read_text())["results"]
    save(paper(found), "seconds_and_accuracy")


def epochs(of: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the seconds of an epoch, round by round, of every contender that trains."""
    return {name: STEPS * np.array(of["seconds"][name]) for name in of["trained"]}


def paper(found: dict[str, Any]) -> PaperFigure:
    """Draw medians with the range of the rounds, and where every training ended."""
    with paper_style("light"):
        figure = PaperFigure(figsize=(FULL, 2.6))
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        for i, (network, of) in enumerate((n, found[n]) for n in NETWORKS):
            for j, (name, seconds) in enumerate(epochs(of).items()):
                middle, place = np.median(seconds), j + 0.15 * (2 * i - 1)
                style = {"color": PALETTE[j], "marker": "os"[i], "mfc": PALETTE[j] if not i else "white"}
                left.errorbar(middle, place, xerr=[[middle - seconds.min()], [seconds.max() - middle]], elinewidth=0.8, ls="none", **style)
                end = of["trained"][name]
                right.plot(end["seconds"], 100 * end["accuracy"], ls="none", ms=5, **style)
            right.plot([], [], "k" + "os"[i], mfc="k" if not i else "white", label=NETWORKS[network])
        names = list(epochs(found["resnet20"]))
        left.set_yticks(range(len(names)), labels=names)
        for text, color in zip(left.get_yticklabels(), PALETTE, strict=False):
            text.set(color=color, size=7)
        left.invert_yaxis()
        left.set_xlim(left=0)
        left.set(xlabel=SECONDS)
        right.set(xlabel=TRAINING, ylabel=ACCURACY)
        right.set_xlim(left=0)
        for ax in (left, right):
            ax.grid(True)
        figure.legend(
            *right.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            title="left: bars are the range over 7 rounds; right: 4 epochs on 2,048 images of CIFAR-10 (JPEG), one seed",
        )
    return figure


if __name__ == "__main__":
    main()
