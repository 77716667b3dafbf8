"""The StyleGAN2 generator, under the names of the checkpoints of stylegan2-ada-pytorch and stylegan3.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (arXiv 1912.04958), as refined in "Training
Generative Adversarial Networks with Limited Data" (arXiv 2006.06676).

Every tensor of a module is a parameter or a persistent buffer, so a generator can be made on the meta device and
filled by `load_state_dict(state, strict=True, assign=True)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refine.errors import UserError
from refine.networks.initial import normal
from refine.networks.stylegan2_layers import (
    Conv2dLayer,
    FullyConnectedLayer,
    SynthesisLayer,
    ToRGBLayer,
    normalize_2nd_moment,
)
from refine.networks.stylegan2_options import (
    Dialect,
    GeneratorOptions,
    MappingOptions,
    SynthesisOptions,
    options_from_init_kwargs,
)
from stylegan_ops.upfirdn2d import setup_filter, upsample2d

NOISE_MODES = ("random", "const", "none")


class MappingNetwork(nn.Module):
    """Latents z and labels c to intermediate latents w, one for each layer of the synthesis network."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int, options: MappingOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers = options.num_layers
        self.w_avg_beta = options.w_avg_beta
        embed_features = w_dim if options.embed_features is None else options.embed_features
        layer_features = w_dim if options.layer_features is None else options.layer_features
        widths = [z_dim + (embed_features if c_dim else 0), *[layer_features] * (self.num_layers - 1), w_dim]
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for i in range(self.num_layers):
            layer = FullyConnectedLayer(
                widths[i], widths[i + 1], activation=options.activation, lr_multiplier=options.lr_multiplier
            )
            self.add_module(f"fc{i}", layer)
        self.w_avg: Tensor | None
        self.register_buffer("w_avg", None if options.w_avg_beta is None else torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """Maps z and c to w, and truncates w toward its average.

        This never changes `w_avg`, not even in training mode: see `update_w_avg`.

        Args:
            z: Latents [N, z_dim], normally distributed.
            c: Labels [N, c_dim], one-hot or soft; ignored by an unconditional network.
            truncation_psi: Truncation: 1 leaves w unchanged, 0 replaces it by `w_avg`.
            truncation_cutoff: Number of layers, from the first, that are truncated; None for all.

        Returns:
            Intermediate latents [N, num_ws, w_dim].

        Raises:
            ValueError: Latents or labels have another shape.
            UserError: Truncation is requested from a network without `w_avg`.
        """
        dtype = next(self.parameters(), z).dtype
        parts = [normalize_2nd_moment(_shaped("z", z, self.z_dim).to(dtype))] if self.z_dim else []
        if self.c_dim:
            parts.append(normalize_2nd_moment(self.embed(_shaped("c", c, self.c_dim).to(dtype))))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)
        ws = x[:, None].expand(-1, self.num_ws, -1)
        if truncation_psi != 1:
            if self.w_avg is None:
                raise UserError(
                    f"This generator has no average w (w_avg_beta=None), so truncation psi {truncation_psi:g} is not "
                    "possible: use 1."
                )
            truncated = self.w_avg.lerp(ws[:, :truncation_cutoff], truncation_psi)
            ws = torch.cat([truncated, ws[:, truncated.shape[1] :]], dim=1)
        return ws


@torch.no_grad()
def update_w_avg(mapping: nn.Module, w_mean: Tensor) -> None:
    """Moves a mapping network's `w_avg` toward a batch's mean: w_avg <- beta * w_avg + (1 - beta) * w_mean.

    NVIDIA's networks do this inside the forward call, in one dialect whenever the module is in training mode,
    in the other on request. Here it happens only when the trainer says so: a training step evaluates the
    generator several times (for the fake score, for its own gradient, for each micro-batch, perhaps again in
    recomputation), and `w_avg` must neither count a batch twice nor depend on how a step is divided.

    Args:
        mapping: Mapping network with `w_avg` and `w_avg_beta`. Networks without such an average, or with one average
            per class, such as StyleGAN-XL's, are left unchanged.
        w_mean: Mean of w over the batch, with truncation_psi = 1, [w_dim].
    """
    w_avg, beta = getattr(mapping, "w_avg", None), getattr(mapping, "w_avg_beta", None)
    if isinstance(w_avg, Tensor) and beta is not None and w_avg.shape == w_mean.shape:
        w_avg.copy_(w_mean.lerp(w_avg, beta))


