"""The same minima on three lines (after Li et al. 2018, figures 2 and 3), from analyses/results/batch_and_decay, into figures/out.

python figures/filter_normalisation.py
"""

from __future__ import annotations

from batch_runs import BATCHES, DECAYS, runs
from curves import Panel, draw, save

from landscape.plots import FULL
from landscape.plots.style import PALETTE, Look


def main() -> None:
    of = runs()
    between = {f"decay {d:g}, 16 to 300": [run.surfaces["between"] for run in of[BATCHES[0], d]] for d in DECAYS}
    panels = [Panel("from batch 16 (0) to batch 300 (1)", "loss", {n: (s[0].x, [one.loss for one in s]) for n, s in between.items()})]
    for line, x in (("plain-line", "distance along a normal direction"), ("filter-line", "filter-normalised direction")):
        curves = {}
        for (batch, decay), files in of.items():
            lines = [run.surfaces[line] for run in files]
            curves[f"decay {decay:g}, batch {batch}"] = lines[0].x, [one.loss for one in lines]
        panels.append(Panel(x, "loss", curves))
    looks = {
        f"decay {d:g}, batch {b}": Look(PALETTE[i], "", "-" if j else "--") for j, d in enumerate(DECAYS) for i, b in enumerate(BATCHES)
    }
    looks |= {name: Look(PALETTE[5], "", "-" if i else "--") for i, name in enumerate(between)}
    panels = [Panel(p.x, p.y, p.curves, log_y=True) for p in panels]
    note = f"band: ± 1 standard error over {len(next(iter(of.values())))} seeds; log scale"
    save(draw(panels, width=FULL, looks=looks, note=note), "filter_normalisation")


if __name__ == "__main__":
    main()
