"""Several models, every measure, on the same examples, the same draws and the same plane: what `landscape compare` and `demo` run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape.comparison.differences import Difference, Differences, as_results, differences_of, label_of
from landscape.comparison.job import Job, Say
from landscape.comparison.known import refuse_another_question
from landscape.comparison.measuring import Subject
from landscape.comparison.result import Comparison
from landscape.comparison.sizes import Sizes, seconds_of
from landscape.plots import RunReport
from landscape.results import store
from landscape.results.types import GradientTrace, TrainingHistory

__all__ = ["Comparison", "Difference", "Differences", "Sizes", "compare"]


def compare(
    models: Mapping[str, nn.Module],
    loss: Callable[..., Tensor],
    data: Any,
    *,
    out: str | Path | None = None,
    test_data: Any = None,
    sizes: Sizes | None = None,
    budget: float | str | None = None,
    seed: int = 0,
    reference: str | None = None,
    histories: Mapping[str, TrainingHistory] | None = None,
    traces: Mapping[str, GradientTrace] | None = None,
    commands: Mapping[str, str] | None = None,
    command: str = "",
    say: Say | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Comparison:
    """Measure several models on the same examples, shards, draws and probes, their surfaces on one plane, and how they differ.

    For each model: loss and accuracy, the largest eigenvalues, the trace and the spectral density of the Hessian, every measure of
    sharpness, a 1-D and a 2-D loss surface, and the straight line from the reference to it. The directions are drawn once,
    filter-normalised to the `reference` model and then used around every model, so that equal coordinates are equal distances. Models of
    other shapes than the reference get directions of their own and no line; everything else is compared.

    A part is done for all models before the next one begins, and kept in `out` as soon as it is there: interrupted, killed too, the same
    call goes on with what is missing. A measure that a loss or model does not have is left out, and the result says why.

    Args:
        models: the models by name; they are only read.
        loss: `loss(outputs, target)` or `loss(model, batch)`, as for `Objective`.
        data: what to measure on, usually training data; as for `Objective`.
        out: folder for one result file per model, `<name>.h5`, for each pair, `pairs/<reference>--<name>.h5`, and the plan; measurements
            found there that fit are not repeated. None keeps nothing.
        test_data: if given, loss and accuracy on it are put beside those on `data`.
        sizes: how much to measure.
        budget: time for all of it, in seconds or such as "90s", "5m", "1h"; what a forward, a gradient and a product cost is measured
            once, and the largest sizes up to `sizes` are taken that fit. None takes `sizes` as they are.
        seed: of every random draw.
        reference: the model whose filters scale the directions, and from which differences are taken; the first by default.
        histories: training histories by name, to be shown beside.
        traces: gradient traces by name, to be shown beside.
        commands: by name, the command that repeats the run.
        command: that repeats the comparison.
        say: called with lines of text: what is planned, and every result.
        progress: show a bar; None shows it on a terminal.
        options: passed on to `Objective`, such as `batch_size` or `dtype`.

    Returns:
        The measurements, by model, and `.differences()`, `.table()`, `.report(path)`.

    Raises:
        ValueError: no models, an unknown `reference`, a budget that is no time, a model that cannot be measured, or a folder with numbers
            of other models.
    """
    if not models:
        raise ValueError("models is empty: give at least one, such as {'sgd': model}")
    for name in models:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"models: a name must be a printable text on one line that is not blank, got {name!r}")
    for what, given in (("histories", histories), ("traces", traces), ("commands", commands)):
        unknown = [name for name in given or {} if name not in models]
        if unknown:
            raise ValueError(f"{what} has {unknown[0]!r}, which is none of the models {', '.join(map(repr, models))}")
    reference = next(iter(models)) if reference is None else reference
    if reference not in models:
        raise ValueError(f"reference must be one of {', '.join(map(repr, models))}, got {reference!r}")
    folder = None if out is None else Path(out)
    paths = {name: None if folder is None else folder / f"{store.file_name(name)}.h5" for name in models}
    seconds = None if budget is None else seconds_of(budget)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed!r}")
    job = Job(models, loss, data, test_data, options, reference, sizes or Sizes(), seconds, seed, folder, say, progress)
    about = {name: {"command": of} if (of := (commands or {}).get(name, "")) else {} for name in models}
    subjects = job.subjects(paths, about)
    for name, path in paths.items():
        if path is not None:
            store.check_writable(path)
            refuse_another_question(path, subjects[name].objective.provenance())
    job.announce()
    for name, subject in subjects.items():
        for result in ((histories or {}).get(name), (traces or {}).get(name)):
            if result is not None:
                subject.keep(result)

    def pair_file(name: str) -> Path | None:
        return None if folder is None else folder / "pairs" / f"{store.file_name(reference)}--{store.file_name(name)}.h5"

    job.run(subjects, pair_file)
    runs = {
        name: _report(s, (histories or {}).get(name), (traces or {}).get(name), (commands or {}).get(name, ""))
        for name, s in subjects.items()
    }
    found, notes = _differences(job, subjects, runs, reference, pair_file)
    return Comparison(
        runs,
        {name: path for name, path in paths.items() if path is not None},
        {name: subject.sharpness for name, subject in subjects.items()},
        {(reference, name): path for name, subject in subjects.items() for path in subject.paths.values()},
        dict(job.plan.left_out),
        job.table(),
        command,
        tuple(found),
        tuple(notes),
    )


def _report(subject: Subject, history: TrainingHistory | None, trace: GradientTrace | None, command: str) -> RunReport:
    return RunReport(
        name=subject.name,
        training=history,
        eigen=subject.eigen,
        trace=subject.trace,
        density=subject.density,
        sharpness={r.m: r for r in subject.sharpness if r.measure == "m_sharpness"},
        surfaces=subject.surfaces,
        gradients=trace,
        command=command,
        attributes=subject.attributes,
        paths=subject.paths,
        file=subject.path,
        measures={label_of(r): r for r in subject.sharpness if r.measure != "m_sharpness"},
    )


def _differences(
    job: Job, subjects: Mapping[str, Subject], runs: Mapping[str, RunReport], reference: str, pair_file: Callable[[str], Path | None]
) -> tuple[list[Difference], list[str]]:
    """Return the differences of every model from the reference, kept in the files of the pairs, and notes."""
    found: list[Difference] = []
    notes: list[str] = list(job.notes)
    one = subjects[reference]
    for name, subject in subjects.items():
        if name == reference:
            continue
        parts = {part: (of, one.evaluations[part]) for part, of in subject.evaluations.items() if part in one.evaluations}
        of_pair, said = differences_of(runs[name], runs[reference], parts, (subject.sharpness, one.sharpness), job.same_shapes(name))
        found += of_pair
        notes += said
        path = pair_file(name)
        if path is not None:
            for result in as_results(of_pair, one.objective.provenance()):
                store.save(path, result)
    return found, notes
