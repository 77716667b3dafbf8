"""Options of the StyleGAN2 generator, and their spelling in pickles.

Two repositories write such pickles: stylegan2-ada-pytorch and stylegan3 (its `networks_stylegan2`). Their weights
have the same names; their constructor arguments are arranged differently and have different defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from refine.errors import UserError
from refine.networks.checks import MAX_LAYERS, MAX_RESOLUTION, MAX_TAPS, MAX_WIDTH, Checks, shown
from stylegan_ops.bias_act import ACTIVATIONS

Dialect: TypeAlias = Literal["ada", "sg3"]
# A resampling filter: None is the single tap 1, numbers are a separable filter, rows of numbers a 2-D one.
Filter: TypeAlias = float | Sequence[float] | Sequence[Sequence[float]] | None
DEFAULT_FILTER = (1, 3, 3, 1)
ARCHITECTURES = ("orig", "skip", "resnet")

_CHECK = Checks("A StyleGAN2 generator")


def _check_filter(value: Any) -> None:
    rows: Any = value if isinstance(value, list | tuple) else [1 if value is None else value]
    if not any(isinstance(row, list | tuple) for row in rows):
        rows = [rows]
    is_grid = all(isinstance(row, list | tuple) for row in rows) and len({len(row) for row in rows}) == 1
    if not is_grid or not (1 <= len(rows) <= MAX_TAPS and 1 <= len(rows[0]) <= MAX_TAPS):
        raise UserError(
            f"A StyleGAN2 generator needs resample_filter as 1 to {MAX_TAPS} numbers or rows of as many, not "
            f"{shown(value)}."
        )
    for tap in (tap for row in rows for tap in row):
        _CHECK.real("resample_filter", tap, -1e6, 1e6)
    if sum(sum(row) for row in rows) == 0:
        raise UserError(f"The resample_filter {shown(value)} sums to 0 and cannot be normalized.")


@dataclass(frozen=True)
class MappingOptions:
    """Options of the network that maps z and c to w; the defaults are those of the stylegan3 repository.

    Attributes:
        num_layers: Fully connected layers after the concatenation of z and the embedded label.
        embed_features: Width of the label's embedding; None is w_dim.
        layer_features: Width of all layers but the last; None is w_dim.
        activation: Key of `stylegan_ops.bias_act.ACTIVATIONS`.
        lr_multiplier: Learning rate of these layers relative to the rest.
        w_avg_beta: Share of its old value that `w_avg` keeps in an update; None is a network without `w_avg`.
    """

    num_layers: int = 8
    embed_features: int | None = None
    layer_features: int | None = None
    activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float | None = 0.998

    def __post_init__(self) -> None:
        _CHECK.whole("num_layers", self.num_layers, 0, MAX_LAYERS)
        if self.embed_features is not None:
            _CHECK.whole("embed_features", self.embed_features, 0, MAX_WIDTH)
        if self.layer_features is not None:
            _CHECK.whole("layer_features", self.layer_features, 1, MAX_WIDTH)
        _CHECK.choice("activation", self.activation, tuple(ACTIVATIONS))
        _CHECK.finite("lr_multiplier", self.lr_multiplier)
        if self.lr_multiplier == 0:
            raise UserError("A StyleGAN2 generator cannot have lr_multiplier=0: its weights are divided by it.")
        if self.w_avg_beta is not None:
            _CHECK.finite("w_avg_beta", self.w_avg_beta)


@dataclass(frozen=True)
class SynthesisOptions:
    """Options of the network that turns w into an image; the defaults are those of the stylegan3 repository.

    Attributes:
        channel_base: Channels times resolution, for the resolutions where that is less than channel_max.
        channel_max: Most channels of a block.
        num_fp16_res: Number of the highest resolutions that compute in float16 on CUDA; never those below 8.
        conv_clamp: Limit of the magnitude of each layer's output, scaled with its gain; None is no limit.
        architecture: `skip` adds up the images of all resolutions, `resnet` joins the blocks by residual
            connections, `orig` does neither.
        resample_filter: Upsampling filter.
        kernel_size: Odd size of the convolutions.
        use_noise: True if the layers add noise.
        activation: Key of `stylegan_ops.bias_act.ACTIVATIONS`.
        fused_modconv_default: Argument `fused_modconv` of `modulated_conv2d`, or `inference_only` for the faster
            form; a matter of speed and memory only.
    """

    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 4
    conv_clamp: float | None = 256
    architecture: str = "skip"
    resample_filter: Filter = DEFAULT_FILTER
    kernel_size: int = 3
    use_noise: bool = True
    activation: str = "lrelu"
    fused_modconv_default: bool | str = True

    def __post_init__(self) -> None:
        _CHECK.whole("channel_base", self.channel_base, 1, MAX_WIDTH * MAX_RESOLUTION)
        _CHECK.whole("channel_max", self.channel_max, 1, MAX_WIDTH)
        _CHECK.whole("num_fp16_res", self.num_fp16_res, 0, MAX_LAYERS)
        if self.conv_clamp is not None:
            _CHECK.real("conv_clamp", self.conv_clamp, 0, 1e30)
        _CHECK.choice("architecture", self.architecture, ARCHITECTURES)
        _check_filter(self.resample_filter)
        _CHECK.whole("kernel_size", self.kernel_size, 1, MAX_TAPS)
        if self.kernel_size % 2 == 0:
            raise UserError(f"A StyleGAN2 generator needs an odd kernel_size, not {self.kernel_size}.")
        _CHECK.choice("use_noise", self.use_noise, (True, False))
        _CHECK.choice("activation", self.activation, tuple(ACTIVATIONS))
        _CHECK.choice("fused_modconv_default", self.fused_modconv_default, (True, False, "inference_only"))


@dataclass(frozen=True)
class GeneratorOptions:
    """Options of a StyleGAN2 generator.

    Attributes:
        z_dim: Width of the latents z; 0 is a generator that is driven by its labels alone.
        c_dim: Number of label entries; 0 is unconditional.
        w_dim: Width of the intermediate latents w.
        img_resolution: Pixels along each side, a power of two from 4 on.
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
    mapping: MappingOptions = field(default_factory=MappingOptions)
    synthesis: SynthesisOptions = field(default_factory=SynthesisOptions)

    def __post_init__(self) -> None:
        _CHECK.whole("c_dim", self.c_dim, 0, MAX_WIDTH)
        _CHECK.whole("z_dim", self.z_dim, 0 if self.c_dim else 1, MAX_WIDTH)
        _CHECK.whole("w_dim", self.w_dim, 1, MAX_WIDTH)
        _CHECK.whole("img_resolution", self.img_resolution, 4, MAX_RESOLUTION)
        _CHECK.whole("img_channels", self.img_channels, 1, MAX_WIDTH)
        if self.img_resolution & (self.img_resolution - 1):
            raise UserError(f"A StyleGAN2 generator needs img_resolution a power of two, not {self.img_resolution}.")
        embedded = self.w_dim if self.mapping.embed_features is None else self.mapping.embed_features
        width = self.z_dim + (embedded if self.c_dim else 0)
        if width == 0 or (self.mapping.num_layers == 0 and width != self.w_dim):
            raise UserError(
                f"A StyleGAN2 generator with {self.mapping.num_layers} mapping layers cannot turn {width} numbers into "
                f"a w of {self.w_dim}."
            )
        if self.synthesis.channel_base < self.img_resolution:
            raise UserError(
                f"A StyleGAN2 generator of resolution {self.img_resolution} needs channel_base to be at least "
                f"that, not {self.synthesis.channel_base}."
            )


