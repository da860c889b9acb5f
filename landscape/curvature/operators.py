"""Symmetric linear operators of a loss. The algorithms of this package see an operator, never a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape import stateless
from landscape.batches import count_examples, leaves, seed_everything
from landscape.objective import Held, NonFiniteLossError, Objective

_CPU_BUDGET = 2 * 2**30
_GPU_SHARE = 0.5
_MARK = once_differentiable(lambda ctx, grad: grad).__code__  # one code object for every backward that is marked


class Operator(ABC):
    """A symmetric linear map of vectors (n,).

    Args:
        size: n, the length of the vectors.
        dtype: dtype in which products are computed.
        device: where they are computed.
        objective: the objective that the operator belongs to, which counts the work; None for a bare matrix.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, objective: Objective | None = None) -> None:
        self.size, self.dtype, self.device, self.objective = size, dtype, device, objective
        self.point: dict[str, Tensor] | None = None  # where an operator of an objective was taken, by parameter name

    @abstractmethod
    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,), as a new tensor."""

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        return torch.stack([self.matvec(column) for column in vectors.unbind(1)], 1)

    def to_scipy(self) -> LinearOperator:
        """Return the operator as SciPy's solvers take it; vectors travel through host memory."""
        dtype = torch.promote_types(self.dtype, torch.float32)

        def product(vectors: Any) -> Any:
            columns = torch.from_numpy(vectors.reshape(self.size, -1)).to(self.device, self.dtype)
            return self.matmat(columns).to("cpu", dtype).numpy().reshape(vectors.shape)

        numpy_dtype = torch.empty(0, dtype=dtype).numpy().dtype
        return LinearOperator((self.size, self.size), matvec=product, rmatvec=product, matmat=product, dtype=numpy_dtype)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.size:,} x {self.size:,}, {self.dtype}, {self.device}>"


class DenseOperator(Operator):
    """A symmetric matrix (n, n) that is given explicitly.

    Args:
        matrix: the matrix; anything that `torch.as_tensor` takes.

    Raises:
        ValueError: the matrix is not square or not symmetric.
    """

    def __init__(self, matrix: Any) -> None:
        matrix = torch.as_tensor(matrix)
        if not matrix.is_floating_point():
            matrix = matrix.to(torch.get_default_dtype())
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
            raise ValueError(f"matrix must be square and not empty, got shape {tuple(matrix.shape)}")
        tolerance = 1e3 * torch.finfo(matrix.dtype).eps * float(matrix.abs().max())
        if not bool(((matrix - matrix.T).abs() <= tolerance).all()):
            raise ValueError("matrix must be symmetric and finite")
        super().__init__(len(matrix), matrix.dtype, matrix.device)
        self.matrix = matrix

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,)."""
        return self.matrix @ vector

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k)."""
        return self.matrix @ vectors


