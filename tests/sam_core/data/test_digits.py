"""Oracles: scikit-learn's own arrays, counting."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sam_core import data


def test_every_digit_is_in_exactly_one_part() -> None:
    digits = data.digits()
    rows = torch.cat([digits.train.inputs, digits.test.inputs]).reshape(-1, 64)
    labels = torch.cat([digits.train.targets, digits.test.targets])
    ours = np.column_stack([rows.numpy(), labels.numpy()])
    bunch = load_digits()
    theirs = np.column_stack([bunch.data, bunch.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_the_split_is_stratified_and_fixed() -> None:
    digits, again, other = data.digits(), data.digits(), data.digits(seed=1)
    shares = digits.test.targets.bincount() / (digits.train.targets.bincount() + digits.test.targets.bincount())
    assert bool(((shares - 0.2).abs() < 0.005).all())
    assert torch.equal(digits.train.inputs, again.train.inputs)
    assert not torch.equal(digits.train.inputs, other.train.inputs)
    assert bool((digits.train.targets.diff() != 0).float().mean() > 0.8), "in random order, not sorted by class"


def test_pixels_are_standardised() -> None:
    digits = data.digits()
    inputs, targets = digits.train.tensors()
    assert inputs.dtype == torch.float32 and inputs.shape == (1438, 1, 8, 8) and targets.dtype == torch.int64
    whole = torch.cat([inputs, digits.test.tensors()[0]])
    assert abs(float(whole.mean())) < 1e-4 and abs(float(whole.std()) - 1) < 1e-3


def test_a_subset_is_fixed_nested_and_drawn_from_all_classes() -> None:
    train = data.digits().train
    ordered = data.Examples(train.inputs[train.targets.argsort()], train.targets.sort().values)
    small, large = ordered.take(100), ordered.take(200)
    assert torch.equal(small.inputs, large.inputs[:100]) and torch.equal(small.targets, ordered.take(100).targets)
    assert bool((small.targets.bincount(minlength=10) >= 3).all())
    assert ordered.take(None) is ordered and torch.equal(ordered.take(len(ordered)).inputs, ordered.inputs)
    for count in (0, -1, 1439):
        with pytest.raises(ValueError, match=f"train_examples must be between 1 and 1438, the number of examples there are, not {count}"):
            ordered.take(count, "train_examples")


def test_the_hash_sees_every_part() -> None:
    train = data.digits().train
    changed = train.inputs.clone()
    changed[5, 0, 3, 3] += 1
    hashes = {
        train.sha256(),
        data.Examples(changed, train.targets, train.mean, train.std).sha256(),
        data.Examples(train.inputs, train.targets.flip(0), train.mean, train.std).sha256(),
        data.Examples(train.inputs, train.targets, None, train.std).sha256(),
    }
    assert len(hashes) == 4 and train.sha256() == data.digits().train.sha256()


def test_unknown_data_is_named() -> None:
    with pytest.raises(ValueError, match="unknown data 'cifar11': did you mean cifar10"):
        data.load("cifar11")
    with pytest.raises(ValueError, match="data 'cifar10' is read from files: set data_dir"):
        data.load("cifar10")
    with pytest.raises(ValueError, match=r"test_share must be in \(0, 1\), not 1"):
        data.digits(test_share=1)
