"""The EDM family against golden vectors, closed forms and a float64 block; construction and errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from refine import networks, pickles
from refine.diffusion.sampler import heun_sample
from refine.errors import UserError
from refine.networks.edm import denoiser_from_init_kwargs
from refine.networks.edm_layers import BlockOptions, Conv2d, Resample, UNetBlock

NAMES = [
    "edm/s1_edm_ddpmpp_uncond16",
    "edm/s2_edm_adm_cond16",
    "edm/s3_vp_ddpmpp_uncond16",
    "edm/s4_sid_ddpmpp_cond16",
    "edm/s5_ve_ncsnpp_uncond16",
    "edm/s6_iddpm_adm_uncond16",
]
# Relative tolerances of the fixtures' README, for float32 on the CPU.
TOLERANCES = {"D": 5e-5, "onestep": 5e-5, "heun18": 2e-5, "grad": 3e-4, "loss": 5e-5, "sigma": 1e-6}

SONG = {"img_resolution": 16, "img_channels": 3, "model_type": "SongUNet", "model_channels": 8, "num_blocks": 1}
SONG |= {"channel_mult": [1, 2], "attn_resolutions": [8]}
ADM = {"img_resolution": 8, "img_channels": 3, "model_type": "DhariwalUNet", "model_channels": 32, "num_blocks": 1}
ADM |= {"channel_mult": [1, 4], "attn_resolutions": [4], "channel_mult_emb": 1}


@pytest.fixture(scope="module")
def load(fixture_path: Callable[[str], Path]) -> Callable[[str], torch.nn.Module]:
    @functools.cache
    def rebuild(name: str) -> torch.nn.Module:
        return networks.rebuild(pickles.load(fixture_path(name + ".pkl"))["ema"])

    return rebuild


def build(class_name: str = "EDMPrecond", randomise: bool = True, **init_kwargs: object) -> torch.nn.Module:
    """A network in eval mode; by default with weights such that every layer matters."""
    torch.manual_seed(1)
    net = denoiser_from_init_kwargs(class_name, init_kwargs).eval()
    for parameter in net.parameters() if randomise else ():
        if parameter.ndim > 1:
            torch.nn.init.xavier_uniform_(parameter)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return net


def noisy(net: torch.nn.Module, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = [n, net.img_channels, net.img_resolution, net.img_resolution]
    return torch.randn(shape, generator=generator), torch.linspace(0.3, 3, n)


def largest_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    """Largest error relative to the largest expected magnitude, of the worst sample for batches of images."""
    want = torch.from_numpy(expected).double()
    error, scale = (actual.detach().double() - want).abs(), want.abs()
    assert actual.shape == want.shape
    if want.ndim == 4 and want.shape[-1] > 3:  # images, not convolution kernels
        error, scale = error.amax((1, 2, 3)), scale.amax((1, 2, 3))
    else:
        error, scale = error.max(), scale.max()
    return float((error / scale).max())


def evaluate(net: torch.nn.Module, t: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Everything that the fixtures' README lists for a denoiser, under its key."""
    net.requires_grad_(True)
    conditional = net.label_dim > 0
    labels = t["in.labels"] if conditional else None
    labels4 = t["in.labels"][:4] if conditional else None
    x, sigma, r, z = t["in.x"], t["in.sigma"], t["in.r"], t["in.latents"]

    x_leaf = x.clone().requires_grad_()
    out = {"D": net(x_leaf, sigma, labels)}
    out["loss"] = (out["D"] * r).sum()
    out["loss"].backward()
    out["grad_x"] = x_leaf.grad
    parameters = dict(net.named_parameters())
    out |= {key: parameters[key[5:]].grad for key in wanted if key.startswith("grad.")}
    net.requires_grad_(False)

    out |= {f"D_scalar_sigma{s}": net(x, torch.tensor(s), labels) for s in (0.05, 2.5)}
    if conditional:
        out |= {"D_nolabel": net(x, sigma), "D_softlabel": net(x, sigma, t["in.labels_soft"])}
    if "in.aug" in t and net.model.map_augment is not None:
        out["D_aug"] = net(x, sigma, labels, t["in.aug"])
    if "heun18" in wanted:
        out["heun18"] = heun_sample(net, z, labels4)
    if "onestep_noaug" in wanted:
        z_leaf, sigma4 = z.clone().requires_grad_(), 2.5 * torch.ones(4, 1, 1, 1)
        out["onestep_noaug"] = net(2.5 * z_leaf, sigma4, labels4)
        (out["onestep_noaug"] * r[:4]).sum().backward()
        out["onestep_grad_z"] = z_leaf.grad
        out["onestep_aug0"] = net(2.5 * z, sigma4, labels4, torch.zeros(4, 9))

    rounding = t["round_sigma_in"]
    out["round_sigma_out64"] = net.round_sigma(rounding)
    out["round_sigma_out32"] = net.round_sigma(rounding.float())
    out |= {key: torch.tensor(getattr(net, key), dtype=torch.float64) for key in ("sigma_min", "sigma_max")}
    assert net.sigma_data == 0.5
    return out


