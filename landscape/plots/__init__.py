"""Pictures of results: matplotlib for paper, plotly for turning around. A plot takes results and returns one figure; it reads no file."""

from landscape.plots.contours import contour, contours
from landscape.plots.curvature import curvature
from landscape.plots.descent import descent
from landscape.plots.eigenvalues import eigenvalues
from landscape.plots.generalization import generalization
from landscape.plots.lines import lines
from landscape.plots.measures import ascents, measures, sam_gaps
from landscape.plots.paths import path, paths, trajectory
from landscape.plots.report import RunReport, report
from landscape.plots.saving import save
from landscape.plots.scale import LossScale, loss_scale
from landscape.plots.seeds import over_seeds
from landscape.plots.sharpness import sharpness
from landscape.plots.sliders import eigenvalues_slider, layers_slider, spectrum_slider, surface_slider, trajectory_slider
from landscape.plots.spectra import spectra, spectrum
from landscape.plots.speed import speed
from landscape.plots.style import COLUMN, FULL, WIDE, Look, method_looks
from landscape.plots.surfaces3d import surface3d, surfaces3d
from landscape.plots.traces import traces
from landscape.plots.training import training

__all__ = [
    "COLUMN",
    "FULL",
    "WIDE",
    "Look",
    "LossScale",
    "RunReport",
    "ascents",
    "contour",
    "contours",
    "curvature",
    "descent",
    "eigenvalues",
    "eigenvalues_slider",
    "generalization",
    "layers_slider",
    "lines",
    "loss_scale",
    "measures",
    "method_looks",
    "over_seeds",
    "path",
    "paths",
    "report",
    "sam_gaps",
    "save",
    "sharpness",
    "spectra",
    "spectrum",
    "spectrum_slider",
    "speed",
    "surface3d",
    "surface_slider",
    "surfaces3d",
    "traces",
    "training",
    "trajectory",
    "trajectory_slider",
]
