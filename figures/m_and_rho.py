"""Test error and curvature over rho for several m (after Foret et al. 2021, figure 3, and Behdin et al. 2023), into figures/out.

python figures/m_and_rho.py
"""

from __future__ import annotations

from curves import Panel, draw, save
from micro_runs import DATA, LOOKS_AS, NAMES, columns, largest_eigenvalue, runs, test_error

from landscape.plots import method_looks


def main() -> None:
    of = runs()
    quantities = {"test error (%)": test_error, "largest Hessian eigenvalue": largest_eigenvalue}
    panels = []
    for name, number in quantities.items():
        curves = {NAMES[pieces]: columns(of, pieces, number) for pieces in (1, 4, 16)}
        ticks = next(iter(curves.values()))[0]
        levels = {NAMES[0]: [number(run) for run in of[0, 0.0]]}
        panels.append(Panel("radius ρ", name, curves, levels, log_x=True, log_y="eigenvalue" in name, ticks=ticks))
    base = method_looks(LOOKS_AS.values())
    looks = {NAMES[pieces]: base[look] for pieces, look in LOOKS_AS.items()}
    note = f"{DATA}; m: examples that share a perturbation; ± 1 standard error over {len(of[0, 0.0])} seeds"
    save(draw(panels, looks=looks, note=note), "m_and_rho")


if __name__ == "__main__":
    main()
