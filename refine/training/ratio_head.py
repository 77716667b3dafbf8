"""Head of the density ratio: features of the frozen teacher, the network on them, its calibration by noise level."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.contracts import Denoiser
from refine.runtime import distributed

NUM_FEATURES = 3  # resolutions of the teacher that the head uses, the lowest ones
WIDTH, HIDDEN = 64, 128  # channels of a feature map, and width of the vector that each map is reduced to
SMALLEST_MAP = 4  # height and width in pixels of a map that is flattened
NUM_BINS = 10  # bins, even in ln sigma between these ends; levels beyond belong to the outer bins
BIN_ENDS = (0.002, 80.0)
BIN_MEMORY = 1024  # half-life of a bin's running mean, in images
MAX_LOGIT = 10.0  # limit in the bins' means, so that a single image cannot dominate


class FeatureTaps:
    """Activations of a denoiser's encoder: the last at each of its lowest resolutions.

    Args:
        denoiser: Denoiser; without known blocks it has no features.
        device: Device of the denoiser.

    Attributes:
        shapes: Channels and resolution of each feature.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._taken: list[Tensor | None] = []
        self._watching = False
        for block, shape in _encoder_ends(denoiser, device)[-NUM_FEATURES:]:
            block.register_forward_hook(self._keeper(len(self.shapes)))
            self.shapes.append(shape)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context that keeps the features of one pass inside it, with their graph if they have one."""
        self._taken = [None] * len(self.shapes)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def taken(self) -> list[Tensor]:
        """Features of the watched pass, [N, C, r, r] each; a second call finds none."""
        taken, self._taken = self._taken, []
        assert all(feature is not None for feature in taken), "the pass of the denoiser did not come by its blocks"
        return [feature for feature in taken if feature is not None]

    def _keeper(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._watching:
                self._taken[index] = output

        return keep


@torch.no_grad()
def _encoder_ends(denoiser: Denoiser, device: torch.device) -> list[tuple[nn.Module, tuple[int, int]]]:
    """Last block at each resolution of a denoiser's encoder, with channels and resolution."""
    seen: list[tuple[nn.Module, tuple[int, int]]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append((module, (output.shape[1], output.shape[2])))

    hooks = [block.register_forward_hook(note) for block in denoiser.blocks()]
    try:
        if hooks:
            dtype = next((p.dtype for p in denoiser.module.parameters()), torch.float32)
            size = denoiser.img_resolution
            denoiser(
                torch.zeros(1, denoiser.img_channels, size, size, device=device, dtype=dtype),
                torch.ones(1, device=device),
            )
    finally:
        for hook in hooks:
            hook.remove()
    ends: dict[int, tuple[nn.Module, tuple[int, int]]] = {}
    lowest = None
    for block, (channels, resolution) in seen:
        if lowest is not None and resolution > lowest:
            break
        lowest = resolution
        ends[resolution] = (block, (channels, resolution))
    return list(ends.values())


class RatioNetwork:
    """Network of the head, to be trained.

    Attributes:
        module: Module of the head.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def blocks(self) -> Sequence[nn.Module]:
        """No blocks, because the head is small."""
        return ()


class RatioHead(nn.Module):
    """Logit of teacher versus generator, from a noisy image, the teacher's estimate and its features.

    Every feature map is reduced to a vector; the vectors and the embeddings of noise level and labels are added. The
    last layer starts at zero, so the ratio starts at 1.

    Args:
        shapes: Channels and resolution of each feature.
        img_channels: Channels of an image.
        img_resolution: Height and width of an image in pixels.
        label_dim: Width of class labels; 0 for none.
    """

    bin_means: Tensor

    def __init__(
        self, shapes: Sequence[tuple[int, int]], img_channels: int, img_resolution: int, label_dim: int
    ) -> None:
        super().__init__()
        self.from_image = Reduce(3 * img_channels, img_resolution)
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(32, channels), channels) for channels, _ in shapes)
        self.from_features = nn.ModuleList(Reduce(*shape) for shape in shapes)
        self.from_sigma = nn.Linear(9, HIDDEN)
        self.from_labels = nn.Linear(label_dim, HIDDEN, bias=False) if label_dim else None
        self.hidden, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("bin_means", torch.ones(NUM_BINS))

    def forward(
        self, x_t: Tensor, denoised: Tensor, features: Sequence[Tensor], sigma: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Raw logit, [N].

        Args:
            x_t: Noisy images, [N, C, R, R].
            denoised: Denoised images D_T(x_t), [N, C, R, R].
            features: Features of the teacher's pass, [N, C_i, r_i, r_i] each.
            sigma: Noise levels > 0, [N].
            labels: Labels of the teacher, [N, label_dim]; None for an unconditional teacher.
        """
        dtype = self.out.weight.dtype
        level = sigma.to(dtype).reshape(-1, 1, 1, 1)
        with torch.autocast(x_t.device.type, enabled=False):
            image = [x_t / (1 + level**2).sqrt(), denoised, (x_t - denoised) / level]
            h = self.from_image(torch.cat([part.to(dtype) for part in image], dim=1))
            for norm, reduce, feature in zip(self.norms, self.from_features, features, strict=True):
                h = h + reduce(norm(feature.to(dtype)))
            h = h + self.from_sigma(_waves(sigma.to(dtype).log() / 4))
            if self.from_labels is not None and labels is not None:
                h = h + self.from_labels(labels.to(dtype))
            h = functional.silu(self.hidden(functional.silu(h)))
            return self.out(h)[:, 0]

    def calibrated(self, logit: Tensor, sigma: Tensor) -> Tensor:
        """Logit minus ln of the mean ratio in its bin, [N]."""
        return logit - self.bin_means.log()[self.log_bins(sigma)]

    def log_bins(self, sigma: Tensor) -> Tensor:
        """Index of the bin of each noise level, [N]."""
        low, high = (math.log(end) for end in BIN_ENDS)
        return ((sigma.log() - low) / (high - low) * NUM_BINS).long().clamp(0, NUM_BINS - 1)

    @torch.no_grad()
    def update_calibration(self, tally: BinTally) -> None:
        """Moves the bins' means toward those of an update over all processes, at a rate that grows with its images."""
        totals = tally.totals.to(self.bin_means.device, self.bin_means.dtype)
        distributed.all_reduce_sum_([totals])
        sums, counts = totals.unbind(1)
        rate = 1 - 0.5 ** (counts / BIN_MEMORY)
        self.bin_means.lerp_(torch.where(counts > 0, sums / counts.clamp(min=1), self.bin_means), rate)


class BinTally:
    """Sums of ratios on generated images, by bin of ln sigma.

    Args:
        bins: Function from noise levels to indices of bins.
    """

    def __init__(self, bins: Callable[[Tensor], Tensor]) -> None:
        self.bins = bins
        self.totals = torch.zeros(NUM_BINS, 2)  # sum, count

    def add(self, logit: Tensor, sigma: Tensor) -> None:
        """Adds a micro-batch of logits [N] at noise levels [N]; logits that are not finite are left out."""
        finite = logit.isfinite()
        ratio = torch.where(finite, logit.clamp(-MAX_LOGIT, MAX_LOGIT).exp(), 0)
        rows = torch.stack([ratio, finite.to(ratio.dtype)], dim=1)
        self.totals = self.totals.to(rows).index_add(0, self.bins(sigma), rows)


class Reduce(nn.Module):
    """Reduction of a feature map [N, C, r, r] to a vector [N, HIDDEN]: strided convolutions, then a linear layer.

    Args:
        channels: Channels of the map.
        resolution: Height and width of the map in pixels.
    """

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTH, 1), nn.SiLU()]
        while resolution > SMALLEST_MAP:
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), nn.SiLU()]
            resolution = (resolution + 1) // 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH * resolution**2, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Vector of each map, [N, HIDDEN]."""
        return self.layers(x)


def _waves(x: Tensor) -> Tensor:
    """Fourier features [N] -> [N, 9]: x itself, and sines and cosines of its multiples."""
    angles = x[:, None] * torch.arange(4, dtype=x.dtype, device=x.device).exp2()
    return torch.cat([x[:, None], angles.sin(), angles.cos()], dim=1)
