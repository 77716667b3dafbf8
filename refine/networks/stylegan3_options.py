"""Options of the StyleGAN3 generator, their spelling in pickles, and the plan of its layers.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423), section 3.2: cutoff and stopband of the
layers grow geometrically from the first to the critically sampled ones, and fix sampling rates, sizes and filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import numpy as np

from refine.errors import UserError
from refine.networks.checks import MAX_LAYERS, MAX_RESOLUTION, MAX_TAPS, MAX_WIDTH, Checks, shown
from refine.networks.stylegan2_options import MappingOptions

MAX_MARGIN = 1024
MAX_UPSAMPLING = 64
MAX_KERNEL = 32
_CHECK = Checks("A StyleGAN3 generator")

POSITIONAL_ARGUMENTS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs")


@dataclass(frozen=True)
class LayerOptions:
    """Options of one synthesis layer, under the names that its constructor has in pickles.

    Frequencies are in cycles per image width, sampling rates in pixels per image width: a canvas of `size` pixels is
    `size / sampling_rate` image widths wide, the rest being a margin.

    Attributes:
        w_dim: Width of the intermediate latents w.
        is_torgb: True for the last layer, which makes the image: kernel 1, no demodulation, no activation.
        is_critically_sampled: True if the cutoff is half the sampling rate; radial filters are not used there.
        use_fp16: True to compute in float16 on CUDA.
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        in_size: Pixels along each side of the input.
        out_size: Pixels along each side of the result.
        in_sampling_rate: Sampling rate of the input.
        out_sampling_rate: Sampling rate of the result.
        in_cutoff: Cutoff of the input.
        out_cutoff: Cutoff of the result.
        in_half_width: Half the width of the transition band of the input.
        out_half_width: Half the width of the transition band of the result.
        conv_kernel: Size of the convolution; 1 where `is_torgb`.
        filter_size: Taps of the filters, relative to the lower of their two sampling rates.
        lrelu_upsampling: Sampling rate of the activation, relative to the higher rate of input and result.
        use_radial_filters: True for rotation equivariance: the downsampling filter is radially symmetric.
        conv_clamp: Limit of the magnitude of the activation; None is no limit.
        magnitude_ema_beta: Share of its old value that the layer's magnitude keeps in an update.
    """

    w_dim: int
    is_torgb: bool
    is_critically_sampled: bool
    use_fp16: bool
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    in_sampling_rate: float
    out_sampling_rate: float
    in_cutoff: float
    out_cutoff: float
    in_half_width: float
    out_half_width: float
    conv_kernel: int = 3
    filter_size: int = 6
    lrelu_upsampling: int = 2
    use_radial_filters: bool = False
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999

    def __post_init__(self) -> None:
        for name in ("is_torgb", "is_critically_sampled", "use_fp16", "use_radial_filters"):
            _CHECK.choice(name, getattr(self, name), (True, False))
        for name in ("w_dim", "in_channels", "out_channels", "in_size", "out_size"):
            _CHECK.whole(name, getattr(self, name), 1, MAX_WIDTH)
        _CHECK.whole("conv_kernel", self.conv_kernel, 1, MAX_KERNEL)
        _CHECK.whole("filter_size", self.filter_size, 1, MAX_TAPS)
        _CHECK.whole("lrelu_upsampling", self.lrelu_upsampling, 1, MAX_UPSAMPLING)
        for name in ("in_sampling_rate", "out_sampling_rate", "in_cutoff", "out_cutoff"):
            _CHECK.real(name, getattr(self, name), 1e-6, MAX_WIDTH)
        for name in ("in_half_width", "out_half_width", "magnitude_ema_beta"):
            _CHECK.finite(name, getattr(self, name))
        if self.conv_clamp is not None:
            _CHECK.real("conv_clamp", self.conv_clamp, 0, 1e30)
        for name in ("up", "down"):
            factor = self.activation_rate / (self.in_sampling_rate if name == "up" else self.out_sampling_rate)
            if factor != round(factor) or not 1 <= factor <= MAX_UPSAMPLING:
                raise UserError(
                    f"A StyleGAN3 generator cannot resample from {self.in_sampling_rate:g} to "
                    f"{self.out_sampling_rate:g} pixels by way of {self.activation_rate:g}: the factors must be whole "
                    f"numbers up to {MAX_UPSAMPLING}."
                )

    @property
    def kernel(self) -> int:
        """Size of the convolution."""
        return 1 if self.is_torgb else self.conv_kernel

    @property
    def activation_rate(self) -> float:
        """Sampling rate of the activation."""
        highest = max(self.in_sampling_rate, self.out_sampling_rate)
        return highest * (1 if self.is_torgb else self.lrelu_upsampling)

    @property
    def up(self) -> int:
        """Upsampling factor before the activation."""
        return round(self.activation_rate / self.in_sampling_rate)

    @property
    def down(self) -> int:
        """Downsampling factor after the activation."""
        return round(self.activation_rate / self.out_sampling_rate)

    @property
    def up_taps(self) -> int:
        """Taps of the upsampling filter; 1 is no filter."""
        return self.filter_size * self.up if self.up > 1 and not self.is_torgb else 1

    @property
    def down_taps(self) -> int:
        """Taps of the downsampling filter along each axis; 1 is no filter."""
        return self.filter_size * self.down if self.down > 1 and not self.is_torgb else 1

    @property
    def down_radial(self) -> bool:
        """True if the downsampling filter is radially symmetric."""
        return self.use_radial_filters and not self.is_critically_sampled

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """Padding of the upsampled image, which makes the result as large as `out_size`: left, right, top, bottom."""
        wanted = (self.out_size - 1) * self.down + 1  # pixels of the activation that the result looks at
        present = (self.in_size + self.kernel - 1) * self.up  # pixels of the full convolution, upsampled
        total = wanted - present + (self.up_taps - 1) + (self.down_taps - 1)
        # Half a pixel of the input is `up / 2` pixels here: the canvas stays centered.
        low = (total + self.up) // 2
        return low, total - low, low, total - low


@dataclass(frozen=True)
class SynthesisOptions:
    """Options of the network that turns w into an image.

    Attributes:
        channel_base: Channels times resolution, where that is less than channel_max.
        channel_max: Most channels of a layer.
        num_layers: Layers before the one that makes the image.
        num_critical: Layers at the end that are critically sampled.
        first_cutoff: Cutoff of the first layer, in cycles per image width.
        first_stopband: Beginning of the first layer's stopband, likewise.
        last_stopband_rel: Beginning of the last layer's stopband, relative to its cutoff.
        margin_size: Pixels beyond the image on each side, in all but the last two layers.
        output_scale: Factor on the image.
        num_fp16_res: Number of the highest resolutions that compute in float16 on CUDA.
        conv_kernel: See `LayerOptions`, also for the options that follow.
        filter_size: Taps of the filters.
        lrelu_upsampling: Sampling rate of the activation.
        use_radial_filters: True for radially symmetric filters.
        conv_clamp: Limit of the magnitude of activations.
        magnitude_ema_beta: Share of its old value that a magnitude keeps in an update.
    """

    channel_base: float = 32768
    channel_max: float = 512
    num_layers: int = 14
    num_critical: int = 2
    first_cutoff: float = 2
    first_stopband: float = 2**2.1
    last_stopband_rel: float = 2**0.3
    margin_size: int = 10
    output_scale: float = 0.25
    num_fp16_res: float = 4
    conv_kernel: int = 3
    filter_size: int = 6
    lrelu_upsampling: int = 2
    use_radial_filters: bool = False
    conv_clamp: float | None = 256
    magnitude_ema_beta: float = 0.999

    def __post_init__(self) -> None:
        _CHECK.whole("num_layers", self.num_layers, 1, MAX_LAYERS)
        _CHECK.whole("num_critical", self.num_critical, 0, self.num_layers - 1)
        _CHECK.whole("margin_size", self.margin_size, 0, MAX_MARGIN)
        _CHECK.real("channel_base", self.channel_base, 1, MAX_WIDTH * MAX_RESOLUTION)
        _CHECK.real("channel_max", self.channel_max, 1, MAX_WIDTH)
        _CHECK.real("num_fp16_res", self.num_fp16_res, -MAX_LAYERS, MAX_LAYERS)
        for name in ("first_cutoff", "first_stopband", "last_stopband_rel"):
            _CHECK.real(name, getattr(self, name), 1e-3, MAX_RESOLUTION)
        _CHECK.finite("output_scale", self.output_scale)


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of a StyleGAN3 generator.

    Attributes:
        z_dim: Width of the latents z; 0 is a generator that is driven by its labels alone.
        c_dim: Number of label entries; 0 is unconditional.
        w_dim: Width of the intermediate latents w.
        img_resolution: Pixels along each side.
        img_channels: Channels of the image.
        mapping: Options of the mapping network.
        synthesis: Options of the synthesis network.

    Raises:
        UserError: A value is out of range, here or in the two parts; the message names the option.
    """

    z_dim: int
    c_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int
    mapping: MappingOptions = field(default_factory=lambda: MappingOptions(num_layers=2))
    synthesis: SynthesisOptions = field(default_factory=SynthesisOptions)

    def __post_init__(self) -> None:
        _CHECK.whole("c_dim", self.c_dim, 0, MAX_WIDTH)
        _CHECK.whole("z_dim", self.z_dim, 0 if self.c_dim else 1, MAX_WIDTH)
        _CHECK.whole("w_dim", self.w_dim, 1, MAX_WIDTH)
        _CHECK.whole("img_resolution", self.img_resolution, 4, MAX_RESOLUTION)
        _CHECK.whole("img_channels", self.img_channels, 1, MAX_WIDTH)
        width = self.z_dim + (self.w_dim if self.c_dim else 0)
        if self.mapping.num_layers == 0 and width != self.w_dim:
            raise UserError(
                f"A StyleGAN3 generator without mapping layers cannot turn {width} numbers into a w of {self.w_dim}."
            )


