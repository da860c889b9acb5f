"""Which methods converge on f(x) = ||x||^2 with a fixed radius? SAM and SAMPa do, up to steps of eta rho; RandSAM and OptSAM do not.

    python analyses/convergence.py [--steps 1000] [--seeds 5] [--quick] [--out analyses/results/convergence]

The toy problem of SAMPa's paper (Xie, Pethick, Cevher 2024, arXiv 2410.10683), in two dimensions from (1, 1), with rho 0.1 and three rules
for eta. With a constant eta nobody gets closer to zero than its closed form says (`closed_form`); with a falling one SAM and SAMPa go on.
Files: <out>/<rule>/<method>.h5, RandSAM's one a seed; norm_x is ||grad f(x_t)||, the rest of the trace is known for SAMPa only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import sam_core
from landscape.results import store
from landscape.results.types import Cost, GradientTrace, Provenance

RHO = 0.1
METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "SAM": ("sam", {}),
    "SAMPa-0": ("sampa", {"lam": 0.0}),
    "SAMPa-0.5": ("sampa", {"lam": 0.5}),
    "RandSAM": ("randsam", {}),
    "OptSAM": ("optsam", {}),
}
RULES = {"eta-0.1": (0.1, False), "eta-0.01": (0.01, False), "eta-0.1-falling": (0.1, True)}  # (eta_0, whether eta_t = eta_0 / sqrt(t + 1))


def descend(name: str, eta: float, falling: bool, *, steps: int, seed: int = 0) -> GradientTrace:
    """Return ||grad f(x_t)|| for t = 0, ..., steps - 1, and what grad f(y_t) has to do with it where there is a y."""
    method, options = METHODS[name]
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    base = torch.optim.SGD([x], lr=eta)
    if name == "RandSAM":
        options = {"seed": seed}
    optimizer = sam_core.make(method, base, rho=RHO, **options)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        return loss

    at_x, at_y = np.empty((steps, 2)), np.full((steps, 2), np.nan)
    for t in range(steps):
        base.param_groups[0]["lr"] = eta / (t + 1) ** 0.5 if falling else eta
        at_x[t] = 2 * x.detach().numpy()
        if y := getattr(optimizer, "y_gradient", None):
            at_y[t] = y[0].numpy()
        optimizer.step(closure)
    norm_x, norm_y = np.linalg.norm(at_x, axis=1), np.linalg.norm(at_y, axis=1)
    return GradientTrace(
        step=np.arange(steps),
        cosine=(at_x * at_y).sum(1) / (norm_x * norm_y),
        distance=np.linalg.norm(at_x - at_y, axis=1),
        norm_x=norm_x,
        norm_y=norm_y,
        layers=(),
        layer_cosine=np.empty((steps, 0)),
        layer_distance=np.empty((steps, 0)),
        cost=Cost(gradients=optimizer.gradients_computed),
        provenance=Provenance(
            model="f(x) = ||x||^2", parameters=2, seed=seed, dtype="float64", device="cpu", torch_version=torch.__version__
        ),
    )


def closed_form(name: str, eta: float) -> float | None:
    """Return where ||grad f(x_t)||^2 = 4 |x|^2 stays; None where it depends on the length of the cycle.

    SAM jumps between +-eta rho / (1 - eta); RandSAM's E |x|^2 is eta rho^2 / (1 - eta); OptSAM rests at |x| = rho, whatever eta is.
    """
    return {"SAM": (2 * eta * RHO / (1 - eta)) ** 2, "RandSAM": 4 * eta * RHO**2 / (1 - eta), "OptSAM": 4 * RHO**2}.get(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few runs of a few steps, to see that all is well; not for reading")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "convergence")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.seeds = 20, 1
    tail = slice(arguments.steps // 2, None)
    print(f"mean of ||grad f(x_t)||^2 over t >= {tail.start}; in brackets that of the closed form")
    for rule, (eta, falling) in RULES.items():
        etas = [eta / (t + 1) ** 0.5 if falling else eta for t in range(arguments.steps)]
        title = f"η = {eta:g}/√(t+1)" if falling else f"η = {eta:g}"
        for name in METHODS:
            expected = [closed_form(name, eta_t) for eta_t in etas]
            ends = []
            for seed in range(arguments.seeds if name == "RandSAM" else 1):
                trace = descend(name, eta, falling, steps=arguments.steps, seed=seed)
                config = {"name": name, "rule": title, "eta": eta, "falling": falling, "rho": RHO, "closed_form": expected[-1]}
                stem = f"{name.lower()}-{seed}" if name == "RandSAM" else name.lower()
                store.save(arguments.out / rule / f"{stem}.h5", trace, run={"config": config})
                ends.append((trace.norm_x[tail] ** 2).mean())
            known = "" if expected[-1] is None else f" [{np.mean(expected[tail]):.3g}]"  # type: ignore[arg-type]
            print(f"{title:14s} {name:10s} {np.mean(ends):.3g}{known}", flush=True)


if __name__ == "__main__":
    main()
