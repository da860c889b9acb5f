"""Contours for small and large batches (after Li et al. 2018, figure 4), from analyses/results/batch_and_decay, into figures/out.

python figures/batch_contours.py
"""

from __future__ import annotations

from batch_runs import runs, title
from curves import save

from landscape import plots


def main() -> None:
    named = {title(batch, decay, of[0]): of[0].surfaces["filter"] for (batch, decay), of in runs().items()}
    save(plots.contours(named, width=plots.WIDE), "batch_contours")
    save(plots.surfaces3d(named, backend="plotly"), "batch_contours")


if __name__ == "__main__":
    main()
