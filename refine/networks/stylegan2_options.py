"""The options of the StyleGAN2 generator, and how its pickles spell them.

Two repositories write such pickles: stylegan2-ada-pytorch and stylegan3 (its `networks_stylegan2`). Their weights
have the same names; their constructor arguments are arranged differently and have different defaults.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from refine.errors import UserError
from stylegan_ops.bias_act import ACTIVATIONS

Dialect: TypeAlias = Literal["ada", "sg3"]
ARCHITECTURES = ("orig", "skip", "resnet")

# Bounds of what a file may ask for. They are far above any real network and keep a malicious one small.
MAX_WIDTH = 2**20
MAX_RESOLUTION = 2**16
MAX_LAYERS = 100
MAX_TAPS = 32


def _shown(value: Any) -> str:
    """The beginning of a value's repr: a file may hold a number that takes hours to print."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python's limit of the digits of an int
        return f"{type(value).__name__} of enormous size"


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(
            f"A StyleGAN2 generator needs {name} as a whole number from {low} to {high}, not {_shown(value)}."
        )


def _check_real(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"A StyleGAN2 generator needs {name} as a number from {low} to {high}, not {_shown(value)}.")


def _check_choice(name: str, value: Any, choices: tuple[bool | str, ...]) -> None:
    if not isinstance(value, bool | str) or value not in choices:
        allowed = ", ".join(str(choice) for choice in choices)
        raise UserError(f"A StyleGAN2 generator needs {name} as one of {allowed}, not {_shown(value)}.")


@dataclass(frozen=True)
class MappingOptions:
    """How z and c become w; the defaults are those of the stylegan3 repository.

    Attributes:
        num_layers: fully connected layers after the concatenation of z and the embedded label.
        embed_features: width of the label's embedding; None is w_dim.
        layer_features: width of all layers but the last; None is w_dim.
        activation: a key of `stylegan_ops.bias_act.ACTIVATIONS`.
        lr_multiplier: learning rate of these layers relative to the rest.
        w_avg_beta: share of the old value that `w_avg` keeps in an update, 0 to 1.
    """

    num_layers: int = 8
    embed_features: int | None = None
    layer_features: int | None = None
    activation: str = "lrelu"
    lr_multiplier: float = 0.01
    w_avg_beta: float = 0.998

    def __post_init__(self) -> None:
        _check_whole("num_layers", self.num_layers, 1, MAX_LAYERS)
        for name, width in (("embed_features", self.embed_features), ("layer_features", self.layer_features)):
            if width is not None:
                _check_whole(name, width, 1, MAX_WIDTH)
        _check_choice("activation", self.activation, tuple(ACTIVATIONS))
        _check_real("lr_multiplier", self.lr_multiplier, 1e-6, 1e6)
        _check_real("w_avg_beta", self.w_avg_beta, 0, 1)


@dataclass(frozen=True)
class SynthesisOptions:
    """How w becomes an image; the defaults are those of the stylegan3 repository.

    Attributes:
        channel_base: channels times resolution, for the resolutions where that is less than channel_max.
        channel_max: most channels of a block.
        num_fp16_res: how many of the highest resolutions compute in float16 on CUDA; never those below 8.
        conv_clamp: limit of the magnitude of each layer's output, scaled with its gain; None is no limit.
        architecture: `skip` adds up the images of all resolutions, `resnet` joins the blocks by residual
            connections, `orig` does neither.
        resample_filter: taps of the upsampling filter.
        kernel_size: odd size of the convolutions.
        use_noise: whether the layers add noise.
        activation: a key of `stylegan_ops.bias_act.ACTIVATIONS`.
        fused_modconv_default: the argument `fused_modconv` of `modulated_conv2d`, or `inference_only` for what
            is faster; a matter of speed and memory only.
    """

    channel_base: int = 32768
    channel_max: int = 512
    num_fp16_res: int = 4
    conv_clamp: float | None = 256
    architecture: str = "skip"
    resample_filter: tuple[float, ...] = (1, 3, 3, 1)
    kernel_size: int = 3
    use_noise: bool = True
    activation: str = "lrelu"
    fused_modconv_default: bool | str = True

    def __post_init__(self) -> None:
        _check_whole("channel_base", self.channel_base, 1, MAX_WIDTH * MAX_RESOLUTION)
        _check_whole("channel_max", self.channel_max, 1, MAX_WIDTH)
        _check_whole("num_fp16_res", self.num_fp16_res, 0, MAX_LAYERS)
        if self.conv_clamp is not None:
            _check_real("conv_clamp", self.conv_clamp, 0, 1e30)
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        if not isinstance(self.resample_filter, tuple) or not 1 <= len(self.resample_filter) <= MAX_TAPS:
            raise UserError(
                f"A StyleGAN2 generator needs resample_filter as a list of 1 to {MAX_TAPS} numbers, "
                f"not {_shown(self.resample_filter)}."
            )
        for tap in self.resample_filter:
            _check_real("resample_filter", tap, -1e6, 1e6)
        if sum(self.resample_filter) == 0:
            raise UserError(f"The resample_filter {_shown(self.resample_filter)} sums to 0 and cannot be normalised.")
        _check_whole("kernel_size", self.kernel_size, 1, MAX_TAPS)
        if self.kernel_size % 2 == 0:
            raise UserError(f"A StyleGAN2 generator needs an odd kernel_size, not {self.kernel_size}.")
        _check_choice("use_noise", self.use_noise, (True, False))
        _check_choice("activation", self.activation, tuple(ACTIVATIONS))
        _check_choice("fused_modconv_default", self.fused_modconv_default, (True, False, "inference_only"))