class HessianOperator(Operator):
    r"""The Hessian of the mean loss over a data set, H = sum_b n_b H_b / sum_b n_b, at one point.

    A product differentiates the gradient along the vector: H_b v = d/dw (grad loss_b(w) . v). The graph of a batch's gradient is kept for
    the next product while the graphs kept fit in `memory_budget`; beyond it they are rebuilt, one batch at a time. The products are the
    same. The point and the buffers are copied: training these parameters afterwards does not move the operator.

    Args:
        objective: the loss on its data. Vectors hold its parameters in the order of `objective.names`.
        params: the point, by parameter name; the model's own parameters by default.
        memory_budget: bytes that kept graphs may take. None allows 2 GiB, or half of the free memory of a GPU; 0 keeps nothing.

    Raises:
        ValueError: `params` lacks a parameter or has one of another shape, or `memory_budget` is negative.
    """

    def __init__(self, objective: Objective, params: Mapping[str, Tensor] | None = None, *, memory_budget: float | None = None) -> None:
        own = objective.parameters
        super().__init__(objective.size, objective.dtype, objective.device, objective)
        params = own if params is None else params
        for name in objective.names:
            if name not in params or params[name].shape != own[name].shape:
                got = f"shape {tuple(params[name].shape)}" if name in params else "nothing"
                raise ValueError(f"params must hold {name!r} with shape {tuple(own[name].shape)}, got {got}")
        if memory_budget is not None and not memory_budget >= 0:
            raise ValueError(f"memory_budget must be a number of bytes, at least 0, got {memory_budget!r}")
        self._of: Objective = objective
        with torch.inference_mode(False):
            self._leaves = [params[name].detach().clone().requires_grad_() for name in objective.names]
            self._held = objective.held()
        self.point = {name: leaf.detach() for name, leaf in zip(objective.names, self._leaves, strict=True)}
        self.memory_budget = _default_budget(self.device) if memory_budget is None else memory_budget
        self.memory_kept = 0  # bytes
        self._kept: list[_GradientGraph] = []  # of the first batches
        self._may_keep, self._all_kept = self.memory_budget > 0, False

    def matvec(self, vector: Tensor) -> Tensor:
        """Return H v for a vector (n,), or raise NonFiniteLossError if it holds NaN or infinity."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector must have shape ({self.size},), got {tuple(vector.shape)}")
        return self.matmat(vector[:, None])[:, 0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return H V for the columns of a matrix (n, k); a graph that is not kept is built once for all of them."""
        if vectors.ndim != 2 or len(vectors) != self.size:
            raise ValueError(f"vectors must have shape ({self.size}, k), got {tuple(vectors.shape)}")
        columns = [self._split(column) for column in vectors.detach().unbind(1)]
        with torch.inference_mode(False):
            totals = [[torch.zeros_like(leaf, requires_grad=False) for leaf in self._leaves] for _ in columns]
            for graph, last_use in self._graphs():
                share = graph.weight / self._of.total_weight
                for i, (column, total) in enumerate(zip(columns, totals, strict=True)):
                    graph.add_product(column, total, share, release=last_use and i == len(columns) - 1)
                self._of.count("hvps", graph.examples * len(columns))
                del graph  # before the next one is built
            # One column needs no second copy.
            flat = [torch.cat([part.reshape(-1).to(self.dtype) for part in total]) for total in totals]
            products = flat[0][:, None] if len(flat) == 1 else torch.stack(flat, 1) if flat else vectors.new_zeros(self.size, 0)
        if not bool(torch.isfinite(products).all()):
            self._explain_not_finite(columns)
        return products

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = torch.split(vector, [leaf.numel() for leaf in self._leaves])
        return [part.view(leaf.shape).to(leaf.device, leaf.dtype) for part, leaf in zip(parts, self._leaves, strict=True)]

    def _graphs(self) -> Iterator[tuple[_GradientGraph, bool]]:
        """Yield the graph of every batch's gradient, and whether it is used for the last time."""
        if self._all_kept:
            yield from ((graph, False) for graph in self._kept)
            return
        for index, batch in enumerate(self._of.batches):
            if index < len(self._kept):
                yield self._kept[index], False
                continue
            retained = _Retained()
            with retained if self._may_keep else nullcontext():
                graph = _GradientGraph(self._of, self._leaves, self._held, index, batch)
            if self._may_keep:
                size = retained.nbytes() + sum(leaf.numel() * leaf.element_size() for leaf in leaves(batch))
                self._may_keep = self.memory_kept + size <= self.memory_budget
            if self._may_keep:
                self._kept.append(graph)
                self.memory_kept += size
            yield graph, not self._may_keep
            del graph
        self._all_kept = self._may_keep

    def _explain_not_finite(self, columns: Sequence[list[Tensor]]) -> None:
        names = self._of.names
        self._of.loss(dict(zip(names, self._leaves, strict=True)))  # says where, if the loss itself is not finite
        for index, (graph, _) in enumerate(self._graphs()):
            for column in columns:
                product = [torch.zeros_like(leaf, requires_grad=False) for leaf in self._leaves]
                graph.add_product(column, product, 1.0, release=False)
                for name, part in zip(names, product, strict=True):
                    if not bool(torch.isfinite(part).all()):
                        raise NonFiniteLossError(
                            f"the Hessian-vector product is not finite on batch {index} (counted from 0), parameter {name!r}: "
                            "the loss there is finite, its second derivative is not"
                        )
        raise NonFiniteLossError(
            "the Hessian-vector product is not finite: the vector holds NaN or infinity, or the sum over batches overflows"
        )


