"""A small convolutional network without normalization layers, for comparison with a ViT.

The layers of Carlini & Wagner's MNIST network ("Towards Evaluating the Robustness of Neural Networks", arXiv
1608.04644, table 1), which TRADES (arXiv 1901.08573) also trains. The padding by one pixel is our choice: it
keeps the feature maps of small images from vanishing.
"""

from itertools import pairwise

from torch import Tensor, nn

from robench.core import registry
from robench.defenses._base import Defense


class SmallCNN(nn.Module):
    """Two pairs of 3x3 convolutions, each followed by 2x2 max pooling, and three linear layers."""

    def __init__(self, image_size: int, width: int, hidden: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        for wide_in, wide in ((3, width), (width, 2 * width)):
            for inputs, outputs in ((wide_in, wide), (wide, wide)):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.body = nn.Sequential(*layers)
        sizes = (2 * width * (image_size // 4) ** 2, hidden, hidden)
        linear = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
        self.head = nn.Sequential(nn.Flatten(), *linear, nn.Linear(hidden, num_classes))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, 2 width, image_size / 4, image_size / 4)."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@registry.defenses.register("cnn")
def cnn(image_size: int = 32, width: int = 32, hidden: int = 200, num_classes: int = 10) -> Defense:
    """A small CNN; pixels are not normalized.

    Args:
        image_size: at least 4.
        width: channels of the first two convolutions; the other two have twice as many.
        hidden: width of the two hidden linear layers.
    """
    if image_size < 4:
        raise ValueError(f"{image_size=}: expected at least 4")
    network = SmallCNN(image_size, width, hidden, num_classes)
    return Defense(network, num_classes=num_classes, image_size=image_size)