@dataclass(frozen=True)
class InputOptions:
    """Options of the Fourier features that the layers start from.

    Attributes:
        w_dim: Width of the intermediate latents w.
        channels: Number of features.
        size: Pixels along each side.
        sampling_rate: Pixels per image width.
        bandwidth: Highest frequency in cycles per image width.
    """

    w_dim: int
    channels: int
    size: int
    sampling_rate: float
    bandwidth: float


@dataclass(frozen=True)
class Plan:
    """All layers of a synthesis network.

    Attributes:
        input: Options of the input.
        layers: Name and options of each layer, the one that makes the image last.
    """

    input: InputOptions
    layers: tuple[tuple[str, LayerOptions], ...]


def plan(w_dim: int, img_resolution: int, img_channels: int, options: SynthesisOptions) -> Plan:
    """Layers of a synthesis network.

    Args:
        w_dim: Width of the intermediate latents w.
        img_resolution: Pixels along each side of the image.
        img_channels: Channels of the image.
        options: Options of the network.

    Raises:
        UserError: The options describe no such network.
    """
    # From the first layer's value to the last one's, which the critically sampled layers share.
    count = options.num_layers
    progress = np.minimum(np.arange(count + 1) / (count - options.num_critical), 1)
    last_cutoff = img_resolution / 2
    cutoffs = options.first_cutoff * (last_cutoff / options.first_cutoff) ** progress
    last_stopband = last_cutoff * options.last_stopband_rel
    stopbands = options.first_stopband * (last_stopband / options.first_stopband) ** progress
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, img_resolution))))
    half_widths = np.maximum(stopbands, rates / 2) - cutoffs
    sizes = rates + 2 * options.margin_size
    sizes[-2:] = img_resolution
    channels = np.rint(np.minimum(options.channel_base / 2 / cutoffs, options.channel_max))
    channels[-1] = img_channels

    layers = []
    for i in range(count + 1):
        before = max(i - 1, 0)
        layer = LayerOptions(
            w_dim=w_dim,
            is_torgb=i == count,
            is_critically_sampled=i >= count - options.num_critical,
            use_fp16=bool(rates[i] * 2**options.num_fp16_res > img_resolution),
            in_channels=int(channels[before]),
            out_channels=int(channels[i]),
            in_size=int(sizes[before]),
            out_size=int(sizes[i]),
            in_sampling_rate=int(rates[before]),
            out_sampling_rate=int(rates[i]),
            in_cutoff=float(cutoffs[before]),
            out_cutoff=float(cutoffs[i]),
            in_half_width=float(half_widths[before]),
            out_half_width=float(half_widths[i]),
            conv_kernel=options.conv_kernel,
            filter_size=options.filter_size,
            lrelu_upsampling=options.lrelu_upsampling,
            use_radial_filters=options.use_radial_filters,
            conv_clamp=options.conv_clamp,
            magnitude_ema_beta=options.magnitude_ema_beta,
        )
        layers.append((f"L{i}_{layer.out_size}_{layer.out_channels}", layer))
    first = InputOptions(w_dim, int(channels[0]), int(sizes[0]), float(rates[0]), float(cutoffs[0]))
    return Plan(first, tuple(layers))


