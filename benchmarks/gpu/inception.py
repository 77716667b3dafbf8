"""A network of Inception-v3's shape with random weights, called as the StyleGAN suite calls its detector.

As many operations as the real one, and no more meaning than noise: for the speed of a FID's pipeline only. Channels are
those of Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv 1512.00567, table 1 and
figures 5 to 7.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """A convolution with bias and ReLU, as a folded batch norm leaves it; the size stays unless padding is 0."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if same else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding)
        nn.init.kaiming_normal_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H', W']."""
        return functional.relu(self.conv(x))


class Pool(nn.Module):
    """Means of 3 x 3 pixels at stride 1, or maxima at stride 2."""

    def __init__(self, reduce: bool) -> None:
        super().__init__()
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C, H', W']."""
        return functional.max_pool2d(x, 3, 2) if self.reduce else functional.avg_pool2d(x, 3, 1, 1)


class Branches(nn.Module):
    """Several ways from one input, their results one behind the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, sum of channels, H', W']."""
        results = []
        for branch in self.branches:
            results.append(branch(x))
        return torch.cat(results, 1)


class InceptionLike(nn.Module):
    """uint8 images [N, 3, H, W] to features [N, 2048 / divide] or class probabilities.

    Args:
        divide: Divisor of all channels.
        size: Pixels that images are enlarged to.
        classes: Number of classes.
    """

    def __init__(self, divide: int = 1, size: int = 299, classes: int = 1008) -> None:
        super().__init__()

        def c(channels: int) -> int:
            return max(channels // divide, 1)

        def seq(*layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(*layers)

        self.size = size
        layers: list[nn.Module] = [
            *(Conv(3, c(32), 3, 2, same=False), Conv(c(32), c(32), 3, same=False), Conv(c(32), c(64), 3), Pool(True)),
            *(Conv(c(64), c(80)), Conv(c(80), c(192), 3, same=False), Pool(True)),
        ]
        n = c(192)
        for pooled in (32, 64, 64):  # 35 x 35
            layers.append(
                Branches(
                    Conv(n, c(64)),
                    seq(Conv(n, c(48)), Conv(c(48), c(64), 5)),
                    seq(Conv(n, c(64)), Conv(c(64), c(96), 3), Conv(c(96), c(96), 3)),
                    seq(Pool(False), Conv(n, c(pooled))),
                )
            )
            n = 2 * c(64) + c(96) + c(pooled)
        layers.append(
            Branches(
                Conv(n, c(384), 3, 2, same=False),
                seq(Conv(n, c(64)), Conv(c(64), c(96), 3), Conv(c(96), c(96), 3, 2, same=False)),
                Pool(True),
            )
        )
        n += c(384) + c(96)
        for width in (128, 160, 160, 192):  # 17 x 17, factorized into 1 x 7 and 7 x 1
            m, out = c(width), c(192)
            layers.append(
                Branches(
                    Conv(n, out),
                    seq(Conv(n, m), Conv(m, m, (1, 7)), Conv(m, out, (7, 1))),
                    seq(Conv(n, m), Conv(m, m, (7, 1)), Conv(m, m, (1, 7)), Conv(m, m, (7, 1)), Conv(m, out, (1, 7))),
                    seq(Pool(False), Conv(n, out)),
                )
            )
            n = 4 * out
        layers.append(
            Branches(
                seq(Conv(n, c(192)), Conv(c(192), c(320), 3, 2, same=False)),
                seq(
                    Conv(n, c(192)),
                    Conv(c(192), c(192), (1, 7)),
                    Conv(c(192), c(192), (7, 1)),
                    Conv(c(192), c(192), 3, 2, same=False),
                ),
                Pool(True),
            )
        )
        n += c(320) + c(192)
        for _ in range(2):  # 8 x 8
            m = c(384)
            layers.append(
                Branches(
                    Conv(n, c(320)),
                    seq(Conv(n, m), Branches(Conv(m, m, (1, 3)), Conv(m, m, (3, 1)))),
                    seq(Conv(n, c(448)), Conv(c(448), m, 3), Branches(Conv(m, m, (1, 3)), Conv(m, m, (3, 1)))),
                    seq(Pool(False), Conv(n, c(192))),
                )
            )
            n = c(320) + 4 * m + c(192)
        self.layers = seq(*layers)
        self.output = nn.Linear(n, classes)

    def forward(self, images: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        """As the suite calls it."""
        x = images.to(torch.float32) / 127.5 - 1
        x = functional.interpolate(x, [self.size, self.size], mode="bilinear", align_corners=False)
        features = self.layers(x).mean([2, 3])
        if return_features:
            return features
        logits = functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(1)
