"""Nets that train in seconds, for the digits and for tests."""

from torch import Tensor, nn

from sam_core.models.registry import positive, register


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm; the image is halved after the second, averaged after the fourth."""

    def __init__(self, num_classes: int, in_channels: int, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for i, out in enumerate((width, width, 2 * width, 2 * width)):
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            if i == 1:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, classes)."""
        return self.classifier(self.features(images).mean((2, 3)))


@register("small_cnn")
def small_cnn(num_classes: int, in_channels: int, *, width: int = 16) -> nn.Module:
    """Build the four-layer CNN with `width`, `width`, 2 `width`, 2 `width` channels."""
    return SmallCNN(num_classes, in_channels, positive("width", width))


@register("mlp")
def mlp(num_classes: int, in_channels: int, *, image_size: int = 8, hidden: tuple[int, ...] = (32, 16)) -> nn.Module:
    """Build a fully connected tanh net; 64-32-16-10 on the digits."""
    hidden = (hidden,) if isinstance(hidden, int) else tuple(hidden)
    sizes = [in_channels * image_size**2, *(positive("hidden", size) for size in hidden)]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes, sizes[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))