@dataclass(frozen=True)
class GeneratorOptions:
    """What a StyleGAN2 generator is made of.

    Attributes:
        z_dim: width of the latents z.
        c_dim: number of label entries; 0 is unconditional.
        w_dim: width of the intermediate latents w.
        img_resolution: pixels along each side, a power of two from 4 on.
        img_channels: colours.
        mapping: options of the mapping network.
        synthesis: options of the synthesis network.

    Raises:
        UserError: here and in the two parts, if a value is out of range; it names the option.
    """

    z_dim: int
    c_dim: int
    w_dim: int
    img_resolution: int
    img_channels: int
    mapping: MappingOptions = field(default_factory=MappingOptions)
    synthesis: SynthesisOptions = field(default_factory=SynthesisOptions)

    def __post_init__(self) -> None:
        _check_whole("z_dim", self.z_dim, 1, MAX_WIDTH)
        _check_whole("c_dim", self.c_dim, 0, MAX_WIDTH)
        _check_whole("w_dim", self.w_dim, 1, MAX_WIDTH)
        _check_whole("img_resolution", self.img_resolution, 4, MAX_RESOLUTION)
        _check_whole("img_channels", self.img_channels, 1, MAX_WIDTH)
        if self.img_resolution & (self.img_resolution - 1):
            raise UserError(f"A StyleGAN2 generator needs img_resolution a power of two, not {self.img_resolution}.")
        if self.synthesis.channel_base < self.img_resolution:
            raise UserError(
                f"A StyleGAN2 generator of resolution {self.img_resolution} needs channel_base to be at least "
                f"that, not {self.synthesis.channel_base}."
            )


def options_from_init_kwargs(init_kwargs: Mapping[str, Any], dialect: Dialect) -> GeneratorOptions:
    """Translate the constructor arguments in a pickle; see `stylegan2.generator_from_init_kwargs`."""
    arguments = dict(init_kwargs)
    mapping = _keywords(arguments.pop("mapping_kwargs", {}), "mapping_kwargs")
    shape: dict[str, Any] = {}
    for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels"):
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
    if isinstance(synthesis.get("resample_filter"), list):
        synthesis["resample_filter"] = tuple(synthesis["resample_filter"])
    return GeneratorOptions(
        **shape,
        mapping=MappingOptions(**_known(mapping, MappingOptions)),
        synthesis=SynthesisOptions(**_known(synthesis, SynthesisOptions)),
    )


def _keywords(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"A StyleGAN2 generator needs {name} as a dictionary, not {_shown(value)}.")
    return dict(value)


def _known(keywords: dict[str, Any], options: type) -> dict[str, Any]:
    unknown = keywords.keys() - {field.name for field in fields(options)}
    if unknown:
        raise _unknown_keyword(min(unknown, key=_shown))
    return keywords


def _unknown_keyword(name: Any) -> UserError:
    return UserError(
        f"A StyleGAN2 generator has no constructor argument {_shown(name)}: this pickle is of another kind."
    )