class SynthesisBlock(nn.Module):
    """The layers of one resolution; with in_channels = 0 the first one, which starts from a learned constant."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        is_last: bool,
        use_fp16: bool,
        options: SynthesisOptions,
    ) -> None:
        super().__init__()
        self.in_channels, self.resolution = in_channels, resolution
        self.use_fp16 = use_fp16
        self.architecture = options.architecture
        self.fused_modconv_default = options.fused_modconv_default
        self.num_conv = 2 if in_channels else 1
        self.num_torgb = 1 if is_last or options.architecture == "skip" else 0
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", setup_filter(options.resample_filter))
        if in_channels:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, 2, options)
        else:
            self.const = nn.Parameter(normal(out_channels, resolution, resolution))
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, 1, options)
        if self.num_torgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, options.conv_clamp)
        if in_channels and options.architecture == "resnet":
            self.skip = Conv2dLayer(in_channels, out_channels, options.resample_filter)

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        noise_mode: str = "random",
        force_fp32: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the features and the image of this resolution from those of the resolution below.

        Args:
            x: Features [N, in_channels, resolution / 2, resolution / 2]; None for the first block.
            img: Image of half the resolution; None if there is none yet.
            ws: One w per layer, [N, num_conv + num_torgb, w_dim].
            noise_mode: Noise inputs; see `Generator.forward`.
            force_fp32: Precision; see `Generator.forward`.

        Returns:
            Features [N, out_channels, resolution, resolution], and the image; None if there is none yet.
        """
        # Half precision pays on GPUs only; elsewhere it is slow, and rounding would be all that it does.
        half = self.use_fp16 and not force_fp32 and ws.device.type == "cuda"
        dtype = torch.float16 if half else ws.dtype
        # What is faster depends on more than the mode.
        fused = None if self.fused_modconv_default == "inference_only" else self.fused_modconv_default
        layer: dict[str, Any] = {"noise_mode": noise_mode, "fused_modconv": fused}

        if x is None:
            x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1)
            x = self.conv1(x, ws[:, 0], **layer)
        elif self.architecture == "resnet":
            # Two paths of unit variance, each scaled by sqrt(1/2), add up to unit variance.
            x = x.to(dtype)
            shortcut = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, ws[:, 0], **layer)
            x = shortcut + self.conv1(x, ws[:, 1], **layer, gain=math.sqrt(0.5))
        else:
            x = self.conv0(x.to(dtype), ws[:, 0], **layer)
            x = self.conv1(x, ws[:, 1], **layer)

        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.num_torgb:
            y = self.torgb(x, ws[:, self.num_conv], fused_modconv=fused).to(ws.dtype)
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """Intermediate latents to images: blocks `b4`, `b8`, ... up to the resolution of the image."""

    def __init__(self, w_dim: int, img_resolution: int, img_channels: int, options: SynthesisOptions) -> None:
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(2, img_resolution.bit_length())]
        fp16_resolutions = [res for res in self.block_resolutions if res >= 8]
        fp16_resolutions = fp16_resolutions[max(0, len(fp16_resolutions) - options.num_fp16_res) :]
        in_channels, num_layers = 0, 0
        for resolution in self.block_resolutions:
            out_channels = min(options.channel_base // resolution, options.channel_max)
            block = SynthesisBlock(
                in_channels,
                out_channels,
                w_dim,
                resolution,
                img_channels,
                is_last=resolution == img_resolution,
                use_fp16=resolution in fp16_resolutions,
                options=options,
            )
            self.add_module(f"b{resolution}", block)
            in_channels = out_channels
            num_layers += block.num_conv
        # A block's image layer uses the w of the next block's first layer; only the last one has a w of its own.
        self.num_ws = num_layers + 1

    def forward(self, ws: Tensor, noise_mode: str = "random", force_fp32: bool = False) -> Tensor:
        """Maps ws [N, num_ws, w_dim] to images [N, img_channels, img_resolution, img_resolution].

        Args:
            ws: One w per layer; different ones mix styles.
            noise_mode: Noise inputs; see `Generator.forward`.
            force_fp32: Precision; see `Generator.forward`.

        Raises:
            ValueError: `ws` has another shape, or the noise mode is unknown.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must have shape [N, {self.num_ws}, {self.w_dim}], not {list(ws.shape)}")
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode must be one of {', '.join(NOISE_MODES)}, not {noise_mode!r}")
        x = img = None
        first = 0
        for resolution in self.block_resolutions:
            block = self.get_submodule(f"b{resolution}")
            assert isinstance(block, SynthesisBlock)
            block_ws = ws[:, first : first + block.num_conv + block.num_torgb]
            x, img = block(x, img, block_ws, noise_mode=noise_mode, force_fp32=force_fp32)
            first += block.num_conv
        assert img is not None
        return img


class Generator(nn.Module):
    """StyleGAN2 generator: latents and labels to images."""

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = options.z_dim, options.c_dim, options.w_dim
        self.img_resolution, self.img_channels = options.img_resolution, options.img_channels
        self.synthesis = SynthesisNetwork(self.w_dim, self.img_resolution, self.img_channels, options.synthesis)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(self.z_dim, self.c_dim, self.w_dim, self.num_ws, options.mapping)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "random",
        force_fp32: bool = False,
    ) -> Tensor:
        """Generates images.

        Args:
            z: Latents [N, z_dim], normally distributed.
            c: Labels [N, c_dim]; ignored by an unconditional generator.
            truncation_psi: Truncation: 1 for the full distribution, 0 for the average image.
            truncation_cutoff: Number of layers, from the first, that are truncated; None for all.
            noise_mode: Noise inputs: `random` draws new noise, [N, 1, res, res] for each layer in the order of
                execution, from the device's default random generator; `const` uses the noise stored in the network;
                `none` uses no noise.
            force_fp32: Whether to compute in float32 in layers made for float16; without CUDA, all layers do.

        Returns:
            Images [N, img_channels, img_resolution, img_resolution], float32, nominally in [-1, 1], not clamped.

        Raises:
            ValueError: Latents or labels have another shape, or the noise mode is unknown.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, noise_mode=noise_mode, force_fp32=force_fp32)


def generator_from_init_kwargs(init_kwargs: Mapping[str, Any], dialect: Dialect) -> Generator:
    """Builds the generator that the constructor arguments in a pickle describe, with random weights.

    Args:
        init_kwargs: Constructor arguments (`_init_kwargs`) of the pickled Generator.
        dialect: Dialect of the arguments: `ada` (stylegan2-ada-pytorch: those of the synthesis network are in
            `synthesis_kwargs`) or `sg3` (stylegan3 repository: all in one place). It also determines the defaults.

    Raises:
        UserError: An argument is unknown, missing or out of range; the message names it.
    """
    return Generator(options_from_init_kwargs(init_kwargs, dialect))


def _shaped(name: str, value: Tensor | None, width: int) -> Tensor:
    if value is None or value.ndim != 2 or value.shape[1] != width:
        found = "None" if value is None else str(list(value.shape))
        raise ValueError(f"{name} must have shape [N, {width}], not {found}")
    return value
