"""Oracles: plain indexing, counting, a second loader that was never interrupted."""

import pytest
import torch

from sam_core import data
from sam_core.data import Examples, Loader


def numbered(n: int) -> Examples:
    return Examples(torch.arange(float(n)).reshape(n, 1, 1, 1), torch.arange(n))


def test_an_epoch_has_every_example_once_and_epochs_differ() -> None:
    loader = Loader(numbered(50), 8, seed=3)
    assert len(loader) == 7
    epochs = [torch.cat([targets for _, targets in loader]) for _ in range(3)]
    for order in epochs:
        assert torch.equal(order.sort().values, torch.arange(50))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])
    inputs, targets = loader.batch(5)
    assert torch.equal(inputs.flatten(), targets.float())


def test_every_batch_has_draws_of_its_own() -> None:
    drawn: list[float] = []

    def record(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        drawn.append(float(torch.rand((), generator=generator)))
        return images

    loader = Loader(numbered(24), 8, augmentation=record)
    for _ in range(2):
        list(loader)
    assert len(set(drawn)) == 6


def test_drop_last_and_plain_order() -> None:
    assert [len(t) for _, t in Loader(numbered(50), 8)] == [8] * 6 + [2]
    assert [len(t) for _, t in Loader(numbered(50), 8, drop_last=True)] == [8] * 6
    assert torch.equal(torch.cat([t for _, t in Loader(numbered(50), 8, shuffle=False)]), torch.arange(50))
    assert len(Loader(numbered(50), 80)) == 1


def test_the_seed_decides_and_nothing_else_disturbs() -> None:
    def noisy(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images + torch.rand(images.shape, generator=generator)

    def epochs(loader: Loader, disturb: bool = False) -> torch.Tensor:
        seen = []
        for _ in range(2):
            for inputs, _ in loader:
                seen.append(inputs)
                if disturb:
                    torch.rand(3)
                    loader.batch(11)
                    list(Loader(numbered(50), 8, seed=1, shuffle=False))
        return torch.cat(seen)

    first = epochs(Loader(numbered(50), 8, seed=1, augmentation=noisy))
    before = torch.get_rng_state()
    assert torch.equal(first, epochs(Loader(numbered(50), 8, seed=1, augmentation=noisy)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, epochs(Loader(numbered(50), 8, seed=1, augmentation=noisy), disturb=True))
    assert not torch.equal(first, epochs(Loader(numbered(50), 8, seed=2, augmentation=noisy)))


@pytest.mark.parametrize("stop", [1, 6, 7, 10])
def test_a_saved_loader_goes_on_in_the_middle_of_an_epoch(stop: int) -> None:
    whole = Loader(numbered(50), 8, seed=5)
    expected = [targets for _ in range(2) for _, targets in whole]
    first = Loader(numbered(50), 8, seed=5)
    while first.step < stop:
        for _ in first:
            if first.step == stop:
                break
    second = Loader(numbered(50), 8, seed=5)
    second.load_state_dict(first.state_dict())
    rest = []
    while second.step < 14:
        rest += [targets for _, targets in second]
    assert len(rest) == 14 - stop and all(torch.equal(a, b) for a, b in zip(rest, expected[stop:], strict=True))


def test_a_loader_of_other_batches_is_refused() -> None:
    state = Loader(numbered(50), 8).state_dict()
    for other in (Loader(numbered(50), 9), Loader(numbered(49), 8), Loader(numbered(50), 8, seed=1)):
        with pytest.raises(ValueError, match="its batches were others"):
            other.load_state_dict(state)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, not 0"):
        Loader(numbered(3), 0)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, not -1"):
        Loader(numbered(3), 1, seed=-1)
    with pytest.raises(ValueError, match="batch_size 4 with drop_last leaves no batch of 3 examples"):
        Loader(numbered(3), 4, drop_last=True)
    with pytest.raises(ValueError, match="inputs and targets must have the same length, not 3 and 2"):
        Examples(torch.zeros(3, 1, 1, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one example"):
        Examples(torch.zeros(0, 1, 1, 1), torch.zeros(0))


def test_the_memory_format_changes_no_value() -> None:
    images = Examples(torch.rand(6, 3, 4, 5), torch.arange(6))
    plain, last = (Loader(images, 4, channels_last=flag).batch(1) for flag in (False, True))
    assert torch.equal(plain.inputs, last.inputs) and last.inputs.is_contiguous(memory_format=torch.channels_last)
    assert plain.inputs.is_contiguous() and not last.inputs.is_contiguous()


def test_digits_through_a_loader_are_normalised() -> None:
    digits = data.digits()
    inputs = torch.cat([x for x, _ in Loader(digits.train, 100, shuffle=False)])
    assert torch.equal(inputs, digits.train.tensors()[0])
