"""The R3GAN generator, under the names of the checkpoints.

Huang et al., "The GAN is dead; long live the GAN! A Modern GAN Baseline" (arXiv 2501.05441): a residual network without
normalization, mapping network, noise inputs and truncation. Its pickles name no constructor arguments: shapes of
tensors tell the architecture. Weights are used as they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.contracts import GeneratorOutput
from refine.errors import UserError
from refine.networks.checks import MAX_RESOLUTION, MAX_WIDTH, Checks
from refine.networks.initial import normal
from stylegan_ops.bias_act import bias_act
from stylegan_ops.upfirdn2d import upsample2d

MAX_STAGES, MAX_BLOCKS = 16, 100
SLOPE = 0.2  # of the activations, whose gain is 1
FIRST_RESOLUTION = 4
_CHECK = Checks("An R3GAN generator")
_STAGE = re.compile(r"Model\.MainLayers\.(\d+)\.Layers\.(\d+)\.")


@dataclass(frozen=True)
class BlockOptions:
    """Options of a residual block.

    Attributes:
        width: Channels of input and result.
        expanded: Channels inside.
        cardinality: Groups of the 3x3 convolution.
    """

    width: int
    expanded: int
    cardinality: int

    def __post_init__(self) -> None:
        _CHECK.whole("width", self.width, 1, MAX_WIDTH)
        _CHECK.whole("expanded width", self.expanded, 1, MAX_WIDTH)
        _CHECK.whole("cardinality", self.cardinality, 1, self.expanded)
        if self.expanded % self.cardinality:
            raise UserError(
                f"An R3GAN generator cannot divide {self.expanded} channels into {self.cardinality} groups."
            )


@dataclass(frozen=True)
class StageOptions:
    """Options of the blocks of one resolution.

    Attributes:
        blocks: Options of each residual block.
        in_width: Channels of the input; for the first stage, width of latents and embedding together.
        changes_width: Whether a 1x1 convolution comes before the upsampling.
        is_low_precision: Whether the stage computes in bfloat16 on CUDA.
    """

    blocks: tuple[BlockOptions, ...]
    in_width: int
    changes_width: bool
    is_low_precision: bool = False

    @property
    def width(self) -> int:
        """Channels of the result."""
        return self.blocks[-1].width


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of an R3GAN generator.

    Attributes:
        z_dim: Width of the latents z.
        c_dim: Number of classes; 0 is unconditional.
        embedding_dim: Width of the embedding of a class; 0 without classes.
        img_channels: Channels of the image.
        img_resolution: Pixels along each side.
        filter_size: Taps of the upsampling filter along each axis.
        stages: Options of each stage, the one of 4 pixels first.
    """

    z_dim: int
    c_dim: int
    embedding_dim: int
    img_channels: int
    img_resolution: int
    filter_size: int
    stages: tuple[StageOptions, ...]

    def __post_init__(self) -> None:
        _CHECK.whole("z_dim", self.z_dim, 1, MAX_WIDTH)
        _CHECK.whole("c_dim", self.c_dim, 0, MAX_WIDTH)
        _CHECK.whole("img_channels", self.img_channels, 1, MAX_WIDTH)
        _CHECK.whole("img_resolution", self.img_resolution, FIRST_RESOLUTION, MAX_RESOLUTION)
        _CHECK.whole("filter size", self.filter_size, 1, 32)
        _CHECK.whole("number of stages", len(self.stages), 1, MAX_STAGES)
        if self.stages[0].in_width != self.z_dim + self.embedding_dim:
            raise UserError(
                f"An R3GAN generator of {self.z_dim} latents and an embedding of {self.embedding_dim} numbers cannot "
                f"begin with a layer of {self.stages[0].in_width}."
            )
        if FIRST_RESOLUTION * 2 ** (len(self.stages) - 1) != self.img_resolution:
            raise UserError(
                f"An R3GAN generator of {len(self.stages)} stages does not make images of {self.img_resolution} pixels."
            )


class Convolution(nn.Module):
    """A convolution without bias, which keeps the size of the image."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.Layer = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x in its own element type."""
        layer = self.Layer
        return functional.conv2d(x, layer.weight.to(x.dtype), padding=layer.padding, groups=layer.groups)


class Activation(nn.Module):
    """Bias and leaky ReLU, without a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.Bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Adds the bias and applies the activation."""
        return bias_act(x, self.Bias.to(x.dtype), act="lrelu", alpha=SLOPE, gain=1)