@pytest.mark.parametrize("name", NAMES)
def test_golden_vectors(name, load, golden):
    expected = golden(name)
    wanted = {key for key in expected if not key.startswith("in.") and key != "round_sigma_in"}
    computed = evaluate(load(name), {key: torch.from_numpy(value) for key, value in expected.items()}, wanted)
    assert computed.keys() == wanted
    too_large = {}
    for key, value in computed.items():
        if key.startswith(("round_sigma", "sigma_")):
            np.testing.assert_allclose(value.numpy(), expected[key], rtol=TOLERANCES["sigma"], err_msg=key)
            assert value.numpy().dtype == expected[key].dtype
            continue
        kind = "grad" if "grad" in key else key.partition("_")[0]
        error = largest_error(value, expected[key])
        if not error <= TOLERANCES[kind]:
            too_large[key] = error
    assert not too_large


def test_sigma_and_x_may_come_in_every_form(load, golden):
    net, arrays = load(NAMES[0]), golden(NAMES[0])
    x, sigma = torch.from_numpy(arrays["in.x"]), 0.7
    want = net(x, torch.full([8], sigma))
    assert want.dtype == torch.float32
    for form in (sigma, torch.tensor(sigma), torch.full([8, 1, 1, 1], sigma), torch.tensor([sigma]).double()):
        assert largest_error(net(x, form), want.numpy()) < 5e-6
    assert torch.equal(net(x.double(), torch.full([8], sigma)), want)

    conditional, one_hot = load(NAMES[1]), torch.eye(5)[[3]]
    want = conditional(x, sigma, one_hot.expand(8, -1))
    for labels in (one_hot, one_hot.double(), one_hot.long()):
        assert largest_error(conditional(x, sigma, labels), want.numpy()) < 5e-6


def test_labels_of_the_wrong_width_are_refused_and_needless_ones_ignored(load):
    conditional, unconditional, no_augmentation = load(NAMES[1]), load(NAMES[0]), load(NAMES[5])
    x, sigma = noisy(conditional)
    with pytest.raises(ValueError, match="width 10"):
        conditional(x, sigma, torch.zeros(1, 10))
    assert torch.equal(unconditional(x, sigma, torch.ones(2, 5)), unconditional(x, sigma))
    assert torch.equal(no_augmentation(x, sigma, None, torch.ones(2, 9)), no_augmentation(x, sigma))


