"""The StyleGAN-XL generator, which StyleSAN-XL shares, under the names of the checkpoints.

Sauer et al., "StyleGAN-XL: Scaling StyleGAN to Large Diverse Datasets" (arXiv 2202.00273): StyleGAN3's layers behind a
mapping network that embeds classes. Networks of several stages are a stem without its last layers, and the layers that
were put upon it, so each layer is built from its own record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from refine.errors import UserError
from refine.networks import stylegan3
from refine.networks.checks import MAX_LAYERS, MAX_RESOLUTION, MAX_WIDTH, Checks, shown
from refine.networks.stylegan2_layers import FullyConnectedLayer, normalize_2nd_moment
from refine.networks.stylegan3_layers import SynthesisInput, SynthesisLayer
from refine.networks.stylegan3_options import InputOptions, LayerOptions
from refine.runtime import distributed

_CHECK = Checks("A StyleGAN-XL generator")
_INPUT = {"w_dim", "channels", "size", "sampling_rate", "bandwidth"}


@dataclass(frozen=True)
class MappingOptions:
    """Options of the mapping network.

    Attributes:
        embedding_dim: Width of the embedding of a class; 0 without classes.
        num_layers: Number of fully connected layers.
        lr_multiplier: Factor on their weights at run time.
        w_avg_beta: Share of the old average of w that an image of the class leaves; None for an average that stays.
    """

    embedding_dim: int = 0
    num_layers: int = 2
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.998

    def __post_init__(self) -> None:
        _CHECK.whole("embedding_dim", self.embedding_dim, 0, MAX_WIDTH)
        _CHECK.whole("num_layers", self.num_layers, 1, MAX_LAYERS)
        _CHECK.real("lr_multiplier", self.lr_multiplier, 1e-9, 1e9)
        if self.w_avg_beta is not None:
            _CHECK.real("w_avg_beta", self.w_avg_beta, 0, 1)


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of a StyleGAN-XL generator.

    Attributes:
        z_dim: Width of the latents z.
        c_dim: Number of classes; 0 is unconditional.
        w_dim: Width of the intermediate latents w.
        img_resolution: Pixels along each side.
        img_channels: Channels of the image.
        output_scale: Factor on the image.
        mapping: Options of the mapping network.
        input: Options of the Fourier features.
        layers: Name and options of each synthesis layer, in their order.
    """

    z_dim: int
    c_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int
    output_scale: float
    mapping: MappingOptions
    input: InputOptions
    layers: tuple[tuple[str, LayerOptions], ...]

    def __post_init__(self) -> None:
        _CHECK.whole("z_dim", self.z_dim, 1, MAX_WIDTH)
        _CHECK.whole("c_dim", self.c_dim, 0, MAX_WIDTH)
        _CHECK.whole("w_dim", self.w_dim, 1, MAX_WIDTH)
        _CHECK.whole("img_resolution", self.img_resolution, 4, MAX_RESOLUTION)
        _CHECK.whole("img_channels", self.img_channels, 1, MAX_WIDTH)
        _CHECK.finite("output_scale", self.output_scale)
        _CHECK.whole("number of layers", len(self.layers), 1, MAX_LAYERS)
        _CHECK.whole("size of the input", self.input.size, 1, MAX_WIDTH)
        _CHECK.whole("channels of the input", self.input.channels, 1, MAX_WIDTH)
        for name in ("sampling_rate", "bandwidth"):
            _CHECK.real(f"{name} of the input", getattr(self.input, name), 1e-6, MAX_WIDTH)
        channels, size = self.input.channels, self.input.size
        for name, layer in self.layers:
            if (layer.in_channels, layer.in_size) != (channels, size) or layer.w_dim != self.w_dim:
                raise UserError(
                    f"A StyleGAN-XL generator whose layer {name[:40]} takes {layer.in_channels} channels of "
                    f"{layer.in_size} pixels cannot put it upon {channels} of {size}."
                )
            channels, size = layer.out_channels, layer.out_size
        if (channels, size) != (self.img_channels, self.img_resolution) or not self.layers[-1][1].is_torgb:
            raise UserError(
                f"A StyleGAN-XL generator of {self.img_channels} channels and {self.img_resolution} pixels cannot end "
                f"with a layer of {channels} channels and {size} pixels."
            )


