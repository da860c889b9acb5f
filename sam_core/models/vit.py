"""A vision transformer for small images (Dosovitskiy et al. 2021), pre-norm, class token, learned positions."""

import math

import torch
from torch import Tensor, nn

from sam_core.models.registry import positive, register


class Attention(nn.Module):
    """Multi-head self-attention, written out: the fused kernels have no second derivative."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, tokens, width) from (n, tokens, width)."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), nn.Linear(mlp_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, tokens, width) from (n, tokens, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches, a class token, `depth` layers, and a linear classifier on the class token."""

    def __init__(
        self, num_classes: int, in_channels: int, image_size: int, patch: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (image_size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads, 2 * width, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        patches = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions
        return self.classifier(self.norm(self.layers(x))[:, 0])


@register("vit_tiny")
def vit_tiny(
    num_classes: int,
    in_channels: int,
    *,
    image_size: int = 32,
    patch: int | None = None,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
) -> nn.Module:
    """Build a small vision transformer; patches are 4x4 on 32x32 images, 2x2 on smaller ones.

    Returns:
        The network.

    Raises:
        ValueError: patches do not tile the image, heads do not divide the width, or a value is not allowed.
    """
    patch = (4 if image_size >= 32 else 2) if patch is None else positive("patch", patch)
    if image_size % patch:
        raise ValueError(f"patch must divide the image size {image_size}, {patch} does not")
    if positive("width", width) % positive("heads", heads):
        raise ValueError(f"heads must divide width={width}, {heads} does not")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), not {dropout!r}")
    return ViT(num_classes, in_channels, image_size, patch, width, positive("depth", depth, 1000), heads, dropout)
