"""Operators that are a mean over the batches of a data set, with what a batch needs for a product kept while memory allows it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from landscape import stateless
from landscape.batches import leaves, seed_everything
from landscape.curvature.forms import choose, refuse_another_function, several_at_once_pay
from landscape.curvature.linear import Operator
from landscape.curvature.retained import Retained, default_budget
from landscape.fastforms import Form, channels_last
from landscape.objective import NonFiniteLossError, Objective

_AT_ONCE = 16  # vectors that go through a graph together: their memory is that many times that of one


class Term(Protocol):
    """What an operator needs of one batch."""

    weight: float
    examples: int

    def products(self, directions: list[Tensor], chosen: Sequence[int], *, release: bool, batched: bool) -> list[Tensor | None]:
        """Return the parts of A_b v that belong to the parameters with numbers `chosen`, for a v that is zero elsewhere.

        Args:
            directions: the parts of v, by chosen parameter; with a first dimension for several vectors where `batched`.
            chosen: numbers of parameters.
            release: whether the graph is used for the last time.
            batched: whether there are several vectors.

        Returns:
            The parts of the product, None for those that are zero.
        """
        ...


class OverBatches(Operator):
    r"""A mean over the batches of a data set, A = sum_b n_b A_b / sum_b n_b, at one point.

    The graph of a batch is kept for the next product while the graphs kept fit in `memory_budget`; beyond it they are rebuilt, one batch
    at a time. The model is rewritten into the cheapest of its equal forms, chosen once on a few examples: see `form` and `seconds`. The
    point and the buffers are copied: training these parameters afterwards does not move the operator.

    Args:
        objective: the loss on its data. Vectors hold its parameters in the order of `objective.names`.
        params: the point, by parameter name; the model's own parameters by default.
        memory_budget: bytes that kept graphs may take. None allows 2 GiB, or half of the free memory of a GPU; 0 keeps nothing.
        form: which form of the model to use: "plain" as it is, "rewritten" with cheaper convolutions and normalisations, "channels_last" in
            this layout, too. All give the same product up to rounding. None takes the one that is fastest on a few examples; name it to
            get the same bits on another day; a form that gives a few examples another loss is refused at the first product.
        at_once: whether `matmat` sends several vectors through a graph at once; None measures, on a GPU, whether that pays.

    Raises:
        ValueError: `params` lacks a parameter or has one of another shape, `memory_budget` is negative, or there is no such form.
    """

    _does = "product"  # in the message of a failure

    def __init__(
        self,
        objective: Objective,
        params: Mapping[str, Tensor] | None = None,
        *,
        memory_budget: float | None = None,
        form: Form | None = None,
        at_once: bool | None = None,
    ) -> None:
        own = objective.parameters
        super().__init__(objective.size, objective.dtype, objective.device, objective)
        params = own if params is None else params
        for name in objective.names:
            if name not in params or params[name].shape != own[name].shape:
                got = f"shape {tuple(params[name].shape)}" if name in params else "nothing"
                raise ValueError(f"params must hold {name!r} with shape {tuple(own[name].shape)}, got {got}")
        if memory_budget is not None and not memory_budget >= 0:
            raise ValueError(f"memory_budget must be a number of bytes, at least 0, got {memory_budget!r}")
        if form not in (None, "plain", "rewritten", "channels_last"):
            raise ValueError(f"form must be 'plain', 'rewritten', 'channels_last' or None, got {form!r}")
        self._of: Objective = objective
        with torch.inference_mode(False):
            self._leaves = [params[name].detach().clone().requires_grad_() for name in objective.names]
            self._held = objective.held()
        self.point = {name: leaf.detach() for name, leaf in zip(objective.names, self._leaves, strict=True)}
        self._leaves_last: list[Tensor] | None = None  # laid out with channels last
        self.form = form
        self._form_is_sure = form == "plain"
        self.seconds: dict[str, float] = {}  # of a product with a few examples, in the forms that were compared
        self.memory_budget = default_budget(self.device) if memory_budget is None else memory_budget
        self.memory_kept = 0  # bytes
        self._kept: list[Term] = []  # of the first batches
        self._may_keep, self._all_kept = self.memory_budget > 0, False
        self.at_once = at_once

    @abstractmethod
    def _term(self, index: int, batch: Any, point: list[Tensor], form: Form) -> Term:
        """Build what products need of a batch, with leaves of autograd at `point`."""

    # ---- products ---------------------------------------------------------------------------------------------------

    def matvec(self, vector: Tensor) -> Tensor:
        """Return A v for a vector (n,), or raise NonFiniteLossError if it holds NaN or infinity."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector must have shape ({self.size},), got {tuple(vector.shape)}")
        return self.matmat(vector[:, None])[:, 0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return A V for the columns of a matrix (n, k); a graph that is not kept is built once for all of them."""
        if vectors.ndim != 2 or len(vectors) != self.size:
            raise ValueError(f"vectors must have shape ({self.size}, k), got {tuple(vectors.shape)}")
        return self.products(vectors, range(len(self._leaves)))

    def products(self, vectors: Tensor, chosen: Sequence[int]) -> Tensor:
        """Return the products with the diagonal block of the parameters with numbers `chosen`, for the columns of a matrix (m, k)."""
        shapes = [self._leaves[i].shape for i in chosen]
        rows = vectors.detach().T.to(self.device, self.dtype).contiguous()
        with torch.inference_mode(False):
            rows = rows.clone() if rows.is_inference() else rows
            split = torch.split(rows, [shape.numel() for shape in shapes], 1)
            parts = [
                part.reshape(len(rows), *shape).to(self._leaves[i].dtype) for part, shape, i in zip(split, shapes, chosen, strict=True)
            ]
            totals = [torch.zeros_like(part) for part in parts]
            for term, last_use in self._terms():
                self._add(term, parts, totals, chosen, last_use)
                self._of.count("hvps", term.examples * len(rows))
                del term  # before the next one is built
            flat = torch.cat([total.reshape(len(rows), -1).to(self.dtype) for total in totals], 1)
        if not bool(torch.isfinite(flat).all()):
            self._explain_not_finite(parts, chosen)
        return flat.T.contiguous() if len(rows) > 1 else flat.view(-1, len(rows))

    def _add(self, term: Term, parts: list[Tensor], totals: list[Tensor], chosen: Sequence[int], last_use: bool) -> None:
        """Add n_b A_b v / sum_b n_b for every vector."""
        share, k = term.weight / self._of.total_weight, len(parts[0])
        if k > 1 and self.at_once is None:
            self.at_once = several_at_once_pay(term, [part[:_AT_ONCE] for part in parts], chosen, self.device)
        step = _AT_ONCE if self.at_once and k > 1 else 1
        for start in range(0, k, step):
            rows = slice(start, start + step) if step > 1 else start
            release = last_use and start + step >= k
            found = term.products([part[rows] for part in parts], chosen, release=release, batched=step > 1)
            used = [(total[rows], product) for total, product in zip(totals, found, strict=True) if product is not None]
            if used:
                torch._foreach_add_([total for total, _ in used], [product.detach() for _, product in used], alpha=share)

    def _terms(self) -> Iterator[tuple[Term, bool]]:
        """Yield the term of every batch, and whether it is used for the last time."""
        if self._all_kept:
            yield from ((term, False) for term in self._kept)
            return
        for index, batch in enumerate(self._of.batches):
            if index < len(self._kept):
                yield self._kept[index], False
                continue
            if index == 0:
                self._choose_form(batch)
            retained = Retained()
            with retained if self._may_keep else nullcontext():
                term = self._built(index, batch)
            if self._may_keep:
                size = retained.nbytes() + sum(leaf.numel() * leaf.element_size() for leaf in leaves(batch))
                self._may_keep = self.memory_kept + size <= self.memory_budget
            if self._may_keep:
                self._kept.append(term)
                self.memory_kept += size
            yield term, not self._may_keep
            del term
        self._all_kept = self._may_keep

    def _built(self, index: int, batch: Any, form: Form | None = None) -> Term:
        form = form or self.form
        assert form is not None
        device = self._of.device
        point = self._leaves
        if form == "channels_last":
            if self._leaves_last is None:  # one copy for all batches
                self._leaves_last = [channels_last(leaf.detach()).requires_grad_() if leaf.ndim == 4 else leaf for leaf in point]
            point = self._leaves_last
        with (
            stateless.undisturbed(device),
            torch.enable_grad(),
            stateless.twice_differentiable(),
            stateless.recurrent_gradients(self._of.model, device),
        ):
            seed_everything(index, device)  # a model that draws draws the same for a batch whenever its graph is built
            return self._term(index, batch, point, form)

    def _choose_form(self, batch: Any) -> None:
        if self.form is None:
            self.form, self.seconds = choose(self._of, self.point or {}, self._held, batch, partial(self._built, 0))
        elif not self._form_is_sure:
            refuse_another_function(self._of, self.point or {}, self._held, batch, self.form)
        self._form_is_sure = True

    def _explain_not_finite(self, parts: list[Tensor], chosen: Sequence[int]) -> None:
        names = self._of.names
        self._of.loss(dict(zip(names, self._leaves, strict=True)))  # says where, if the loss itself is not finite
        for index, (term, _) in enumerate(self._terms()):
            for row in range(len(parts[0])):
                found = term.products([part[row] for part in parts], chosen, release=False, batched=False)
                for i, product in zip(chosen, found, strict=True):
                    if product is not None and not bool(torch.isfinite(product).all()):
                        raise NonFiniteLossError(
                            f"the {self._does} is not finite on batch {index} (counted from 0), parameter {names[i]!r}: "
                            "the loss there is finite, its second derivative is not"
                        )
        raise NonFiniteLossError(f"the {self._does} is not finite: the vector holds NaN or infinity, or the sum over batches overflows")

    # ---- blocks -----------------------------------------------------------------------------------------------------

    def block(self, patterns: str | Sequence[str]) -> Operator:
        """Return the diagonal block of some parameters, an operator of its own that shares the graphs kept by this one.

        Its products do the part of the work that these parameters need.

        Args:
            patterns: glob patterns on the names of parameters.

        Returns:
            The block; its vectors hold the parameters chosen, in the order of `objective.names`.

        Raises:
            ValueError: A pattern fits no parameter.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        names = self._of.names
        missing = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]
        if missing or not patterns:
            raise ValueError(f"patterns: no parameter matches {missing}; there are {', '.join(names[:6])}, ...")
        return Block(self, [i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in patterns)])

    def blocks(self, by: Literal["layer", "parameter"] = "layer") -> dict[str, Operator]:
        """Return the diagonal blocks of all layers (modules that hold parameters), or of all parameters, by name."""
        if by not in ("layer", "parameter"):
            raise ValueError(f"by must be 'layer' or 'parameter', got {by!r}")
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(self._of.names):
            groups.setdefault(name.rpartition(".")[0] if by == "layer" else name, []).append(i)
        return {name: Block(self, numbers) for name, numbers in groups.items()}

    def __repr__(self) -> str:
        kept = f"{len(self._kept)} graphs kept ({self.memory_kept / 2**20:,.1f} MiB)"
        compared = ", ".join(f"{form} {seconds * 1e3:.1f} ms" for form, seconds in self.seconds.items())
        return f"{super().__repr__()[:-1]}, form {self.form}{f' ({compared} on a few examples)' if compared else ''}, {kept}>"


class Block(Operator):
    """A diagonal block of an operator of all parameters.

    Args:
        whole: the operator.
        chosen: numbers of the parameters in the block, ascending.
    """

    def __init__(self, whole: OverBatches, chosen: Sequence[int]) -> None:
        assert whole.objective is not None and whole.point is not None
        self.names = [whole.objective.names[i] for i in chosen]
        super().__init__(sum(whole.point[name].numel() for name in self.names), whole.dtype, whole.device, whole.objective)
        self.whole, self.chosen = whole, tuple(chosen)
        self.point = {name: whole.point[name] for name in self.names}

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,)."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector must have shape ({self.size},), got {tuple(vector.shape)}")
        return self.whole.products(vector[:, None], self.chosen)[:, 0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        if vectors.ndim != 2 or len(vectors) != self.size:
            raise ValueError(f"vectors must have shape ({self.size}, k), got {tuple(vectors.shape)}")
        return self.whole.products(vectors, self.chosen)
