"""The job: every part for every model, in an order that keeps what is to be compared side by side, within a budget if there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from landscape.comparison.costs import Costs, evaluated_points, measured
from landscape.comparison.differences import label_of
from landscape.comparison.examples import number_of_examples, take
from landscape.comparison.known import Notebook, question_of
from landscape.comparison.measuring import Subject, between
from landscape.comparison.plan import CURVATURE, Shape, in_short, parts_of, planned, seconds_of_part, title
from landscape.comparison.sizes import Sizes, in_words
from landscape.curvature import check_deterministic
from landscape.objective import NonFiniteLossError, Objective
from landscape.plots.tables import Table
from landscape.progress import progress as progress_bar
from landscape.results.errors import StoreError
from landscape.results.numbers import with_error
from landscape.results.types import LossPath, Result, Sharpness, Subsampled, Surface
from landscape.surfaces import loss_surface, random_plane

_FEW = 32  # examples on which models are looked at first
_LATE = 1.1  # of the budget may be used before parts are left out
_FOR_THE_PLANE = 0.15  # of the budget is kept for it
_BELIEVED = (0.4, 4.0)  # bounds of how much longer parts take than estimated, from those that are done
_PILOT_EXAMPLES = 24

Say = Callable[[str], None]


class Job:
    """Several models measured alike.

    Args:
        models: by name.
        loss: of the objectives.
        data: to measure on.
        test_data: for losses and accuracies only; None for none.
        options: of the objectives.
        reference: name of the model whose plane is shared, and which the others are compared with.
        sizes: the most that is measured.
        budget: seconds for everything; None for no limit.
        seed: of all draws.
        out: folder of the results; None keeps nothing.
        say: told what is planned, and what was found, line by line.
        show: a progress bar; None shows it on a terminal.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        loss: Callable[..., Tensor],
        data: Any,
        test_data: Any,
        options: Mapping[str, Any],
        reference: str,
        sizes: Sizes,
        budget: float | None,
        seed: int,
        out: Path | None,
        say: Say | None,
        show: bool | None,
    ) -> None:
        self._started = time.monotonic()
        self._models, self._loss, self._data, self._test, self._options = dict(models), loss, data, test_data, dict(options)
        self._reference, self._budget, self._seed, self._out, self._say, self._show = reference, budget, seed, out, say, show
        self._whole = number_of_examples(data)
        self._tested = 0 if test_data is None else number_of_examples(test_data)
        self.notes: list[str] = []
        few = take(data, min(_FEW, self._whole), self._whole)
        probes = {name: self._looked_at(name, few) for name in self._models}
        shapes = {name: {n: tuple(p.shape) for n, p in o.parameters.items()} for name, o in probes.items()}
        self._same = {name: of == shapes[reference] for name, of in shapes.items()}
        self._alike = {name: next(n for n in shapes if shapes[n] == of) for name, of in shapes.items()}
        if not all(self._same.values()):
            others = ", ".join(repr(n) for n, same in self._same.items() if not same)
            self.notes.append(
                f"{others} and {reference!r} differ in their parameters' names or shapes: they share no plane, no line leads from one "
                "to the other, and draws of noise are not paired. Each lies on a plane of its own filters."
            )
        asked = {"sizes": vars(sizes), "budget": budget, "seed": seed, "test": self._tested > 0, "reference": reference}
        self._notebook = Notebook(out, question_of({name: p.provenance() for name, p in probes.items()}), asked)
        earlier = self._notebook.read()
        self._resumed = earlier is not None
        self._spent_before = 0.0
        pairs = sum(self._same.values()) - 1
        if earlier is not None:
            self.plan, costs, self._spent_before = earlier
            self.shape = Shape(costs, self._whole, self._tested, pairs, reference)
        else:
            self.shape = Shape(self._costs(probes), self._whole, self._tested, pairs, reference)
            self.plan = planned(self.shape, sizes, budget, self._elapsed())
            if not pairs:
                self.plan = replace(self.plan, sizes=replace(self.plan.sizes, between=0))
        self.took: dict[str, float] = {}
        self._subjects: dict[str, Subject] = {}
        self._expected_of_done = self._taken_of_done = 0.0

    # ---- before the work --------------------------------------------------------------------------------------------

    def _objective(self, name: str, data: Any, **further: Any) -> Objective:
        return Objective(self._models[name], self._loss, data, **{**self._options, **further})

    def _looked_at(self, name: str, few: Any) -> Objective:
        """Return the objective on a few examples, having found out that the model can be measured at all."""
        try:
            probe = self._objective(name, few)
            check_deterministic(probe, progress=False)
            probe.loss()
            return probe
        except NonFiniteLossError as error:
            raise NonFiniteLossError(f"model {name!r}: {error}") from error
        except ValueError as error:
            raise ValueError(f"model {name!r}: {error}") from error

    def _costs(self, probes: Mapping[str, Objective]) -> dict[str, Costs]:
        found: dict[str, Costs] = {}
        with progress_bar(None, "what does a pass cost?", "model", show=self._show) as bar:
            for name in self._models:
                if self._alike[name] != name:
                    found[name] = found[self._alike[name]]
                    continue

                def make(count: int, name: str = name) -> Objective:
                    return self._objective(name, take(self._data, count, self._whole))

                plane = None
                with suppress(ValueError):  # weights that are all zero have no such directions
                    plane = random_plane(probes[name], seed=self._seed)
                found[name] = measured(make, min(self._whole, self._options.get("batch_size") or self._whole), plane)
                bar.update(1)
        return found

    def _elapsed(self) -> float:
        return self._spent_before + time.monotonic() - self._started

    def same_shapes(self, name: str) -> bool:
        """Tell whether a model has parameters of the reference's names and shapes."""
        return self._same[name]

    def announce(self) -> None:
        """Say what is going to be done."""
        if self._say is not None:
            lines = in_short(self.plan, self.shape)
            for line in ["going on with what an earlier run has begun", *lines] if self._resumed else lines:
                self._say(line)

    # ---- the work ---------------------------------------------------------------------------------------------------

    def run(self, subjects: Mapping[str, Subject], pair_file: Callable[[str], Path | None]) -> None:
        """Do everything that is missing.

        Args:
            subjects: the models, filled with what is found.
            pair_file: the file of the reference and another model.
        """
        self._subjects, self._pair_file = dict(subjects), pair_file
        self._keep_plan()
        with progress_bar(None, "comparing", "s", show=self._show) as bar:
            bar.bar_format = "{desc}: {postfix}"
            for block in self._blocks():
                if block == ["plane"]:
                    self._fit_plane()
                if self._left_out_for_time(block):
                    continue
                for subject in self._subjects.values():
                    for part in block:
                        left = in_words(self._ratio * self._ahead(part, subject.name))
                        bar.set_postfix_str(f"{subject.name}, {title(part)}; about {left} left for everything")
                        self._do(part, subject)
                    subject.forget_graphs()
                self._keep_plan()

    def _blocks(self) -> list[list[str]]:
        """Return the parts in their order; those that share the graphs of products belong together."""
        parts = parts_of(self.plan.sizes)
        first = [part for part in parts if part in CURVATURE]
        return [["evaluation"], first, *([part] for part in parts if part not in ("evaluation", *first))]

    @property
    def _ratio(self) -> float:
        """How much longer parts take than was thought, from those that are done."""
        if self._expected_of_done < 0.2:
            return 1.0
        return min(max(self._taken_of_done / self._expected_of_done, _BELIEVED[0]), _BELIEVED[1])

    def _expected(self, part: str, names: Sequence[str]) -> float:
        sizes = self._sizes_of(part)
        return sum(seconds_of_part(part, name, self.shape, sizes, self.plan.share) for name in names if part not in self.plan.left_out)

    def _ahead(self, part: str, name: str) -> float:
        """Return the seconds that this part of a model and all later ones should take."""
        blocks, names = self._blocks(), list(self._subjects)
        at = next(i for i, block in enumerate(blocks) if part in block)
        total = sum(self._expected(p, names) for block in blocks[at + 1 :] for p in block)
        place, here = names.index(name), blocks[at]
        total += sum(self._expected(p, names[place + 1 :]) for p in here)
        return total + sum(self._expected(p, [name]) for p in here[here.index(part) :])

    def _do(self, part: str, subject: Subject) -> None:
        """Do one part of one model."""
        if part in self.plan.left_out:
            return
        expected, started, seconds = self._expected(part, [subject.name]), time.monotonic(), 0.0
        try:
            for result in self._results(part, subject):
                seconds += result.cost.seconds
                if self._say is not None:
                    self._say(f"{subject.name}: {described(part, result)}")
        except StoreError:
            raise
        except (NotImplementedError, ValueError) as error:
            # A measure that this loss or model does not have must not end a job of hours; trace and density ask for what eigenvalues do.
            self._leave_out(CURVATURE[CURVATURE.index(part) :] if part in CURVATURE else [part], f"{subject.name}: {error}")
        taken = time.monotonic() - started
        self.took[part] = self.took.get(part, 0.0) + max(taken, seconds)
        if taken > 0.5 * seconds:  # measured now, not found in a file
            self._expected_of_done += expected
            self._taken_of_done += taken

    def _results(self, part: str, subject: Subject) -> Iterable[Result]:
        if part == "between":
            return self._between(subject)
        if part == "plane" and self.plan.plane_examples is not None:
            subject.surface_objective = self._objective(subject.name, self.surface_data(part))
        return subject.measure(part, self._sizes_of(part), self._seed)

    def _between(self, subject: Subject) -> Iterator[Result]:
        if subject.name == self._reference or not self._same[subject.name]:
            return
        one, path = self._subjects[self._reference], self._pair_file(subject.name)
        data = self.surface_data("between")
        found = between(one, subject, path, self.plan.sizes, self._seed, self._options, self._loss, data)
        subject.paths[found.name] = found
        yield found

    # ---- data and sizes ---------------------------------------------------------------------------------------------

    def data(self) -> Any:
        """Return the examples that are measured on."""
        return take(self._data, self.plan.sizes.examples, self._whole)

    def test_data(self) -> Any:
        """Return the test examples, None without."""
        return take(self._test, self.plan.sizes.test_examples, self._tested) if self._tested else None

    def surface_data(self, part: str) -> Any:
        """Return the examples of the surfaces, or of the way between two models."""
        n = min(self.plan.sizes.examples or self._whole, self._whole)
        count = self.plan.plane_examples if part == "plane" else None
        count = count or self.plan.sizes.surface_examples
        if count is None or count >= n:
            return self._measured_on
        return take(self._measured_on, count, n)

    def subjects(self, paths: Mapping[str, Path | None], about: Mapping[str, dict[str, Any]]) -> dict[str, Subject]:
        """Return the models as they are measured, on one plane where their shapes allow it.

        Args:
            paths: their files.
            about: attributes of these.

        Returns:
            Subjects by name.
        """
        self._measured_on = self.data()
        test, surface = self.test_data(), self.surface_data("line")
        objectives = {name: self._objective(name, self._measured_on) for name in self._models}
        over = objectives if surface is self._measured_on else {name: self._objective(name, surface) for name in self._models}
        shared = random_plane(objectives[self._reference], normalize="filter", seed=self._seed)
        return {
            name: Subject(
                name,
                model,
                objectives[name],
                over[name],
                None if test is None else self._objective(name, test),
                paths[name],
                shared.around(objectives[name]) if self._same[name] else random_plane(objectives[name], seed=self._seed),
                self.shape.costs[name].form,
                about[name],
            )
            for name, model in self._models.items()
        }

    def _sizes_of(self, part: str) -> Sizes:
        sizes = self.plan.sizes
        if part != "plane" or self.plan.plane_points is None:
            return sizes
        return replace(sizes, points=self.plan.plane_points, surface_examples=self.plan.plane_examples)

    # ---- the budget -------------------------------------------------------------------------------------------------

    def _leave_out(self, parts: Sequence[str], reason: str) -> None:
        new = {part: " ".join(reason.split()) for part in parts if part not in self.plan.left_out and part in parts_of(self.plan.sizes)}
        self.plan = replace(self.plan, left_out={**self.plan.left_out, **new})
        if self._say is not None:
            for part in new:
                self._say(f"{title(part)} is left out: {reason}")

    def _left_out_for_time(self, block: Sequence[str]) -> bool:
        """Tell whether a block does not fit into the budget any more; it is left out then, for all models, with the reason."""
        if self._budget is None or block[0] == "evaluation" or block[0] in CURVATURE:
            return False
        seconds = self._ratio * sum(self._expected(part, list(self._subjects)) for part in block)
        kept = _FOR_THE_PLANE if self.plan.sizes.points and block != ["plane"] else 0.0
        if self._elapsed() + seconds <= (_LATE - kept) * self._budget or self._there(block):
            return False
        gone = f"{in_words(self._elapsed())} of the budget of {in_words(self._budget)} had gone by"
        self._leave_out(block, f"{gone}, and it takes about {in_words(seconds)}")
        self._keep_plan()
        return True

    def _there(self, block: Sequence[str]) -> bool:
        """Tell whether an earlier life has begun with a block: then all models shall have it."""
        return any(part in self.plan.begun for part in block)

    def _fit_plane(self) -> None:
        """Choose the examples of the plane by the time that is left; how many points it takes is tried on a few examples."""
        sizes, names = self.plan.sizes, list(self._subjects)
        if self._budget is None or self.plan.plane_examples is not None or "plane" in self.plan.left_out:
            return
        over = self._subjects[self._reference].surface_objective
        n, share = over.examples, None
        few = min(_PILOT_EXAMPLES, n)
        if sizes.tolerance is not None and sizes.points > 13 and self._expected("plane", names) > 0.05 * self._budget and n > 4 * few:
            pilot_on = self._objective(self._reference, take(self.surface_data("line"), few))
            axis = (-sizes.span, sizes.span, sizes.points)
            pilot = loss_surface(pilot_on, self._subjects[self._reference].plane, axis, axis, tolerance=sizes.tolerance)
            share = max(0.02, (pilot.cost.forwards - 13**2) / (sizes.points**2 - 13**2))
        room = 0.95 * self._budget - self._elapsed()
        each = self._ratio * sum(self.shape.costs[name].point_each for name in names)  # seconds for a point on an example
        points = sizes.points
        while points > 9 and evaluated_points(replace(sizes, points=points), share) * each * few > room:
            points = max(9, points - 4)
        examples = int(room / max(evaluated_points(replace(sizes, points=points), share) * each, 1e-12))
        self.plan = replace(self.plan, share=share, plane_examples=min(max(examples, few), n), plane_points=points)
        self._keep_plan()

    def _keep_plan(self) -> None:
        begun = tuple(dict.fromkeys((*self.plan.begun, *self.took)))
        self.plan = replace(self.plan, begun=begun)
        self._notebook.write(self.plan, self.shape.costs, self._elapsed())

    def table(self) -> Table:
        """Return what was measured on how much, how long it was to take and took, and what was left out and why."""
        rows = []
        names = list(self._subjects)
        for part in dict.fromkeys([*parts_of(self.plan.sizes), *self.plan.left_out]):
            if part in self.plan.left_out:
                rows.append([title(part), f"left out: {self.plan.left_out[part]}", "–"])
            elif part in self.took:
                rows.append([title(part), how_much(part, self._sizes_of(part), self.shape), in_words(self.took[part])])
        if self._budget is not None:
            rows.append(["everything", f"budget {in_words(self._budget)}", in_words(self._elapsed())])
        return Table(["part", "how much", f"time, {len(names)} models" if len(names) > 1 else "time"], rows, list(self.notes))


