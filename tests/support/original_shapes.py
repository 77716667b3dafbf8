"""Names and shapes of the tensors that the original constructors make, written down from their definitions.

Independent of `refine.networks`: golden pickles are the proof (tests/networks/test_constructor_arguments.py).
"""

from __future__ import annotations

import math
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def filter_shape(f: Any) -> tuple[int, ...]:
    """Shape of `setup_filter`'s result: an outer product below eight taps, else the taps."""
    if not isinstance(f, (list, tuple)):
        return (1, 1)
    if isinstance(f[0], (list, tuple)):
        return (len(f), len(f[0]))
    return (len(f),) if len(f) >= 8 else (len(f), len(f))


def stylegan2(arguments: dict[str, Any], dialect: str) -> Shapes:
    """Tensors of a StyleGAN2 generator.

    Args:
        arguments: Of the constructor.
        dialect: `ada` (stylegan2-ada-pytorch) or `sg3` (the stylegan3 repository).
    """
    z_dim, c_dim, w_dim = (arguments[name] for name in ("z_dim", "c_dim", "w_dim"))
    resolution, image = arguments["img_resolution"], arguments["img_channels"]
    mapping = arguments.get("mapping_kwargs", {})
    synthesis = arguments.get("synthesis_kwargs", {}) if dialect == "ada" else arguments

    def option(kwargs: dict[str, Any], name: str, default: Any) -> Any:
        value = kwargs.get(name, default)
        return default if value is None and name.endswith("features") else value

    shapes: Shapes = {}
    embed = option(mapping, "embed_features", w_dim) if c_dim else 0
    layers = mapping.get("num_layers", 8)
    widths = [z_dim + embed, *[option(mapping, "layer_features", w_dim)] * (layers - 1), w_dim]
    if c_dim:
        shapes |= {"mapping.embed.weight": (embed, c_dim), "mapping.embed.bias": (embed,)}
    for i in range(layers):
        shapes |= {f"mapping.fc{i}.weight": (widths[i + 1], widths[i]), f"mapping.fc{i}.bias": (widths[i + 1],)}
    if mapping.get("w_avg_beta", 0.995) is not None:
        shapes["mapping.w_avg"] = (w_dim,)

    taps, kernel = synthesis.get("resample_filter", [1, 3, 3, 1]), synthesis.get("kernel_size", 3)

    def affine(layer: str, channels: int) -> Shapes:
        return {f"{layer}.affine.weight": (channels, w_dim), f"{layer}.affine.bias": (channels,)}

    def conv(layer: str, inside: int, out: int, res: int, f: Any) -> Shapes:
        noise = {f"{layer}.noise_const": (res, res), f"{layer}.noise_strength": ()}
        return {
            **affine(layer, inside),
            f"{layer}.weight": (out, inside, kernel, kernel),
            f"{layer}.bias": (out,),
            f"{layer}.resample_filter": filter_shape(f),
            **(noise if synthesis.get("use_noise", True) else {}),
        }

    before, res, architecture = 0, 4, synthesis.get("architecture", "skip")
    while res <= resolution:
        block = f"synthesis.b{res}"
        out = min(synthesis.get("channel_base", 32768) // res, synthesis.get("channel_max", 512))
        shapes[f"{block}.resample_filter"] = filter_shape(taps)
        if before:
            shapes |= conv(f"{block}.conv0", before, out, res, taps)
        else:
            shapes[f"{block}.const"] = (out, res, res)
        shapes |= conv(f"{block}.conv1", out, out, res, [1, 3, 3, 1])  # this layer is not given the argument
        if res == resolution or architecture == "skip":
            shapes |= affine(f"{block}.torgb", out)
            shapes |= {f"{block}.torgb.weight": (image, out, 1, 1), f"{block}.torgb.bias": (image,)}
        if before and architecture == "resnet":
            shapes |= {f"{block}.skip.weight": (out, before, 1, 1), f"{block}.skip.resample_filter": filter_shape(taps)}
        before, res = out, 2 * res
    return shapes


def stylegan3(arguments: dict[str, Any]) -> Shapes:
    """Tensors of a StyleGAN3 generator, from the formulas of the paper's section 3.2 in whole numbers and logarithms.

    Args:
        arguments: Of the constructor.
    """
    z_dim, c_dim, w_dim = (arguments[name] for name in ("z_dim", "c_dim", "w_dim"))
    resolution = arguments["img_resolution"]
    mapping, given = arguments.get("mapping_kwargs", {}), arguments.get
    layers = mapping.get("num_layers", 2)
    widths = [z_dim + (w_dim if c_dim else 0), *[w_dim] * layers]
    shapes: Shapes = {"mapping.w_avg": (w_dim,)}
    if c_dim:
        shapes |= {"mapping.embed.weight": (w_dim, c_dim), "mapping.embed.bias": (w_dim,)}
    for i in range(layers):
        shapes |= {f"mapping.fc{i}.weight": (widths[i + 1], widths[i]), f"mapping.fc{i}.bias": (widths[i + 1],)}

    count = given("num_layers", 14)
    last_cutoff = resolution / 2
    last_stop = last_cutoff * given("last_stopband_rel", 2**0.3)
    rates, sizes, channels = [], [], []
    for i in range(count + 1):
        share = min(i / (count - given("num_critical", 2)), 1)
        cutoff = math.exp((1 - share) * math.log(given("first_cutoff", 2)) + share * math.log(last_cutoff))
        stop = math.exp((1 - share) * math.log(given("first_stopband", 2**2.1)) + share * math.log(last_stop))
        # A rate that is a power of two already is not to be rounded up for an error in its last digit.
        rates.append(2 ** math.ceil(math.log2(min(2 * stop, resolution)) - 1e-9))
        sizes.append(rates[-1] + 2 * given("margin_size", 10) if i < count - 1 else resolution)
        channels.append(round(min(given("channel_base", 32768) / 2 / cutoff, given("channel_max", 512))))
    channels[-1] = arguments["img_channels"]

    shapes |= {
        "synthesis.input.weight": (channels[0], channels[0]),
        "synthesis.input.affine.weight": (4, w_dim),
        "synthesis.input.affine.bias": (4,),
        "synthesis.input.transform": (3, 3),
        "synthesis.input.freqs": (channels[0], 2),
        "synthesis.input.phases": (channels[0],),
    }
    for i in range(count + 1):
        before, is_torgb = max(i - 1, 0), i == count
        name = f"synthesis.L{i}_{sizes[i]}_{channels[i]}"
        kernel = 1 if is_torgb else given("conv_kernel", 3)
        shapes |= {
            f"{name}.weight": (channels[i], channels[before], kernel, kernel),
            f"{name}.bias": (channels[i],),
            f"{name}.affine.weight": (channels[before], w_dim),
            f"{name}.affine.bias": (channels[before],),
            f"{name}.magnitude_ema": (),
        }
        rate = max(rates[before], rates[i]) * given("lrelu_upsampling", 2)
        up, down, per_step = rate // rates[before], rate // rates[i], given("filter_size", 6)
        if not is_torgb and up * per_step > 1 and up > 1:
            shapes[f"{name}.up_filter"] = (up * per_step,)
        if not is_torgb and down > 1 and down * per_step > 1:
            is_radial = given("use_radial_filters", False) and i < count - given("num_critical", 2)
            shapes[f"{name}.down_filter"] = (down * per_step,) * (2 if is_radial else 1)
    return shapes


def edm(class_name: str, arguments: dict[str, Any]) -> Shapes:
    """Tensors of a denoiser.

    Args:
        class_name: EDMPrecond, VPPrecond, VEPrecond or iDDPMPrecond.
        arguments: Of its constructor.
    """
    is_song = (
        arguments.get("model_type", "SongUNet" if class_name in ("VPPrecond", "VEPrecond") else "DhariwalUNet")
        == "SongUNet"
    )
    channels, image = arguments.get("model_channels", 128 if is_song else 192), arguments["img_channels"]
    out_image = 2 * image if class_name == "iDDPMPrecond" else image
    mult = arguments.get("channel_mult", [1, 2, 2, 2] if is_song else [1, 2, 3, 4])
    emb = channels * arguments.get("channel_mult_emb", 4)
    blocks = arguments.get("num_blocks", 4 if is_song else 3)
    attention = arguments.get("attn_resolutions", [16] if is_song else [32, 16, 8])
    taps = len(arguments.get("resample_filter", [1, 1]) if is_song else [1, 1])
    noise = channels * (arguments.get("channel_mult_noise", 1) if is_song else 1)
    label, augment = arguments.get("label_dim", 0), arguments.get("augment_dim", 0)
    shapes: Shapes = {"u": (arguments.get("M", 1000) + 1,)} if class_name == "iDDPMPrecond" else {}

    def layer(name: str, *size: int, bias: bool = True) -> None:
        shapes[f"model.{name}.weight"] = size
        if bias:
            shapes[f"model.{name}.bias"] = size[:1]

    def block(name: str, cin: int, cout: int, resampled: bool = False, attends: bool = False) -> None:
        layer(f"{name}.norm0", cin)
        layer(f"{name}.conv0", cout, cin, 3, 3)
        layer(f"{name}.affine", cout if is_song else 2 * cout, emb)
        layer(f"{name}.norm1", cout)
        layer(f"{name}.conv1", cout, cout, 3, 3)
        if resampled:
            shapes[f"model.{name}.conv0.resample_filter"] = shapes[f"model.{name}.skip.resample_filter"] = (
                *(1, 1),
                *(taps, taps),
            )
        if cin != cout or (resampled and is_song):
            layer(f"{name}.skip", cout, cin, 1, 1)
        heads = 0 if not attends else 1 if is_song else cout // 64
        if heads:
            layer(f"{name}.norm2", cout)
            layer(f"{name}.qkv", 3 * cout, cout, 1, 1)
            layer(f"{name}.proj", cout, cout, 1, 1)

    if is_song and arguments.get("embedding_type") == "fourier":
        shapes["model.map_noise.freqs"] = (noise // 2,)
    if label:
        layer("map_label", noise if is_song else emb, label, bias=is_song)
    if augment:
        layer("map_augment", noise, augment, bias=False)
    layer("map_layer0", emb, noise)
    layer("map_layer1", emb, emb)

    resolutions = [arguments["img_resolution"] >> level for level in range(len(mult))]
    skips, now, encoded = [], channels if is_song else channels * mult[0], image
    for level, (res, factor) in enumerate(zip(resolutions, mult, strict=True)):
        if level == 0:
            layer(f"enc.{res}x{res}_conv", now, image, 3, 3)
        else:
            block(f"enc.{res}x{res}_down", now, now, resampled=True)
            kind = arguments.get("encoder_type", "standard") if is_song else "standard"
            if kind == "skip":
                shapes[f"model.enc.{res}x{res}_aux_down.resample_filter"] = (1, 1, taps, taps)
                layer(f"enc.{res}x{res}_aux_skip", now, image, 1, 1)
            elif kind == "residual":
                layer(f"enc.{res}x{res}_aux_residual", now, encoded, 3, 3)
                shapes[f"model.enc.{res}x{res}_aux_residual.resample_filter"] = (1, 1, taps, taps)
                encoded = now
        skips.append(now)
        for i in range(blocks):
            block(f"enc.{res}x{res}_block{i}", now, channels * factor, attends=res in attention)
            now = channels * factor
            skips.append(now)
    for level, (res, factor) in reversed(list(enumerate(zip(resolutions, mult, strict=True)))):
        if level == len(mult) - 1:
            block(f"dec.{res}x{res}_in0", now, now, attends=True)
            block(f"dec.{res}x{res}_in1", now, now)
        else:
            block(f"dec.{res}x{res}_up", now, now, resampled=True)
        for i in range(blocks + 1):
            attends = res in attention and (not is_song or i == blocks)
            block(f"dec.{res}x{res}_block{i}", now + skips.pop(), channels * factor, attends=attends)
            now = channels * factor
        if is_song:
            decoder = arguments.get("decoder_type", "standard")
            if decoder == "skip" and level < len(mult) - 1:
                shapes[f"model.dec.{res}x{res}_aux_up.resample_filter"] = (1, 1, taps, taps)
            if decoder == "skip" or level == 0:
                layer(f"dec.{res}x{res}_aux_norm", now)
                layer(f"dec.{res}x{res}_aux_conv", out_image, now, 3, 3)
    if not is_song:
        layer("out_norm", now)
        layer("out_conv", out_image, now, 3, 3)
    return shapes