class ResidualBlock(nn.Module):
    """x + y, where y passes a 1x1, a grouped 3x3 and another 1x1 convolution, with activations between them."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        width, expanded = options.width, options.expanded
        self.LinearLayer1 = Convolution(width, expanded)
        self.LinearLayer2 = Convolution(expanded, expanded, 3, options.cardinality)
        self.LinearLayer3 = Convolution(expanded, width)
        self.NonLinearity1 = Activation(expanded)
        self.NonLinearity2 = Activation(expanded)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block."""
        y = self.NonLinearity1(self.LinearLayer1(x))
        y = self.NonLinearity2(self.LinearLayer2(y))
        return x + self.LinearLayer3(y)


class Basis(nn.Module):
    """Learned images of 4 pixels, each times a linear function of the latents."""

    def __init__(self, in_width: int, channels: int) -> None:
        super().__init__()
        self.Basis = nn.Parameter(normal(channels, FIRST_RESOLUTION, FIRST_RESOLUTION))
        self.LinearLayer = nn.Linear(in_width, channels, bias=False)

    def forward(self, z: Tensor) -> Tensor:
        """Maps z [N, in_width] to [N, channels, 4, 4]."""
        return self.LinearLayer(z)[:, :, None, None] * self.Basis


class Resampler(nn.Module):
    """Holder of the upsampling filter."""

    def __init__(self, taps: int) -> None:
        super().__init__()
        self.Kernel: Tensor
        self.register_buffer("Kernel", torch.full((taps, taps), 1 / taps**2))