def described(part: str, result: Result) -> str:
    """Return a result in one line."""
    if isinstance(result, Subsampled):
        loss, accuracy = (with_error(v, e) for v, e in zip(result.values, result.stderr, strict=True))
        right = "" if math.isnan(result.values[1]) else f", accuracy {accuracy}"
        return f"{result.measure.removeprefix('evaluation_')} loss {loss}{right}"
    text = label_of(result) + " " + with_error(result.value, result.stderr) if isinstance(result, Sharpness) else result.summary()
    name = "" if isinstance(result, Sharpness | LossPath | Surface) else f"{title(part)} "
    return f"{name}{text} ({result.cost.seconds:.3g} s)"


def how_much(part: str, sizes: Sizes, shape: Shape) -> str:
    """Return in a few words how much of a part was measured."""
    n = min(sizes.examples or shape.examples, shape.examples)
    s = min(sizes.surface_examples or n, n)
    tested = min(sizes.test_examples or shape.test_examples, shape.test_examples)
    draws = (
        "" if sizes.draws is None or part not in ("average_case", "adaptive_average_case", "low_pass", "relative_flatness") else sizes.draws
    )
    match part:
        case "evaluation":
            return f"{n:,} examples" + (f", {tested:,} test examples" if tested else "")
        case "eigenvalues":
            return f"{sizes.eigenpairs}, on {n:,} examples, at most {sizes.products} products"
        case "trace":
            return f"to {100 * sizes.trace_tol:g} %, on {n:,} examples, at most {sizes.products} products"
        case "density":
            return f"{sizes.density_probes} x {sizes.density_steps} products, on {n:,} examples"
        case "line":
            return f"{sizes.points} points, on {s:,} examples"
        case "between":
            return f"{sizes.between} points, on {s:,} examples"
        case "plane":
            return f"{sizes.points} x {sizes.points} points, on {s:,} examples"
    return f"on {n:,} examples" + (f", {draws} draws" if draws else "")