class Embedding(nn.Module):
    """Vectors of the classes: kept as they are, so they are a buffer."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(num_classes, width))

    def forward(self, classes: Tensor) -> Tensor:
        """Maps classes [N] to vectors [N, width]."""
        return self.weight[classes]


class MappingNetwork(nn.Module):
    """Network from latents and classes to intermediate latents, with an average w for each class."""

    def __init__(self, z_dim: int, c_dim: int, w_dim: int, num_ws: int, options: MappingOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = options.num_layers, options.w_avg_beta
        if c_dim:
            self.embed = Embedding(c_dim, options.embedding_dim)
            self.embed_proj = FullyConnectedLayer(options.embedding_dim, z_dim, activation="lrelu")
        width = 2 * z_dim if c_dim else z_dim
        for index in range(self.num_layers):
            layer = FullyConnectedLayer(width, w_dim, activation="lrelu", lr_multiplier=options.lr_multiplier)
            self.add_module(f"fc{index}", layer)
            width = w_dim
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros([c_dim, w_dim] if c_dim else [w_dim]))
        self.averages = ClassAverages()

    def forward(
        self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0, truncation_cutoff: int | None = None
    ) -> Tensor:
        """Maps z [N, z_dim] and labels c [N, c_dim] to ws [N, num_ws, w_dim].

        Args:
            z: Latents.
            c: Labels, of which the largest entry is the class; ignored by an unconditional network.
            truncation_psi: Truncation: 1 for the full distribution, 0 for the average of the class.
            truncation_cutoff: Number of ws, from the first on, that are truncated; None for all.

        Raises:
            ValueError: Latents or labels have another shape.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [N, {self.z_dim}], not {list(z.shape)}")
        x, average = normalize_2nd_moment(z.float()), self.w_avg
        classes = None
        if self.c_dim:
            if c is None or c.shape != (z.shape[0], self.c_dim):
                found = None if c is None else list(c.shape)
                raise ValueError(f"c must have shape [{len(z)}, {self.c_dim}], not {found}")
            classes = c.argmax(1)
            x = torch.cat([x, normalize_2nd_moment(self.embed_proj(self.embed(classes)))], dim=1)
            average = self.w_avg[classes][:, None]
        for index in range(self.num_layers):
            x = self.get_submodule(f"fc{index}")(x)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            self.averages.add(x.detach(), classes, max(self.c_dim, 1))
        ws = x[:, None].repeat(1, self.num_ws, 1)
        if truncation_psi != 1:
            count = self.num_ws if truncation_cutoff is None else truncation_cutoff
            ws = torch.cat([average.lerp(ws[:, :count], truncation_psi), ws[:, count:]], dim=1)
        return ws


class ClassAverages:
    """Sums of w by class, collected from passes with gradients until the averages take them."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, w: Tensor, classes: Tensor | None, num_classes: int) -> None:
        """Adds a pass.

        Args:
            w: Intermediate latents, [N, w_dim].
            classes: Class of each, [N]; None for one class.
            num_classes: Number of classes.
        """
        if classes is None:
            classes = torch.zeros(w.shape[0], dtype=torch.long, device=w.device)
        if self._sums is None or self._counts is None:
            self._sums, self._counts = w.new_zeros(num_classes, w.shape[1]), w.new_zeros(num_classes)
        self._sums.index_add_(0, classes, w)
        self._counts.index_add_(0, classes, torch.ones_like(w[:, 0]))

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Returns sums [num_classes, w_dim] and counts [num_classes], and begins again."""
        found = self._sums, self._counts
        self._sums = self._counts = None
        return found