def options_from_init_kwargs(init_kwargs: Mapping[str, Any]) -> GeneratorOptions:
    """Translates the constructor arguments in a pickle; see `stylegan3.generator_from_init_kwargs`."""
    arguments = dict(init_kwargs)
    mapping = arguments.pop("mapping_kwargs", {})
    if not isinstance(mapping, Mapping):
        raise UserError(f"A StyleGAN3 generator needs mapping_kwargs as a dictionary, not {shown(mapping)}.")
    shape = {}
    for name in (each.name for each in fields(GeneratorOptions) if _is_required(each)):
        if name not in arguments:
            raise UserError(f"The constructor arguments of this StyleGAN3 generator lack {name}.")
        shape[name] = arguments.pop(name)
    _known(mapping, {"num_layers", "lr_multiplier", "w_avg_beta"})
    _known(arguments, {each.name for each in fields(SynthesisOptions)})
    return GeneratorOptions(
        **shape,
        mapping=MappingOptions(**{"num_layers": 2, **mapping}),
        synthesis=SynthesisOptions(**arguments),
    )


def _is_required(each: Any) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _known(keywords: Mapping[str, Any], names: set[str]) -> None:
    unknown = keywords.keys() - names
    if unknown:
        raise UserError(
            f"A StyleGAN3 generator has no constructor argument {shown(min(unknown, key=shown))}: "
            "this pickle is of another kind."
        )