VARIANTS = {
    "skip encoder, 3 levels": SONG
    | {"channel_mult": [1, 2, 2], "encoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    "skip decoder": SONG | {"decoder_type": "skip"},
    "residual encoder, skip decoder, 3 levels": SONG
    | {"channel_mult": [1, 2, 2], "encoder_type": "residual", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    "fourier, wide sinusoids, labels": SONG
    | {"embedding_type": "fourier", "channel_mult_noise": 2, "label_dim": 3, "augment_dim": 4},
    "one level": SONG | {"channel_mult": [2]},
    "two blocks, gray": SONG | {"num_blocks": 2, "img_channels": 1, "channel_mult_emb": 2},
    "ADM with attention": ADM | {"label_dim": 3, "augment_dim": 4},
    "ADM with two heads": ADM | {"channel_mult": [2, 4]},
}


@pytest.mark.parametrize("class_name", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_and_every_parameter_gets_a_gradient(variant, class_name):
    init_kwargs = VARIANTS[variant]
    net = build(class_name, **init_kwargs)
    x, sigma = noisy(net)
    out = net(x, sigma, torch.ones(2, net.label_dim), torch.ones(2, init_kwargs.get("augment_dim", 0)))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_adm_has_attention_only_from_64_channels_and_one_head_for_every_64():
    def heads(**init_kwargs: object) -> dict[str, int]:
        with torch.device("meta"):
            net = denoiser_from_init_kwargs("EDMPrecond", ADM | init_kwargs)
        return {name[6:]: m.num_heads for name, m in net.named_modules() if getattr(m, "num_heads", 0)}

    blocks = ["enc.4x4_block0", "dec.4x4_in0", "dec.4x4_block0", "dec.4x4_block1"]
    assert heads() == dict.fromkeys(blocks, 2)
    assert heads(channel_mult=[1, 2]) == dict.fromkeys(blocks, 1)
    assert heads(model_channels=28, channel_mult=[1, 2]) == {}
    assert heads(attn_resolutions=[]) == {"dec.4x4_in0": 2}


def reference_block(block: UNetBlock, x: torch.Tensor, emb: torch.Tensor) -> np.ndarray:
    """A residual block in float64, attention and normalization written out (resampling filter [1, 1])."""
    weights = {key: value.double() for key, value in block.state_dict().items()}

    def norm(name: str, h: torch.Tensor, eps: float) -> torch.Tensor:
        groups = h.reshape(h.shape[0], min(32, h.shape[1] // 4), -1)
        mean, var = groups.mean(-1, keepdim=True), groups.var(-1, keepdim=True, correction=0)
        h = ((groups - mean) / (var + eps).sqrt()).reshape(h.shape)
        return h * weights[f"{name}.weight"].reshape(-1, 1, 1) + weights[f"{name}.bias"].reshape(-1, 1, 1)

    def conv(name: str, h: torch.Tensor) -> torch.Tensor:
        weight = weights[f"{name}.weight"]
        return functional.conv2d(h, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def swish(h: torch.Tensor) -> torch.Tensor:
        return h / (1 + (-h).exp())

    def resample(h: torch.Tensor) -> torch.Tensor:
        if block.conv0.resampling == "up":
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return functional.avg_pool2d(h, 2) if block.conv0.resampling == "down" else h

    x, eps = x.double(), block.norm0.eps
    h = conv("conv0", resample(swish(norm("norm0", x, eps))))
    modulation = (emb.double() @ weights["affine.weight"].T + weights["affine.bias"])[:, :, None, None]
    if block.adaptive_scale:
        scale, shift = modulation[:, : h.shape[1]], modulation[:, h.shape[1] :]
        h = swish(norm("norm1", h, eps) * (scale + 1) + shift)
    else:
        h = swish(norm("norm1", h + modulation, eps))
    h = conv("conv1", h)
    skip = resample(x)
    h = (h + (conv("skip", skip) if "skip.weight" in weights else skip)) * block.skip_scale
    if block.num_heads:
        n, channels, height, width = h.shape
        per_head = channels // block.num_heads
        qkv = conv("qkv", norm("norm2", h, eps)).reshape(n, 3 * channels, height * width).numpy()
        attended = np.zeros([n, channels, height * width])
        for i in range(n):
            for head in range(block.num_heads):
                rows = qkv[i, 3 * per_head * head : 3 * per_head * (head + 1)]
                query, key, value = rows[0::3], rows[1::3], rows[2::3]
                similarity = np.exp(query.T @ key / math.sqrt(per_head))
                probability = similarity / similarity.sum(axis=1, keepdims=True)
                attended[i, per_head * head : per_head * (head + 1)] = value @ probability.T
        h = (h + conv("proj", torch.from_numpy(attended).reshape(h.shape))) * block.skip_scale
    return h.numpy()


@pytest.mark.parametrize("resampling", [None, "up", "down"])
@pytest.mark.parametrize(
    "options",
    [
        BlockOptions(6, 1, 0.5, 1e-6, math.sqrt(0.5), False, (1, 1), True),
        BlockOptions(6, 4, 0.5, 1e-5, 1, True, (1, 1), False),
        BlockOptions(6, None, 0.5, 1e-5, 1, True, (1, 1), False),
    ],
    ids=["DDPM++", "four heads", "a head per 64 channels"],
)
@pytest.mark.parametrize("channels", [(16, 16), (16, 128)], ids=["same", "wider"])
def test_block_equals_a_float64_evaluation(channels, options, resampling):
    torch.manual_seed(0)
    block = UNetBlock(*channels, options, resampling, attention=True).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, emb = torch.randn(2, 16, 4, 4), torch.randn(2, 6)
    with torch.no_grad():
        assert largest_error(block(x, emb), reference_block(block, x, emb)) < 2e-5


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 4)])
def test_resampling_equals_its_definition(taps):
    """Filtering of the zero-padded (and, upwards, zero-stuffed) image, channel by channel, by its definition."""
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    kernel = np.outer(taps, taps) / sum(taps) ** 2
    padding = len(taps) // 2 - 1

    def slide(image: np.ndarray, weight: np.ndarray, step: int) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(image, weight.shape, axis=(2, 3))
        return np.einsum("ncijkl,kl->ncij", windows[:, :, ::step, ::step], weight)

    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x.double().numpy(), around)
    assert largest_error(Resample(taps, "down")(x), slide(padded, kernel, 2)) < 1e-6

    stuffed = np.zeros([2, 3, 11, 11])
    stuffed[:, :, ::2, ::2] = x
    margin = len(taps) // 2
    stuffed = np.pad(stuffed, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    # Zero-stuffing spreads a sample with the kernel as it is; a sliding window sees it mirrored.
    assert largest_error(Resample(taps, "up")(x), slide(stuffed, 4 * kernel[::-1, ::-1], 1)) < 1e-6


def test_convolving_before_downsampling_commutes_with_a_pointwise_kernel():
    torch.manual_seed(0)
    x, taps = torch.randn(1, 4, 8, 8), (1, 3, 3, 1)
    conv = Conv2d(4, 6, 3, "down", taps, convolve_first=True)
    torch.nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[:, :, 1, 1] = torch.randn(6, 4)
        want = functional.conv2d(Resample(taps, "down")(x), conv.weight[:, :, 1:2, 1:2], conv.bias)
        torch.testing.assert_close(conv(x), want)


def test_skip_encoder_adds_the_downsampled_image_before_the_skip_connection():
    net = build(**SONG, encoder_type="skip")
    seen = {}

    def remember(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.update({name: (args[0], output)})

    for name in ("enc.16x16_conv", "enc.8x8_down", "enc.8x8_block0", "dec.8x8_block1"):
        net.model.get_submodule(name).register_forward_hook(remember(name))
    with torch.no_grad():
        net(*noisy(net))
        image, _ = seen["enc.16x16_conv"]
        joined, _ = seen["enc.8x8_block0"]
        want = seen["enc.8x8_down"][1] + net.model.enc["8x8_aux_skip"](functional.avg_pool2d(image, 2))
    torch.testing.assert_close(joined, want)
    assert torch.equal(seen["dec.8x8_block1"][0][:, -8:], joined)


def test_skip_decoder_adds_an_upsampled_image_to_the_standard_one():
    standard, skip = build(**SONG), build(**SONG, decoder_type="skip")
    missing, unexpected = skip.load_state_dict(standard.state_dict(), strict=False)
    assert not unexpected
    assert {key.split(".")[2] for key in missing} == {"8x8_aux_norm", "8x8_aux_conv", "16x16_aux_up"}
    low = skip.model.dec["8x8_aux_conv"]
    with torch.no_grad():
        torch.nn.init.zeros_(low.weight)
        low.bias.copy_(torch.tensor([1.0, 2.0, -3.0]))
        x, sigma = noisy(standard)
        labels = sigma.log() / 4
        want = standard.model(x, labels, None) + low.bias[:, None, None]
        torch.testing.assert_close(skip.model(x, labels, None), want)


@pytest.mark.parametrize("init_kwargs", [SONG, ADM], ids=["SongUNet", "DhariwalUNet"])
def test_label_dropout_hides_labels_of_some_samples_in_training_only(init_kwargs):
    net = build(**init_kwargs, label_dim=4, label_dropout=0.2, dropout=0)
    x, _ = noisy(net, 1)
    x, sigma, labels = x.expand(64, -1, -1, -1), torch.tensor(1.0), torch.eye(4).repeat(16, 1)
    with torch.no_grad():
        shown, hidden = net(x, sigma, labels), net(x, sigma)
        assert (shown - hidden).abs().amax((1, 2, 3)).min() > 1e-3
        out = net.train()(x, sigma, labels)
    is_shown = (out - shown).abs().amax((1, 2, 3)) < 1e-5
    is_hidden = (out - hidden).abs().amax((1, 2, 3)) < 1e-5
    assert (is_shown ^ is_hidden).all()
    assert 2 <= is_hidden.sum() <= 28  # 12.8 expected, standard deviation 3.2


@pytest.mark.parametrize("init_kwargs", [SONG, ADM], ids=["SongUNet", "DhariwalUNet"])
def test_dropout_acts_in_training_only(init_kwargs):
    net = build(**init_kwargs, dropout=0.5)
    same = build(**init_kwargs, dropout=0)
    x, sigma = noisy(net)
    with torch.no_grad():
        want = net(x, sigma)
        assert torch.equal(net(x, sigma), want)
        net.train()
        assert (net(x, sigma) - want).abs().max() > 1e-3
        assert not torch.equal(net(x, sigma), net(x, sigma))
        assert torch.equal(same.train()(x, sigma), want)


@pytest.mark.parametrize("name", [NAMES[1], NAMES[4]])
def test_half_precision_unet_stays_close_and_is_not_used_on_the_cpu(name, load, golden):
    net, arrays = load(name), golden(name)
    x, sigma = torch.from_numpy(arrays["in.x"])[3:6], torch.tensor([0.5, 1.0, 5.0])
    labels = torch.from_numpy(arrays["in.labels"])[3:6]
    want = net.model(x, sigma.log() / 4, labels)
    half = net.model(x.half(), sigma.log() / 4, labels)
    assert half.dtype == torch.float16
    assert 0 < largest_error(half, want.numpy()) < 2e-2

    full = net(x, sigma, labels)
    try:
        net.use_fp16 = True
        assert torch.equal(net(x, sigma, labels), full)
    finally:
        net.use_fp16 = False


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("init_kwargs", [SONG, ADM], ids=["SongUNet", "DhariwalUNet"])
def test_half_precision_on_cuda(init_kwargs):
    net = build(**init_kwargs, use_fp16=True)
    x, sigma = noisy(net)
    want = net(x, sigma).detach()
    net, x, sigma = net.cuda(), x.cuda(), sigma.cuda()
    half, full = net(x, sigma), net(x, sigma, force_fp32=True)
    assert half.dtype == torch.float32
    torch.testing.assert_close(full.cpu(), want, rtol=1e-2, atol=1e-2)
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=5e-2, atol=5e-2)


def test_song_initialization_is_xavier_with_nearly_silent_branches():
    net = build(randomise=False, **SONG | {"model_channels": 32})
    x, sigma = noisy(net)
    weights = net.model.state_dict()

    def gain(name: str) -> float:
        weight = weights[name]
        fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
        assert weight.abs().max() <= weight.std() * math.sqrt(3) * 1.2  # uniform, not normal
        return float(weight.std() * math.sqrt((fan_in + fan_out) / 2))

    block = "enc.8x8_block0"
    expected = {"conv0": 1, "affine": 1, "skip": 1, "qkv": math.sqrt(0.2), "conv1": 1e-5, "proj": 1e-5}
    for layer, value in expected.items():
        assert gain(f"{block}.{layer}.weight") == pytest.approx(value, rel=0.05)
        assert not weights[f"{block}.{layer}.bias"].any()
    assert gain("map_layer1.weight") == pytest.approx(1, rel=0.05)
    assert gain("dec.16x16_aux_conv.weight") == pytest.approx(1e-5, rel=0.05)
    frequencies = build(randomise=False, **SONG | {"embedding_type": "fourier", "channel_mult_noise": 128}).model
    assert frequencies.map_noise.freqs.std() == pytest.approx(16, rel=0.1)
    c_skip, c_out, _, _ = net.preconditioning(sigma.reshape(-1, 1, 1, 1))
    assert 0 < ((net(x, sigma) - c_skip * x) / c_out).abs().max() < 1e-3


def test_adm_initialization_is_uniform_with_silent_branches():
    net = build(randomise=False, **ADM, label_dim=64, augment_dim=4)
    weights = net.model.state_dict()
    for layer in ("enc.4x4_block0.conv0", "enc.4x4_block0.qkv", "enc.4x4_block0.affine"):
        bound = 1 / math.sqrt(weights[f"{layer}.weight"][0].numel())
        for kind in ("weight", "bias"):
            assert 0.9 * bound < weights[f"{layer}.{kind}"].abs().max() <= bound
    for layer in ("enc.4x4_block0.conv1", "enc.4x4_block0.proj", "out_conv"):
        assert not weights[f"{layer}.weight"].any() and not weights[f"{layer}.bias"].any()
    assert not weights["map_augment.weight"].any()
    assert weights["map_label.weight"].std() == pytest.approx(1, rel=0.1)
    x, sigma = noisy(net)
    c_skip = net.preconditioning(sigma.reshape(-1, 1, 1, 1)).c_skip
    assert torch.equal(net(x, sigma), c_skip * x)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_coefficients_give_unit_variance_and_the_least_amplification(sigma_data):
    """The properties that define them: arXiv 2206.00364, appendix B.6."""
    net = build(**SONG, sigma_data=sigma_data, sigma_min=0.01, sigma_max=50)
    assert (net.sigma_data, net.sigma_min, net.sigma_max) == (sigma_data, 0.01, 50)
    sigma = torch.logspace(-2.5, 2, 20, dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = net.preconditioning(sigma)
    one = torch.ones_like(sigma)
    torch.testing.assert_close(c_in**2 * (sigma_data**2 + sigma**2), one)

    def target_variance_times_c_out2(skip: torch.Tensor) -> torch.Tensor:
        return (1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2

    torch.testing.assert_close(target_variance_times_c_out2(c_skip) / c_out**2, one)
    for other in (0.99 * c_skip, 1.01 * c_skip):
        assert (target_variance_times_c_out2(other) > target_variance_times_c_out2(c_skip)).all()
    torch.testing.assert_close(c_noise.mul(4).exp(), sigma)


def test_vp_noise_label_is_the_time_at_which_sigma_is_reached():
    net = build("VPPrecond", **SONG, beta_d=15.0, beta_min=0.2, M=500, epsilon_t=0.01)
    t = torch.linspace(0.01, 1, 30, dtype=torch.float64)
    sigma = ((0.5 * 15.0 * t**2 + 0.2 * t).exp() - 1).sqrt()
    torch.testing.assert_close(net.preconditioning(sigma).c_noise, 499 * t)
    assert net.sigma_min == pytest.approx(float(sigma[0]), rel=1e-5)
    assert net.sigma_max == pytest.approx(float(sigma[-1]), rel=1e-5)


def test_iddpm_levels_are_those_of_the_cosine_schedule(load):
    net = load(NAMES[5])
    assert torch.equal(build("iDDPMPrecond", **ADM, M=200, C_1=0.002, C_2=0.01).u, net.u)
    unlimited = build("iDDPMPrecond", **ADM, M=50, C_1=0, C_2=0.008)
    # Without the limit C_1, 1 / (u_j^2 + 1) is the schedule itself up to the normalization at j = M.
    j = torch.arange(1, 51, dtype=torch.float64)
    a = (0.5 * math.pi * j / (50 * 1.008)).sin() ** 2
    torch.testing.assert_close(unlimited.u[1:].double().square() + 1, a[-1] / a, rtol=1e-4, atol=1e-6)
    index = torch.tensor([0, 7, 31, 49])
    levels = unlimited.u[index]
    assert torch.equal(unlimited.preconditioning(levels).c_noise, 49.0 - index)
    assert torch.equal(unlimited.round_sigma(levels * 1.001), levels)
    assert unlimited.round_sigma(1e-9) == 0
    assert unlimited.sigma_min == float(unlimited.u[49])
    assert unlimited.sigma_max == float(unlimited.u[0]) == math.inf

    # By default 1000 levels, of which sampling starts at the eighth, 80, as arXiv 2206.00364, table 1, does.
    default = build("iDDPMPrecond", **ADM).u.tolist()
    assert len(default) == 1001
    assert default[8] == pytest.approx(80.2, abs=0.01)
    assert default[0] == pytest.approx(math.sqrt((default[1] ** 2 + 1) / 0.001 - 1), rel=1e-5)


@pytest.mark.parametrize("class_name", ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"])
@pytest.mark.parametrize("init_kwargs", [VARIANTS["fourier, wide sinusoids, labels"], VARIANTS["ADM with attention"]])
def test_networks_are_built_on_the_meta_device_and_completed_by_a_state_dict(class_name, init_kwargs):
    original = build(class_name, **init_kwargs)
    with torch.device("meta"):
        net = denoiser_from_init_kwargs(class_name, init_kwargs)
    assert all(parameter.is_meta for parameter in net.parameters())
    net.load_state_dict(original.state_dict(), strict=True, assign=True)
    x, sigma = noisy(net)
    with torch.no_grad():
        assert torch.equal(net.eval()(x, sigma), original(x, sigma))
    assert (net.sigma_min, net.sigma_max) == (original.sigma_min, original.sigma_max)


@pytest.mark.parametrize(
    ("class_name", "init_kwargs", "message"),
    [
        ("Precond", SONG, "Precond is not a denoiser"),
        ("EDMPrecond", SONG | {"logvar_channels": 128}, "'logvar_channels'.*128"),
        ("EDMPrecond", ADM | {"encoder_type": "skip"}, "DhariwalUNet.*'encoder_type'"),
        ("VEPrecond", SONG | {"sigma_data": 0.5}, "VEPrecond.*'sigma_data'"),
        ("EDMPrecond", SONG | {"model_kwargs": {}}, "no constructor argument 'model_kwargs'"),
        ("EDMPrecond", SONG | {"in_channels": 3}, "'in_channels'"),
        ("EDMPrecond", {"img_channels": 3}, "lack 'img_resolution'"),
        ("EDMPrecond", SONG | {"model_type": "UNet"}, "model_type='UNet' is unknown"),
        ("EDMPrecond", SONG | {"model_type": ["SongUNet"]}, "model_type=.* is unknown"),
        ("EDMPrecond", SONG | {"embedding_type": "sine"}, "embedding_type='sine'.*positional, fourier"),
        ("EDMPrecond", SONG | {"encoder_type": None}, "encoder_type=None"),
        ("EDMPrecond", SONG | {"decoder_type": "residual"}, "decoder_type='residual'"),
        ("EDMPrecond", SONG | {"num_blocks": 65}, "num_blocks=65"),
        ("EDMPrecond", SONG | {"num_blocks": "2"}, "num_blocks='2' of EDMPrecond is not plausible"),
        ("EDMPrecond", SONG | {"channel_mult": [1, 1, 1, 1, 1, 1]}, "16 cannot be halved 5 times"),
        ("EDMPrecond", SONG | {"channel_mult": []}, "cannot be halved"),
        ("EDMPrecond", SONG | {"channel_mult": 2}, "channel_mult=2 .* not plausible"),
        ("EDMPrecond", SONG | {"resample_filter": [1, 2, 1]}, "even number of taps"),
        ("EDMPrecond", SONG | {"resample_filter": []}, "even number of taps"),
        ("EDMPrecond", SONG | {"resample_filter": [1] * 34}, r"resample_filter=\[1, 1, 1, 1, 1, 1, \.\.\.\] of"),
        ("EDMPrecond", SONG | {"dropout": 1.5}, "dropout=1.5 is not a probability"),
        ("EDMPrecond", ADM | {"label_dropout": -1}, "label_dropout=-1 is not a probability"),
        ("EDMPrecond", SONG | {"img_channels": 3.5}, r"^[^\n]*img_channels=3.5[^\n]*not plausible[^\n]*$"),
        ("EDMPrecond", SONG | {"img_channels": 0}, "nothing to denoise"),
        ("EDMPrecond", SONG | {"model_channels": [1]}, "not plausible"),
        ("EDMPrecond", SONG | {"sigma_data": float("nan")}, "not plausible"),
        ("EDMPrecond", SONG | {"use_fp16": "yes"}, "not plausible"),
        ("EDMPrecond", SONG | {"model_channels": 2}, "cannot be built"),
        ("EDMPrecond", SONG | {"model_channels": 7}, "even number of channels, not 7"),
        ("EDMPrecond", ADM | {"channel_mult": [1, 7]}, "224 channels cannot be shared by 3"),
        ("iDDPMPrecond", ADM | {"M": 10_001}, "M=10001 timesteps"),
    ],
)
def test_impossible_constructor_arguments_are_named(class_name, init_kwargs, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        denoiser_from_init_kwargs(class_name, init_kwargs)


@pytest.mark.parametrize(
    ("init_kwargs", "million"),
    [
        ({"img_resolution": 64, "label_dim": 1000}, 295.9),  # EDMPrecond's default is the ADM network for ImageNet
        ({"img_resolution": 32, "model_type": "SongUNet", "channel_mult": [2, 2, 2], "augment_dim": 9}, 55.7),
    ],
    ids=["ImageNet-64", "CIFAR-10"],
)
def test_published_networks_have_the_published_size(init_kwargs, million):
    with torch.device("meta"):
        net = denoiser_from_init_kwargs("EDMPrecond", init_kwargs | {"img_channels": 3})
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(million, abs=0.05)
