"""Points on several threads at once: the losses of one thread, and nothing of the caller's is changed."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.objective import Objective
from landscape.stateless import undisturbed
from landscape.surfaces import loss_surface, random_plane
from landscape.surfaces.points import evaluator, fastest, ways
from landscape.surfaces.side_by_side import SideBySide, threads_for

POINTS = [(x / 3, y / 2 - 1) for x in range(-3, 4) for y in range(4)]


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().mean((2, 3)) + torch.rand(())


def problem(model: nn.Module | None = None, loss=F.cross_entropy) -> Objective:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))
    return Objective(model.eval(), loss, (torch.randn(24, 3, 6, 6), torch.arange(24) % 4), batch_size=10)


def test_shares_have_the_bits_of_one_thread() -> None:
    objective = problem()
    plane = random_plane(objective, seed=1)
    batch = next(iter(objective.batches))
    assert [*ways(objective, batch)][0] == "channels_last, overwriting, 3 threads"
    with undisturbed(objective.device):
        together = evaluator(objective, plane, 2, "channels_last, overwriting, 3 threads")
        assert isinstance(together, SideBySide)
        for points in (POINTS, POINTS[:3], POINTS[:2], POINTS[:1]):
            found = together(batch, 0, points)
            torch.set_num_threads(1)
            expected = evaluator(objective, plane, 2, "channels_last, overwriting")(batch, 0, points)
            torch.set_num_threads(3)
            assert all(torch.equal(*pair) for pair in zip(found[:2], expected[:2], strict=True))
    assert torch.get_num_threads() == 3


def test_a_surface_on_threads_is_the_surface_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = problem()
    plane = random_plane(objective, seed=1)
    way = "channels_last, overwriting, 3 threads"
    with monkeypatch.context() as patch:
        patch.setattr("landscape.surfaces.computing.fastest_evaluator", lambda *given: (way, evaluator(objective, plane, 2, way), {}))
        threads = loss_surface(objective, plane, (-1, 1, 11), (-1, 1, 13))
    assert threads.plane["way"].endswith("3 threads")
    monkeypatch.setattr("landscape.surfaces.points.threads_for", lambda of, metrics: 1)
    alone = loss_surface(objective, plane, (-1, 1, 11), (-1, 1, 13))
    assert not alone.plane["way"].endswith("threads")
    assert abs(threads.loss / alone.loss - 1).max() < 1e-6 and (threads.accuracy == alone.accuracy).all()


def test_what_draws_or_is_not_known_to_be_safe_keeps_to_one_thread() -> None:
    drawing = problem(Drawing())
    with undisturbed(drawing.device):
        way, seconds = fastest(drawing, random_plane(drawing), 2, next(iter(drawing.batches)), POINTS)
    assert not any(name.endswith("threads") for name in [way, *seconds])
    assert threads_for(problem(loss=lambda outputs, target: F.cross_entropy(outputs, target))) == 1
    assert threads_for(problem(loss=nn.CrossEntropyLoss())) == 3


def test_an_error_on_a_thread_is_raised_and_the_threads_are_put_back() -> None:
    def good(batch, index, points):
        return torch.zeros(len(points)), None

    def bad(batch, index, points):
        raise RuntimeError("this share fails")

    with pytest.raises(RuntimeError, match="this share fails"):
        SideBySide([good, bad, good])(None, 0, POINTS)
    assert torch.get_num_threads() == 3
