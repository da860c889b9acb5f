"""SAMPa's two gradients at the same time on one GPU: two streams, one launch of a CUDA graph where that is possible.

A step of a small network leaves most of a large GPU idle. The weights x~_t and y_{t+1} are written into tensors of their own, which
stand in for the parameters while a pass runs, so that the two passes share nothing but the device.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sam_core import ranks
from sam_core.optim import vectors
from sam_core.optim.ascent import Ascent
from sam_core.optim.criterion import Criterion
from sam_core.optim.gradients import Shards
from sam_core.optim.minibatch import Minibatch
from sam_core.optim.optimizer import Options
from sam_core.optim.sampa import SAMPa
from sam_core.parallel.graph import WARM_UP, Graph, Passed, on, shapes

Way = Literal["sequential", "streams", "graph"]
WAYS: tuple[Way, ...] = ("sequential", "streams", "graph")
MEASURED = 5  # pairs of passes in a measurement


class StreamedSAMPa(SAMPa):
    """SAMPa-lam on one GPU, both gradients of a step at the same time: the iterates of `SAMPa`.

    In the first step with two batches of one size the ways are timed once, on copies of all that a pass changes, and the fastest is
    kept: one after the other, on two streams, or both in a CUDA graph, which saves the launches too. A batch of another size, and what
    a graph cannot hold, goes the best other way. On a CPU it is `SAMPa`. Needs `Minibatch` objects; steps with other closures are
    sequential, as are those of a GradScaler, of parameters with hooks, and of a model with weights that have gradients and are not
    trained. It keeps two more copies of the parameters.

    A graph repeats what Python decided when it was captured: a model that decides in Python (which layers to leave out, say) needs
    way="streams". Layers in other modes, other functions and numbers in a `Minibatch`, and weights in another place are noticed.
    Buffers beside running statistics follow the unperturbed pass alone.

    Args:
        base: Optimizer instance.
        rho: Radius, unless `ascent` has its own.
        lam: Share of grad f(y_{t+1}) in the update, in [0, 1].
        model: The network, to which all parameters of `base` belong.
        ascent: The climb from grad f(y_t); default: `PNorm(rho)`.
        way: "sequential", "streams" or "graph"; None: the fastest.
        **options: See `SharpnessAware`.

    Attributes:
        seconds: What the measurement found for each way, in seconds per pair of gradients; empty before, and without one.

    Raises:
        ValueError: An option does not go with two passes at once.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        lam: float = 0.2,
        *,
        ascent: Ascent | None = None,
        way: Way | None = None,
        **options: Unpack[Options],
    ) -> None:
        if way not in (None, *WAYS):
            raise ValueError(f'way must be "sequential", "streams", "graph" or None, not {way!r}')
        model = options.get("model")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be the network, whose parameters are stood in for, not {model!r}")
        super().__init__(base, rho, lam, ascent=ascent, **options)
        if type(self.criterion) is not Criterion:
            raise ValueError(f"{type(self.criterion).__name__} follows what its passes find, one after the other: use SAMPa")
        if options.get("same_rng"):
            raise ValueError("same_rng=True: the second pass would have to wait for what the first one drew; use SAMPa")
        if ranks.data_parallel(model) or ranks.any_cut(self.parameters()):
            raise ValueError("model is spread over several devices: use ParallelSAMPa")
        own = {id(p) for p in model.parameters()}
        if any(id(p) not in own for p in self.parameters()):
            raise ValueError("base has parameters that are not in model: nothing could stand in for them; use SAMPa")
        on_gpu = all(p.is_cuda for p in self.parameters())
        if way == "graph" and not on_gpu:
            raise ValueError(f'way="graph" needs a model on a CUDA device, this one is on {self.parameters()[0].device}')
        self.way: Way | None = way if way is not None or on_gpu else "sequential"
        self.seconds: dict[Way, float] = {}
        self._pair: Pair | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pair": None}  # streams and graphs are made anew where they are missing

    def _run(self, here: Shards, there: Shards) -> Tensor:
        batch, following = here[0][0], there[0][0]
        whole = len(here) == len(there) == 1 and isinstance(batch, Minibatch) and isinstance(following, Minibatch)
        if self.way == "sequential" or not whole or self._passes.scaler is not None or not self._stands_alone:
            return super()._run(here, there)
        assert isinstance(batch, Minibatch) and isinstance(following, Minibatch)
        if self.way is None and shapes(batch) != shapes(following):
            return super()._run(here, there)
        if not self.memory.shares:
            self._look([here], [1.0], frozen=True)
        pair = self._standing
        try:
            self._climb_along(self.y_gradient)
            pair.perturbed.take()
        finally:
            self._home.come_back()
        try:
            self._step_ahead()
            pair.ahead.take()
        finally:
            self._home.come_back()
        if self.way is None:
            self.way, self.seconds = pair.fastest(batch, following)
        (_, perturbed), (loss, y) = pair.run(self.way, batch, following)
        if any(p.grad is not None for p in self.parameters()):
            raise ValueError("model uses parameters that it keeps outside of its modules, where nothing can stand in for them: use SAMPa")
        if self.decay_in_ascent:
            perturbed, y = self._with_decay(perturbed, 1.0, pair.perturbed.weights), self._with_decay(y, 1.0, pair.ahead.weights)
        self.gradients_computed += 2
        self.memory.carried = {"y_gradient.0": {p: g for p, g in zip(self.parameters(), y, strict=True) if g is not None}}
        self.memory.shares, self.memory.draws = [1.0], []
        self._descend_along(loss, perturbed, [y], [1.0])
        return loss

    @property
    def _stands_alone(self) -> bool:
        """Whether two passes share nothing: hooks do not run on what stands in, and others would take two gradients at a time."""
        assert self.model is not None
        hooked = any([p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in self.parameters()])
        own = set(map(id, self.parameters()))
        tables = [module._parameters for module in self.model.modules() if module._parameters]
        return not hooked and all([id(p) in own or p is None or not p.requires_grad for table in tables for p in table.values()])

    @property
    def _standing(self) -> "Pair":
        """The stand-ins for the parameters that there are now."""
        params = self.parameters()
        if self._pair is None or not self._pair.fits(params):
            assert self.model is not None
            self._pair = Pair(self.model, params, self._take_gradient)
        return self._pair

    def _take_gradient(self, batch: Minibatch, weights: Sequence[Tensor], perturbed: bool) -> Passed:
        return self._passes.gradient([(batch, 1.0)], weights, perturbed=perturbed)