# The order of constructor arguments, for networks that were constructed by position.
_SHAPE_ARGUMENTS = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")
POSITIONAL_ARGUMENTS: dict[Dialect, tuple[str, ...]] = {
    "ada": (*_SHAPE_ARGUMENTS, "mapping_kwargs", "synthesis_kwargs"),
    "sg3": (*_SHAPE_ARGUMENTS, "mapping_kwargs"),
}


def options_from_init_kwargs(init_kwargs: Mapping[str, Any], dialect: Dialect) -> GeneratorOptions:
    """Translates the constructor arguments in a pickle; see `stylegan2.generator_from_init_kwargs`."""
    arguments = dict(init_kwargs)
    mapping = _keywords(arguments.pop("mapping_kwargs", {}), "mapping_kwargs")
    shape: dict[str, Any] = {}
    for name in _SHAPE_ARGUMENTS:
        if name not in arguments:
            raise UserError(f"The constructor arguments of this StyleGAN2 generator lack {name}.")
        shape[name] = arguments.pop(name)
    if dialect == "ada":
        synthesis = _keywords(arguments.pop("synthesis_kwargs", {}), "synthesis_kwargs")
        for name in arguments:
            raise _unknown_keyword(name)
        mapping = {"w_avg_beta": 0.995, **mapping}
        defaults = {"num_fp16_res": 0, "conv_clamp": None, "fused_modconv_default": "inference_only"}
        synthesis = {**defaults, **synthesis}
    else:
        synthesis = arguments
    synthesis.pop("fp16_channels_last", None)  # A memory layout; the values do not depend on it.
    return GeneratorOptions(
        **shape,
        mapping=MappingOptions(**_known(mapping, MappingOptions)),
        synthesis=SynthesisOptions(**_known(synthesis, SynthesisOptions)),
    )


def _keywords(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"A StyleGAN2 generator needs {name} as a dictionary, not {shown(value)}.")
    return dict(value)


def _known(keywords: dict[str, Any], options: type) -> dict[str, Any]:
    unknown = keywords.keys() - {field.name for field in fields(options)}
    if unknown:
        raise _unknown_keyword(min(unknown, key=shown))
    return keywords


def _unknown_keyword(name: Any) -> UserError:
    return UserError(
        f"A StyleGAN2 generator has no constructor argument {shown(name)}: this pickle is of another kind."
    )
