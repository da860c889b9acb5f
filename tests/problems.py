"""Small problems: losses with closed forms, and one network of every kind whose Hessian fits into memory."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Problem(NamedTuple):
    model: nn.Module
    loss: Callable[..., Tensor]
    data: tuple[Tensor, Tensor]


def spectrum_matrix(eigenvalues: list[float] | Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    matrix = (q * values) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


class Vector(nn.Module):
    """A model that is its parameter."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def quadratic(matrix: Tensor, examples: int = 7, seed: int = 0) -> Problem:
    """1/2 (w - c_i)' A (w - c_i), averaged over centres c_i: Hessian A, minimum at the mean of the centres."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(examples, len(matrix), generator=g, dtype=matrix.dtype)
    model = Vector(torch.randn(len(matrix), generator=g, dtype=matrix.dtype))

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        d = outputs - target
        return 0.5 * (d @ matrix * d).sum(1).mean()

    return Problem(model, loss, (centres, centres))


def logistic_regression(examples: int = 50, features: int = 6, seed: int = 0) -> tuple[Problem, Tensor]:
    """Return the problem and its Hessian X' diag(p (1 - p)) X / N, in float64."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=g, dtype=torch.float64)
    y = torch.randint(0, 2, (examples,), generator=g).double()
    model = nn.Linear(features, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, features, generator=g, dtype=torch.float64))
        p = torch.sigmoid(model(x))[:, 0]

    def loss(outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target)

    return Problem(model, loss, (x, y)), (x * (p * (1 - p))[:, None]).T @ x / examples


class Attention(nn.Module):
    """One attention block with layer norms, over tokens."""

    def __init__(self, tokens: int = 11, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 6, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Recurrent(nn.Module):
    """An LSTM over tokens whose output layer is tied to the embedding."""

    def __init__(self, tokens: int = 6, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, tokens)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(x))[0][:, -1])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 4), nn.Softplus(), nn.Linear(4, 3))


def _cnn() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Softplus(), nn.Conv2d(3, 2, 3, stride=2), nn.GELU(), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        model[1].running_mean.uniform_(-0.3, 0.3)
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 1.5)
    return model


def network(kind: str, examples: int = 13, seed: int = 0, dtype: torch.dtype = torch.float64) -> Problem:
    """Return a network of one of `NETWORKS` with random data and cross-entropy; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        y = torch.randint(0, 3, (examples,))
        x: Tensor
        if kind == "mlp":
            model, x = _mlp(), torch.randn(examples, 5, dtype=dtype)
        elif kind == "cnn":
            model, x = _cnn(), torch.randn(examples, 1, 6, 6, dtype=dtype)
        elif kind == "attention":
            model, x = Attention(), torch.randint(0, 11, (examples, 5))
        elif kind == "recurrent":
            model, x = Recurrent(), torch.randint(0, 6, (examples, 4))
        else:
            raise ValueError(kind)
    return Problem(model.to(dtype), F.cross_entropy, (x, y))


NETWORKS = ("mlp", "cnn", "attention", "recurrent")