class StandIn:
    """Tensors that take the place of a model's parameters for one pass; for a perturbed one, of its buffers too."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], *, own_buffers: bool) -> None:
        self.model, self.params = model, list(params)
        self.weights = [torch.empty_like(p).requires_grad_(p.requires_grad) for p in self.params]
        self.buffers = list(model.buffers()) if own_buffers else []
        self.copies = [torch.empty_like(b) for b in self.buffers]

    @torch.no_grad()
    def take(self) -> None:
        """Take the values that the model has now."""
        vectors.copy_(self.weights, self.params)
        for mine, buffer in zip(self.copies, self.buffers, strict=True):
            mine.copy_(buffer)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Stand in for the model's own."""
        instead = {id(p): w for p, w in zip([*self.params, *self.buffers], [*self.weights, *self.copies], strict=True)}
        tables: list[Any] = [table for module in self.model.modules() for table in (module._parameters, module._buffers)]
        places = [(table, name, own) for table in tables for name, own in table.items() if own is not None and id(own) in instead]
        try:
            for table, name, own in places:
                table[name] = instead[id(own)]
            yield
        finally:
            for table, name, own in places:
                table[name] = own


class Pair:
    """The two passes of a step, at x~_t and at y_{t+1}."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], gradient: Callable[[Minibatch, Sequence[Tensor], bool], Passed]) -> None:
        self.model, self.gradient = model, gradient
        self.perturbed = StandIn(model, params, own_buffers=True)  # its running statistics are thrown away
        self.ahead = StandIn(model, params, own_buffers=False)
        self._place = [(p, p.shape, p.dtype, p.device, p.requires_grad) for p in params]
        self._stream = torch.cuda.Stream(params[0].device) if params[0].is_cuda else None
        self._graph: Graph | None = None
        self._otherwise: Way = "streams"  # for what the graph does not hold

    def fits(self, params: Sequence[Tensor]) -> bool:
        """Say whether these are the stand-ins for these parameters, as they are now."""
        now = [(p, p.shape, p.dtype, p.device, p.requires_grad) for p in params]
        same = len(now) == len(self._place) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(now, self._place, strict=True))
        buffers = list(self.model.buffers())
        return same and len(buffers) == len(self.perturbed.buffers) and all(map(_is, buffers, self.perturbed.buffers))

    def run(self, way: Way, here: Minibatch, there: Minibatch) -> tuple[Passed, Passed]:
        """Return loss and gradient at x~ on `here`, and those at y on `there`."""
        if way == "graph":
            if self._graph is None:
                self._graph = Graph(self, here, there)
            if self._graph.fits(here, there):  # the last batch of an epoch may be smaller
                return self._graph.replay(here, there)
            way = self._otherwise
        return self.side_by_side(here, there, self._stream if way != "sequential" else None)

    def side_by_side(self, here: Minibatch, there: Minibatch, stream: Any) -> tuple[Passed, Passed]:
        """Launch the perturbed pass on a stream, the other on the present one, and let that wait for both."""
        if stream is not None:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        try:
            with self.perturbed.in_place(), on(stream):
                first = self.gradient(here, self.perturbed.weights, True)
            with self.ahead.in_place():
                second = self.gradient(there, self.ahead.weights, False)
        finally:  # what is undone after an error, or ended as a capture, must not overtake the stream
            if stream is not None:
                torch.cuda.current_stream(stream.device).wait_stream(stream)
        return first, second

    def fastest(self, here: Minibatch, there: Minibatch) -> tuple[Way, dict[Way, float]]:
        """Time all ways that there are, and return the fastest with the seconds of each; nothing that is trained notices."""
        assert self._stream is not None
        device = self._stream.device
        seconds: dict[Way, float] = {}
        with self.untouched(device):
            for way in WAYS:
                try:
                    seconds[way] = self.timed(way, copy.copy(here), copy.copy(there))
                except (RuntimeError, NotImplementedError) as error:
                    # what waits for the device cannot be captured, and two passes at once may not fit into memory
                    if way != "graph" and not (way == "streams" and isinstance(error, torch.OutOfMemoryError)):
                        raise
                    self._graph = None
                    torch.cuda.synchronize(device)
        self._graph = None  # it has the buffers of the measurement in it
        first, *rest = sorted(seconds, key=seconds.__getitem__)
        self._otherwise = rest[0] if first == "graph" else first
        return first, seconds

    def timed(self, way: Way, here: Minibatch, there: Minibatch) -> float:
        """Return the seconds that a pair of passes takes."""
        assert self._stream is not None
        for i in range(WARM_UP + MEASURED):
            if i == WARM_UP:
                torch.cuda.synchronize(self._stream.device)
                start = time.perf_counter()
            self.run(way, here, there)
        torch.cuda.synchronize(self._stream.device)
        return (time.perf_counter() - start) / MEASURED

    @contextmanager
    def untouched(self, device: torch.device) -> Iterator[None]:
        """Put buffers, also where a pass replaces them by others, and random generators back afterwards."""
        tables = [(module._buffers, dict(module._buffers)) for module in self.model.modules()]
        buffers = [*self.model.buffers(), *self.perturbed.copies]
        before = vectors.clone(buffers)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                for table, content in tables:
                    table.clear()
                    table.update(content)
                with torch.no_grad():
                    vectors.copy_(buffers, before)


def _is(a: Any, b: Any) -> bool:
    return a is b