class _GradientGraph:
    """The gradient of one batch's loss, with the graph that differentiates it again."""

    def __init__(self, objective: Objective, point: list[Tensor], held: Held, index: int, batch: Any) -> None:
        self.point, self.weight, self.examples = point, objective.weight(batch), count_examples(batch)
        device = objective.device
        with (
            stateless.undisturbed(device),
            torch.enable_grad(),
            stateless.twice_differentiable(),
            stateless.recurrent_gradients(objective.model, device),
        ):
            seed_everything(index, device)  # a model that draws draws the same for a batch whenever its graph is built
            loss = objective.batch_loss(dict(zip(objective.names, point, strict=True)), batch, held)
            forward = loss.grad_fn
            gradient = torch.autograd.grad(loss, point, create_graph=True, allow_unused=True) if loss.requires_grad else [None] * len(point)
        objective.count("gradients", self.examples)
        # A parameter that the loss does not use, or uses linearly, has no entry here: its rows are zero.
        self.gradient = {i: g for i, g in enumerate(gradient) if g is not None and g.requires_grad}
        if index == 0:
            _refuse_once_differentiable([forward, *(g.grad_fn for g in self.gradient.values())])

    def add_product(self, vector: list[Tensor], total: list[Tensor], share: float, *, release: bool) -> None:
        """Add share * H_b v to `total`; `release` frees the graph."""
        if not self.gradient:
            return
        outputs, directions = list(self.gradient.values()), [vector[i] for i in self.gradient]
        try:
            parts = torch.autograd.grad(outputs, self.point, directions, retain_graph=not release, allow_unused=True)
        except RuntimeError as error:
            if "derivative for" not in str(error) or "not implemented" not in str(error):
                raise
            raise NotImplementedError(f"the model uses an operation that cannot be differentiated twice: {error}") from error
        used = [(t, p.detach()) for t, p in zip(total, parts, strict=True) if p is not None]
        if used:
            torch._foreach_add_([t for t, _ in used], [p for _, p in used], alpha=share)


def _refuse_once_differentiable(nodes: list[Any]) -> None:
    """Raise where a graph has an operation that autograd would take for linear: its backward is marked as not differentiable."""
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(node, "_forward_cls", None), "backward", None)
        # The second is what the mark leaves in the graph of a gradient; where what flows back is constant, it leaves nothing.
        if getattr(backward, "__code__", None) is _MARK or node.name().rsplit("::", 1)[-1] == "Error":
            raise NotImplementedError(
                f"the model or the loss uses an operation whose backward is marked once_differentiable ({node.name()}), such as a "
                "custom kernel: it has no second derivative, and the Hessian needs one"
            )
        nodes += [following for following, _ in node.next_functions]


class _Retained(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are still alive afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor) and t.layout is torch.strided}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in given:  # views and in-place results are nothing new
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def nbytes(self) -> int:
        """Return the bytes that are still alive."""
        return sum(size for reference, size in self._made.values() if not reference.expired())


def undisturbed(operator: Operator) -> AbstractContextManager[None]:
    """Run an algorithm: no autograd graph of its own, no autocast of the caller's, everybody's random state as it was."""
    return stateless.undisturbed(operator.device)


def as_operator(given: Objective | Operator) -> Operator:
    """Return an operator as it is, and an objective as its Hessian.

    Args:
        given: an operator or an objective.

    Returns:
        The operator.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, Objective):
        return HessianOperator(given)
    if not isinstance(given, Operator):
        raise TypeError(f"expected an Objective or an Operator, got {type(given).__name__}; for a matrix use DenseOperator(matrix)")
    return given


def _default_budget(device: torch.device) -> float:
    return _GPU_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _CPU_BUDGET