@torch.no_grad()
def update_class_averages(mapping: MappingNetwork) -> None:
    """Moves `w_avg` of each class toward the mean of its w in passes with gradients, over all processes.

    NVIDIA's way is followed in that an image leaves the share `w_avg_beta` of the old average: n images leave
    beta^n. Their order, which would depend on how a step is divided, does not count.

    Args:
        mapping: Mapping network.
    """
    num_classes = max(mapping.c_dim, 1)
    sums, counts = mapping.averages.take()
    if sums is None or counts is None:
        sums, counts = mapping.w_avg.new_zeros(num_classes, mapping.w_dim), mapping.w_avg.new_zeros(num_classes)
    distributed.all_reduce_sum_([sums, counts])
    if mapping.w_avg_beta is None:
        return
    counts = counts[:, None]
    kept = mapping.w_avg_beta**counts
    averages = mapping.w_avg.reshape(num_classes, -1)
    mapping.w_avg.copy_((kept * averages + (1 - kept) * sums / counts.clamp(min=1)).reshape(mapping.w_avg.shape))


class SynthesisNetwork(stylegan3.SynthesisNetwork):
    """Network from intermediate latents to images, whose layers are given one by one."""

    def __init__(self, options: GeneratorOptions) -> None:
        nn.Module.__init__(self)
        self.w_dim, self.output_scale = options.w_dim, options.output_scale
        self.img_resolution, self.img_channels = options.img_resolution, options.img_channels
        self.input = SynthesisInput(options.input)
        self.layer_names = [name for name, _ in options.layers]
        for name, layer in options.layers:
            self.add_module(name, SynthesisLayer(layer))
        self.num_ws = len(self.layer_names) + 1
        self.magnitudes = stylegan3.Magnitudes()


class Generator(nn.Module):
    """StyleGAN-XL generator: latents and labels to images."""

    def __init__(self, options: GeneratorOptions) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = options.z_dim, options.c_dim, options.w_dim
        self.img_resolution, self.img_channels = options.img_resolution, options.img_channels
        self.synthesis = SynthesisNetwork(options)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(self.z_dim, self.c_dim, self.w_dim, self.num_ws, options.mapping)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        force_fp32: bool = False,
    ) -> Tensor:
        """Generates images; arguments and result as for `stylegan3.Generator`.

        Truncation goes toward the average of the class.
        """
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, noise_mode=noise_mode, force_fp32=force_fp32)


def layer_options(name: str, arguments: Mapping[str, Any]) -> LayerOptions:
    """Options of a synthesis layer from its recorded constructor arguments.

    Raises:
        UserError: An argument is unknown, missing or out of range; the message names it.
    """
    known = {each.name for each in fields(LayerOptions)}
    for key in arguments:
        if key not in known:
            raise UserError(f"Layer {name[:40]} of a StyleGAN-XL generator has no constructor argument {shown(key)}.")
    missing = [each.name for each in fields(LayerOptions) if each.name not in arguments and not _has_default(each)]
    if missing:
        raise UserError(f"The constructor arguments of layer {name[:40]} lack {missing[0]}.")
    return LayerOptions(**arguments)


def input_options(arguments: Mapping[str, Any]) -> InputOptions:
    """Options of the Fourier features from their recorded constructor arguments.

    Raises:
        UserError: An argument is unknown or missing; the message names it.
    """
    for key in sorted(arguments.keys() ^ _INPUT, key=str):
        raise UserError(
            f"The input of a StyleGAN-XL generator {'lacks' if key in _INPUT else 'has no'} constructor argument "
            f"{shown(key)}{'' if key in _INPUT else ' in Refine'}."
        )
    return InputOptions(**arguments)


def check_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Names of layers, each of which may be the name of a module.

    Raises:
        UserError: A name is no such name, or stands there twice.
    """
    plain = tuple(name for name in names if isinstance(name, str) and name.isidentifier() and name != "input")
    if len(plain) != len(names) or len(set(plain)) != len(plain):
        raise UserError(f"A StyleGAN-XL generator has layers named {shown(list(names))}, which are not names.")
    return plain


def _has_default(each: Any) -> bool:
    return each.default is not MISSING
