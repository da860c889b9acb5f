"""A pair of passes as a CUDA graph: captured, what it holds, and when it does not hold any more."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sam_core.optim.gradients import Gradient
from sam_core.optim.minibatch import Minibatch, mapped

if TYPE_CHECKING:
    from sam_core.parallel.streams import Pair

WARM_UP = 3  # pairs of passes before a measurement, and before a capture
Passed = tuple[Tensor, Gradient]


class Graph:
    """Both passes, captured; batches are copied into its own before it runs, results out of it afterwards.

    Raises:
        RuntimeError: What the passes do cannot be captured.
    """

    def __init__(self, pair: "Pair", here: Minibatch, there: Minibatch) -> None:
        self.pair, self.form = pair, (form(here), form(there))
        self.here, self.there = held(here), held(there)
        if not all(t.is_cuda for batch in (here, there) for data in (batch.inputs, batch.targets) for t in leaves(data, Tensor)):
            raise RuntimeError("a CUDA graph does not see other numbers in tensors on the CPU: move the batches to the GPU, or use streams")
        stream = torch.cuda.Stream(pair.perturbed.weights[0].device)
        with torch.cuda.device(stream.device), pair.untouched(stream.device):
            stream.wait_stream(torch.cuda.current_stream(stream.device))
            with on(stream):
                for _ in range(WARM_UP):
                    pair.side_by_side(held(here), held(there), pair._stream)
            torch.cuda.current_stream(stream.device).wait_stream(stream)
            self.place = surroundings(pair)
            self.graph = torch.cuda.CUDAGraph()
            with capturing(self.graph, stream):
                self.results = pair.side_by_side(self.here, self.there, pair._stream)
            if surroundings(pair) != self.place:  # as cuDNN's recurrent layers do, which put their weights together
                raise RuntimeError("a pass puts weights or buffers into another place, where a CUDA graph does not find them: use streams")

    def fits(self, here: Minibatch, there: Minibatch) -> bool:
        """Say whether these batches are of the captured kind."""
        return (form(here), form(there)) == self.form and surroundings(self.pair) == self.place

    def replay(self, here: Minibatch, there: Minibatch) -> tuple[Passed, Passed]:
        """Run both passes on these batches."""
        for mine, batch in ((self.here, here), (self.there, there)):
            for a, b in zip(tensors(mine), tensors(batch), strict=True):
                a.copy_(b, non_blocking=True)
        self.graph.replay()
        for mine, batch in ((self.here, here), (self.there, there)):
            for name, value in vars(mine).items():  # what the pass noted, such as the number of right answers
                if isinstance(value, Tensor) and getattr(batch, name, None) is None:
                    setattr(batch, name, value.clone())
        first, second = ((loss.clone(), [None if g is None else g.clone() for g in gradient]) for loss, gradient in self.results)
        return first, second


def held(batch: Minibatch) -> Minibatch:
    """Return the batch with tensors of its own."""
    own = copy.copy(batch)
    own.inputs, own.targets = (mapped(torch.clone, data) for data in (batch.inputs, batch.targets))
    if batch.index is not None:
        own.index = batch.index.clone()
    return own


def tensors(batch: Minibatch) -> list[Tensor]:
    """Return all tensors of a batch."""
    found: list[Tensor] = []
    for data in (batch.inputs, batch.targets, batch.index):
        mapped(found.append, data)
    return found


def leaves(data: Any, kind: type) -> list[Any]:
    """Return what is of one kind in nested tuples, lists and dicts."""
    if isinstance(data, Mapping):
        data = list(data.values())
    if isinstance(data, tuple | list):
        return [found for value in data for found in leaves(value, kind)]
    return [data] if isinstance(data, kind) else []


def shapes(batch: Minibatch) -> list[Any]:
    """Return what a batch looks like: all but the numbers, and but what is done with them."""
    found: list[Any] = [(t.shape, t.dtype, t.device, t.stride()) for t in tensors(batch)]
    return [found, [sorted(data) for data in (batch.inputs, batch.targets) if isinstance(data, Mapping)]]


def form(batch: Minibatch) -> list[Any]:
    """Return what must be the same for a graph to hold another batch: all but the numbers in its tensors."""
    others = [plain(x) for data in (batch.inputs, batch.targets) for x in leaves(data, object) if not isinstance(x, Tensor)]
    return [type(batch), *shapes(batch), others, made_of(batch.forward), made_of(batch._losses)]


class Same:
    """An object that equals itself alone, and lives as long as it is compared with."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def plain(value: Any) -> Any:
    """Return a number or a text itself, of all else which object it is."""
    return value if value is None or isinstance(value, bool | int | float | str) else Same(value)


def made_of(function: Any) -> Any:
    """Return what makes two functions one: their text and what it reads, because loops make them anew for every batch."""
    if isinstance(function, partial):
        return [made_of(function.func), [plain(x) for x in function.args], {name: plain(x) for name, x in function.keywords.items()}]
    if isinstance(function, FunctionType):
        code, known = function.__code__, function.__globals__
        values = [*(known[name] for name in code.co_names if name in known), *(function.__defaults__ or ())]
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # it is empty
                values.append(cell.cell_contents)
        return [Same(code), [plain(x) for x in values], {name: plain(x) for name, x in (function.__kwdefaults__ or {}).items()}]
    if isinstance(function, MethodType):
        return [Same(function.__func__), Same(function.__self__)]
    return plain(function)


def surroundings(pair: "Pair") -> list[Any]:
    """Return what a graph takes as it was when it was captured: where tensors lie, and the modes of layers."""
    stand_ins = (*pair.perturbed.weights, *pair.perturbed.copies, *pair.ahead.weights)
    found: list[Any] = [t.data_ptr() for t in stand_ins]
    for module in pair.model.modules():
        found.append((id(module), module.training))
        for table in (module._parameters, module._buffers):
            if table:
                found += [t if t is None else t.data_ptr() for t in table.values()]
    return found


@contextmanager
def capturing(graph: Any, stream: Any) -> Iterator[None]:
    """Capture what is launched inside on a stream; where that fails, leave nothing behind that keeps others from going on."""
    before = torch.cuda.current_stream(stream.device)
    try:
        # other threads, such as those of a loader that pins memory, do what they do
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    except BaseException:
        # a capture that fails leaves its stream the present one, the allocator in its pool, and the random generator in a state in which
        # it draws for captures only, until the next capture that ends well
        torch.cuda.set_stream(before)
        with suppress(RuntimeError, AttributeError, TypeError):
            torch._C._cuda_endAllocateToPool(stream.device.index, graph.pool())
        with suppress(RuntimeError):
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(stream.device)):
                torch.zeros(1, device=stream.device)
        torch.cuda.set_stream(before)
        raise


def on(stream: Any) -> AbstractContextManager[Any]:
    """Launch on a stream, or where one is."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)