class Upsampling(nn.Module):
    """Twice the size, after a 1x1 convolution where the width changes."""

    def __init__(self, in_width: int, width: int, changes_width: bool, taps: int) -> None:
        super().__init__()
        self.Resampler = Resampler(taps)
        if changes_width:
            self.LinearLayer = Convolution(in_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in_width, R, R] to [N, width, 2 R, 2 R]."""
        if hasattr(self, "LinearLayer"):
            x = self.LinearLayer(x)
        return upsample2d(x, self.Resampler.Kernel)


class Stage(nn.Module):
    """Layers of one resolution."""

    def __init__(self, options: StageOptions, is_first: bool, filter_size: int) -> None:
        super().__init__()
        self.is_low_precision = options.is_low_precision
        first: nn.Module = (
            Basis(options.in_width, options.width)
            if is_first
            else Upsampling(options.in_width, options.width, options.changes_width, filter_size)
        )
        self.Layers = nn.ModuleList([first, *map(ResidualBlock, options.blocks)])

    def forward(self, x: Tensor, low_precision: bool = False) -> Tensor:
        """Applies the layers.

        Args:
            x: Result of the stage before, or latents [N, in_width].
            low_precision: Whether to compute in bfloat16 in a stage made for it.
        """
        x = x.to(torch.bfloat16 if low_precision and self.is_low_precision else torch.float32)
        for layer in self.Layers:
            x = layer(x)
        return x


class Backbone(nn.Module):
    """Latents and embedded labels to images."""

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        if options.c_dim:
            self.EmbeddingLayer = nn.Linear(options.c_dim, options.embedding_dim, bias=False)
        stages = [Stage(stage, i == 0, options.filter_size) for i, stage in enumerate(options.stages)]
        self.MainLayers = nn.ModuleList(stages)
        self.AggregationLayer = Convolution(options.stages[-1].width, options.img_channels)

    def forward(self, z: Tensor, c: Tensor | None, low_precision: bool = False) -> Tensor:
        """Generates images; see `Generator.forward`."""
        if hasattr(self, "EmbeddingLayer"):
            assert c is not None
            z = torch.cat([z, self.EmbeddingLayer(c)], dim=1)
        x = z
        for stage in self.MainLayers:
            x = stage(x, low_precision)
        return self.AggregationLayer(x).float()


class Generator(nn.Module):
    """R3GAN generator: latents and labels to images."""

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim = options.z_dim, options.c_dim
        self.img_channels, self.img_resolution = options.img_channels, options.img_resolution
        self.Model = Backbone(options)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        noise_mode: str = "const",
        force_fp32: bool = False,
    ) -> Tensor:
        """Generates images.

        Args:
            z: Latents [N, z_dim], normally distributed.
            c: Labels [N, c_dim]; ignored by an unconditional generator.
            truncation_psi: 1: there is no truncation.
            noise_mode: Ignored, because there are no noise inputs.
            force_fp32: Whether to compute in float32 in stages made for bfloat16; without CUDA, all stages do.

        Returns:
            Images [N, img_channels, img_resolution, img_resolution], float32, nominally in [-1, 1], not clamped.

        Raises:
            UserError: Truncation is asked for.
            ValueError: Latents or labels have another shape.
        """
        if truncation_psi != 1:
            raise UserError(f"R3GAN has no truncation, and psi {truncation_psi:g} was asked for: use 1.")
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [N, {self.z_dim}], not {list(z.shape)}")
        if self.c_dim and (c is None or c.shape != (z.shape[0], self.c_dim)):
            raise ValueError(f"c must have shape [{len(z)}, {self.c_dim}], not {None if c is None else list(c.shape)}")
        return self.images(z, c, low_precision=not force_fp32 and z.device.type == "cuda")

    def images(self, z: Tensor, c: Tensor | None = None, low_precision: bool = False) -> Tensor:
        """Images [N, img_channels, img_resolution, img_resolution] of latents and labels; see `forward`."""
        images: Tensor = self.Model(z, c, low_precision)
        return images


class R3GAN:
    """An R3GAN generator behind the contract of a generator; see `contracts.Generator`.

    Args:
        module: The network.
    """

    def __init__(self, module: Generator) -> None:
        self.module: nn.Module = module
        self.z_shape: tuple[int, ...] = (module.z_dim,)
        self.c_dim, self.img_channels, self.img_resolution = module.c_dim, module.img_channels, module.img_resolution

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Images; see `contracts.Generator`.

        Raises:
            UserError: Truncation is asked for.
        """
        return GeneratorOutput(self.module(z, c, truncation_psi, noise_mode, force_fp32), None)

    def resolution_of(self, parameter: str) -> int | None:
        """Resolution of the stage; None for the embedding of classes."""
        match = _STAGE.match(parameter)
        if match:
            return int(FIRST_RESOLUTION * 2 ** int(match[1]))
        return self.img_resolution if parameter.startswith("Model.AggregationLayer.") else None

    def blocks(self) -> Sequence[nn.Module]:
        """The residual blocks."""
        return [module for module in self.module.modules() if isinstance(module, ResidualBlock)]

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: the network keeps no statistics of itself."""


def options_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], attributes: Mapping[str, Any], low_precision: Sequence[bool] = ()
) -> GeneratorOptions:
    """Options of the network that has tensors of these shapes.

    Args:
        shapes: Shape of each tensor by name.
        attributes: Attributes of the pickled generator: `z_dim`, `c_dim`, `img_resolution`.
        low_precision: For each stage, whether it computes in bfloat16 on CUDA.

    Raises:
        UserError: These are not the tensors of an R3GAN generator; the message names the first that is missing or of
            another shape.
    """

    def shape(name: str, num_axes: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != num_axes or 0 in found:
            raise UserError(
                f"An R3GAN generator has a tensor {name} of {num_axes} axes, and this one {found or 'not'}."
            )
        return found

    layers = {(int(m[1]), int(m[2])) for name in shapes if (m := _STAGE.match(name))}
    num_stages = 1 + max((stage for stage, _ in layers), default=0)
    _CHECK.whole("number of stages", num_stages, 1, MAX_STAGES)
    stages = []
    in_width = shape("Model.MainLayers.0.Layers.0.LinearLayer.weight", 2)[1]
    filter_size = 4
    for number in range(num_stages):
        num_blocks = max((layer for stage, layer in layers if stage == number), default=0)
        _CHECK.whole("number of blocks", num_blocks, 1, MAX_BLOCKS)
        prefix = f"Model.MainLayers.{number}.Layers"
        blocks = []
        for index in range(1, num_blocks + 1):
            expanded, width = shape(f"{prefix}.{index}.LinearLayer1.Layer.weight", 4)[:2]
            per_group = shape(f"{prefix}.{index}.LinearLayer2.Layer.weight", 4)[1]
            blocks.append(BlockOptions(width, expanded, max(expanded // per_group, 1)))
        changes_width = number > 0 and f"{prefix}.0.LinearLayer.Layer.weight" in shapes
        stage = StageOptions(tuple(blocks), in_width, changes_width, any(low_precision[number : number + 1]))
        stages.append(stage)
        in_width = stage.width
        if number:
            filter_size = shape(f"{prefix}.0.Resampler.Kernel", 2)[0]
    embedding = shape("Model.EmbeddingLayer.weight", 2)[0] if attributes.get("c_dim") else 0
    return GeneratorOptions(
        z_dim=attributes.get("z_dim", 0),
        c_dim=attributes.get("c_dim", 0),
        embedding_dim=embedding,
        img_channels=shape("Model.AggregationLayer.Layer.weight", 4)[0],
        img_resolution=attributes.get("img_resolution", 0),
        filter_size=filter_size,
        stages=tuple(stages),
    )
