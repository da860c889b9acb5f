"""Results that were really computed, on problems small enough to do so in a test."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from landscape.results.types import (
    Cost,
    CurvatureTrace,
    Eigenpairs,
    GradientTrace,
    Provenance,
    Sharpness,
    SpectralDensity,
    Surface,
    TraceEstimate,
    TrainingHistory,
)

PROVENANCE = Provenance(
    model="Ripple",
    parameters=40,
    parameter_sha256="ab" * 32,
    data_sha256="cd" * 32,
    examples=256,
    batch_norm="eval",
    seed=0,
    dtype="float64",
    device="cpu",
    created_at="2025-01-02T03:04:05Z",
    torch_version="2.13.0",
    numpy_version="2.4.6",
    creation_library="landscape",
    creation_library_version="0.1.0",
)


@cache
def gram(n: int) -> np.ndarray:
    a = np.random.default_rng(1).normal(size=(4 * n, n)) * np.geomspace(3, 0.05, n)
    return a.T @ a / len(a)


@dataclass(frozen=True)
class Ripple:
    """Least squares on Gaussian data plus a ripple, so that there is something to see; `curvature` makes it sharper."""

    curvature: float = 1.0
    n: int = 40

    def matrix(self) -> np.ndarray:
        return self.curvature * gram(self.n)

    def loss(self, w: np.ndarray) -> np.ndarray:
        quadratic = 0.5 * np.einsum("...i,ij,...j->...", w, self.matrix(), w)
        return 0.01 + quadratic + 0.02 * self.curvature * (1 - np.cos(6 * w[..., 0]) * np.cos(5 * w[..., 1]))

    def grad(self, w: np.ndarray) -> np.ndarray:
        g = self.matrix() @ w
        g[0] += 0.12 * self.curvature * np.sin(6 * w[0]) * np.cos(5 * w[1])
        g[1] += 0.10 * self.curvature * np.cos(6 * w[0]) * np.sin(5 * w[1])
        return g

    def surface(self, nx: int = 31, ny: int | None = 31, name: str = "plane", shift: float = 0.0) -> Surface:
        d0, d1 = np.zeros((2, self.n))
        d0[0] = d1[1] = 1.0
        d0[5:], d1[5:] = np.sin(np.arange(self.n - 5)), np.cos(np.arange(self.n - 5))
        x = np.linspace(-1, 1, nx)
        if ny is None:
            loss = self.loss(shift + x[:, None] * d0)
            y = None
        else:
            y = np.linspace(-1, 1, ny) if ny > 1 else np.zeros(1)
            loss = self.loss(shift + x[None, :, None] * d0 + y[:, None, None] * d1)
        accuracy = 1 / (1 + loss)
        plane = {"kind": "random", "normalize": "filter", "seed": 0}
        return Surface(
            name,
            x,
            y,
            loss,
            accuracy,
            0.1 * np.sqrt(loss),
            np.ones(loss.shape, np.uint8),
            plane,
            cost=Cost(forwards=loss.size, seconds=0.5),
            provenance=PROVENANCE,
        )

    def eigen(self, k: int = 5) -> Eigenpairs:
        h = self.matrix()
        values, vectors = np.linalg.eigh(h.astype(np.float32))
        order = np.argsort(-abs(values))[:k]
        values, vectors = values[order].astype(float), vectors[:, order].astype(float)
        residuals = np.linalg.norm(h @ vectors - vectors * values, axis=0) + 0.03 * values
        return Eigenpairs(
            values, residuals, torch.from_numpy(vectors.T.copy()), 40, True, 1e-3, cost=Cost(hvps=40, seconds=0.1), provenance=PROVENANCE
        )

    def trace(self) -> TraceEstimate:
        probes = np.sign(np.random.default_rng(2).normal(size=(30, self.n)))
        samples = np.einsum("pi,ij,pj->p", probes, self.matrix(), probes)
        return TraceEstimate(float(samples.mean()), float(samples.std(ddof=1) / 30**0.5), samples, 30, True, 0.05, provenance=PROVENANCE)

    def density(self) -> SpectralDensity:
        values, vectors = np.linalg.eigh(self.matrix())
        probes = np.random.default_rng(3).normal(size=(4, self.n))
        weights = (probes @ vectors) ** 2
        weights /= weights.sum(axis=1, keepdims=True)
        sigma = 0.01 * float(np.ptp(values))
        grid = np.linspace(values.min() - 5 * sigma, values.max() + 5 * sigma, 400)
        bumps = np.exp(-0.5 * ((grid[:, None] - values) / sigma) ** 2) / (sigma * (2 * np.pi) ** 0.5)
        each = weights @ bumps.T
        nodes = np.broadcast_to(values, weights.shape).copy()
        return SpectralDensity(grid, each.mean(0), each.std(0, ddof=1) / 2, nodes, weights, sigma, 160, provenance=PROVENANCE)

    def curvature_trace(self, k: int = 3) -> CurvatureTrace:
        eigen, trace, epoch = self.eigen(k), self.trace(), np.arange(0, 11, 2)
        growth = (1 + 0.1 * epoch)[:, None]
        return CurvatureTrace(
            epoch, growth * eigen.values, growth * eigen.residuals, growth[:, 0] * trace.value, growth[:, 0] * trace.stderr,
            np.full(len(epoch), 40), 1e-3, provenance=PROVENANCE,
        )  # fmt: skip

    def sharpness(self, m: int, rho: float = 0.05) -> Sharpness:
        rng = np.random.default_rng(m)
        shards = max(1, 256 // m)
        values = []
        for _ in range(shards):
            w = 0.3 * rng.normal(size=self.n) / m**0.5
            g = self.grad(w)
            values.append(float(self.loss(w + rho * g / np.linalg.norm(g)) - self.loss(w)))
        stderr = float(np.std(values, ddof=1) / shards**0.5) if shards > 1 else float("nan")
        return Sharpness("m_sharpness", float(np.mean(values)), stderr, np.array(values), np.full(shards, m), rho, m, provenance=PROVENANCE)

    def descend(self, method: str, steps: int = 60, lr: float = 0.05) -> tuple[TrainingHistory, GradientTrace]:
        rng = np.random.default_rng(5)
        w = rng.normal(size=self.n)
        rows, loss, test = [], [], []
        for _ in range(steps):
            g = self.grad(w)
            y = w + 0.1 * g / np.linalg.norm(g)
            rows.append((g, self.grad(y)))
            loss.append(float(self.loss(w)))
            test.append(float(self.loss(w + 0.02)))
            w = w - lr * rows[-1][1] + 0.01 * rng.normal(size=self.n)
        gx, gy = (np.array(part) for part in zip(*rows, strict=True))
        layers = ("conv1.weight", "conv2.weight", "bn2.weight", "a_rather_long_module.path.to.layer.weight", "fc.weight", "fc.bias")
        parts = np.array_split(np.arange(self.n), len(layers))

        def compare(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1), np.linalg.norm(a - b, axis=-1)

        cosine, distance = compare(gx, gy)
        by_layer = [compare(gx[:, p], gy[:, p]) for p in parts]
        step = np.arange(steps)
        accuracy = 1 / (1 + np.array(loss))
        history = TrainingHistory(
            method, step, np.array(loss), accuracy, np.array(test), 1 / (1 + np.array(test)), np.full(steps, lr), np.full(steps, 0.1),
            0.08 * (step + 1.0), 50.0 * (step + 1), provenance=PROVENANCE,
        )  # fmt: skip
        trace = GradientTrace(
            10 * step, cosine, distance, np.linalg.norm(gx, axis=1), np.linalg.norm(gy, axis=1), layers,
            np.stack([c for c, _ in by_layer], 1), np.stack([d for _, d in by_layer], 1), provenance=PROVENANCE,
        )  # fmt: skip
        return history, trace


@pytest.fixture(scope="session")
def sharp() -> Ripple:
    return Ripple(2.0)


@pytest.fixture(scope="session")
def flat() -> Ripple:
    return Ripple(0.5)
