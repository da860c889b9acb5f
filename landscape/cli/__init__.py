"""The command line: `landscape train`, `landscape hessian`, `landscape surface`, ... Only what the command at hand needs is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

# Command: its module and class, and the first line of its help, which is there without importing them.
COMMANDS = {
    "compare": (
        "compare",
        "Compare",
        "Measure checkpoints on the same examples, shards, draws and plane, and write one page about how they differ.",
    ),
    "train": (
        "train",
        "Train",
        "Train a network with SGD, SAM or one of its relatives; leaves checkpoint.pt and run.h5 in the folder --out.",
    ),
    "methods": ("methods", "Methods", "Print the table of methods, or what is to be known of one: formula, options, cost, source."),
    "hessian": (
        "measure",
        "Hessian",
        "Measure curvature: the largest Hessian eigenvalues with residuals, the trace with its standard error, the spectral density.",
    ),
    "sharpness": (
        "measure",
        "Sharpness",
        "Measure sharpness: m-sharpness, or any of ten measures in one table; interrupted, the same command goes on.",
    ),
    "surface": (
        "measure",
        "Surface",
        "Compute the loss on a line or a plane of filter-normalised directions; interrupted, the same command goes on.",
    ),
    "path": (
        "path",
        "Path",
        "Measure the loss between two checkpoints, straight or on a trained curve, with its barrier; or the trajectory of a run.",
    ),
    "trace": (
        "train",
        "Trace",
        "Repeat a run with SAMPa (same network, start, data, schedule) and trace cosine and distance between its gradients at x and y.",
    ),
    "plot": ("draw", "Plot", "Draw everything in one or more result files; several files are drawn side by side on shared scales."),
    "report": ("draw", "Report", "Write one HTML page that compares result files; it needs no network."),
    "inspect": (
        "files",
        "Inspect",
        "Print what a result file holds: the run, every result with its error bar and cost, every dataset with its axes and units.",
    ),
    "export": ("files", "Export", "Write a result file in another format: csv, npz, netcdf, or vtp for ParaView."),
    "merge": ("files", "Merge", "Put the results of several files of one run into one file."),
    "demo": (
        "demo",
        "Demo",
        "Train the digits with SGD, SAM, mSAM and SAMPa from the same start, measure the four minima, draw them, write a report.",
    ),
}

DESCRIPTION = """Train sharp and flat minima, measure them and draw them. `landscape COMMAND --help` explains each command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit code 2 (LANDSCAPE_DEBUG=1 shows the traceback)."""
    command: Any = None
    try:
        import os

        from landscape.cli.parsing import parsed

        command = parsed(sys.argv[1:] if arguments is None else arguments)
        if "torch" in sys.modules:  # it is going to compute
            from sam_core.allocator import reuse_freed_memory

            reuse_freed_memory()
        command.run()
    except KeyboardInterrupt:
        print(f"landscape: interrupted{getattr(command, 'INTERRUPTED', '')}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("LANDSCAPE_DEBUG"):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, ValueError | OSError):  # from a model or data set of the user's own, or from us
            said = f"{type(error).__name__}: {said[:500]} (LANDSCAPE_DEBUG=1 shows where)"
        print(f"landscape: {said}", file=sys.stderr)
        return 2
    return 0
