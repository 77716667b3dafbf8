from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy import signal

from refine import networks, pickles
from refine.errors import UserError
from refine.networks.style_based import as_generator
from refine.networks.stylegan3 import Generator, generator_from_init_kwargs, update_magnitudes
from refine.networks.stylegan3_layers import SynthesisInput, lowpass_filter
from refine.networks.stylegan3_options import (
    GeneratorOptions,
    InputOptions,
    LayerOptions,
    SynthesisOptions,
    options_from_init_kwargs,
    plan,
)

NAMES = ["sg3/s2_stylegan3t_uncond32", "sg3/s3_stylegan3r_uncond16", "sg3/s4_stylegan3t_cond16"]
# Relative to the largest value of an array, as measured between runs of the original code, with room.
WS, IMAGES, SCALARS, GRADIENTS, SECOND_ORDER = 1e-5, 2e-5, 5e-5, 3e-4, 2e-3


def assert_close(name, actual, expected, tolerance):
    result = actual.detach().numpy()
    assert result.shape == expected.shape and result.dtype == expected.dtype, name
    error, scale = np.abs(result - expected).max(), np.abs(expected).max()
    assert error <= tolerance * scale, f"{name}: off by {error:.2e} where the largest value is {scale:.2e}"


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def record(name, fixture_path):
    return pickles.load(fixture_path(f"{name}.pkl"))["G_ema"]


@pytest.fixture
def G(record):
    return networks.rebuild(record)


@pytest.fixture
def data(name, golden):
    return golden(name)


@pytest.fixture
def tensor(data):
    return lambda key: torch.from_numpy(data[key])


def small_generator(**synthesis):
    torch.manual_seed(0)
    options = {"channel_base": 64, "channel_max": 6, "num_layers": 4, "margin_size": 4, **synthesis}
    return Generator(GeneratorOptions(8, 0, 8, 16, 3, synthesis=SynthesisOptions(**options)))


def test_attributes(G, data):
    assert isinstance(G, Generator)
    n, num_ws, w_dim = data["ws_psi1"].shape
    assert (G.z_dim, G.c_dim) == (data["in.z"].shape[1], data["in.c"].shape[1])
    assert (G.num_ws, G.w_dim) == (num_ws, w_dim)
    assert data["img_const_psi1"].shape == (n, G.img_channels, G.img_resolution, G.img_resolution)


def test_mapping(G, data, tensor):
    keys = [key for key in data if key.startswith("ws_psi")]
    assert len(keys) == (6 if G.c_dim else 5)
    for key in keys:
        psi, _, rest = key.removeprefix("ws_psi").partition("_")
        cutoff = int(rest.removeprefix("cut")) if rest.startswith("cut") else None
        c = tensor("in.c_soft" if rest == "csoft" else "in.c")
        ws = G.mapping(tensor("in.z"), c, truncation_psi=float(psi), truncation_cutoff=cutoff)
        assert_close(key, ws, data[key], WS)


def test_synthesis(G, data, tensor):
    cases = {
        "img_const_psi1": "ws_psi1",
        "img_none_psi1": "ws_psi1",
        "img_random_seed123": "ws_psi1",
        "img_const_psi0.7_cut2": "ws_psi0.7_cut2",
        "img_const_mix": "ws_mix",
        "img_const_wsrand": "ws_rand",
    }
    for key, ws in cases.items():
        assert_close(key, G.synthesis(tensor(ws), noise_mode=key.split("_")[1]), data[key], IMAGES)
    image = G(tensor("in.z"), tensor("in.c"), truncation_psi=0.7)
    assert_close("G_call_const_psi0.7", image, data["G_call_const_psi0.7"], IMAGES)
    compared = {*cases, "G_call_const_psi0.7", "rawG_img_const_psi1", "img_const_transform"}
    assert compared == {key for key in data if key.startswith(("img_", "G_call", "rawG"))}


def test_layers(G, data, tensor):
    first, *_ = G.synthesis.layers()
    key = f"act_{G.synthesis.layer_names[0]}"
    features = G.synthesis.input(tensor("ws_psi1")[:1, 0])
    assert_close("act_input", features, data["act_input"], IMAGES)
    assert_close(key, first(tensor("act_input"), tensor("ws_psi1")[:1, 1]), data[key], IMAGES)


def test_transform(G, data, tensor):
    G.synthesis.input.transform.copy_(tensor("input_transform"))
    assert_close("img_const_transform", G.synthesis(tensor("ws_psi1")), data["img_const_transform"], IMAGES)


def test_raw_generator(name, fixture_path, data, tensor):
    G = networks.rebuild(pickles.load(fixture_path(f"{name}.pkl"))["G"])
    image = G(tensor("in.z"), tensor("in.c"), noise_mode="const")
    assert_close("rawG_img_const_psi1", image, data["rawG_img_const_psi1"], IMAGES)


def test_gradients(G, data, tensor):
    """First derivatives of a sum over the image, and those of the sum of squares of dL/dws."""
    G.requires_grad_(True)
    z = tensor("in.z").requires_grad_()
    ws = G.mapping(z, tensor("in.c"))
    loss = (G.synthesis(ws) * tensor("in.r")).sum()
    assert_close("loss", loss, data["loss"], SCALARS)
    parameters = dict(G.named_parameters())

    def compare(scalar, prefix, tensors, tolerance):
        names = [key.removeprefix(prefix) for key in data if key.startswith(prefix)]
        assert len(names) > 15
        wanted = tensors | {f"{prefix}{name}": parameters[name] for name in names}
        grads = torch.autograd.grad(scalar, list(wanted.values()), retain_graph=True, allow_unused=True)
        for (key, value), grad in zip(wanted.items(), grads, strict=True):
            # The second derivative of leaky ReLU is zero: the gradient's gradient does not depend on biases.
            assert_close(key, torch.zeros_like(value) if grad is None else grad, data[key], tolerance)

    compare(loss, "grad.", {"grad_z": z, "grad_ws": ws}, GRADIENTS)
    (grad_ws,) = torch.autograd.grad(loss, ws, create_graph=True)
    penalty = grad_ws.square().sum()
    assert_close("pl_P", penalty, data["pl_P"], SCALARS)
    compare(penalty, "pl_grad.", {"pl_grad_z": z}, SECOND_ORDER)


def test_averages_after_a_step(G, data, tensor):
    """The buffers that the original moves in a forward call with update_emas=True."""
    generator = as_generator(G.requires_grad_(True))
    before = {name: buffer.clone() for name, buffer in G.named_buffers()}
    w = generator(tensor("in.z"), tensor("in.c")).w
    assert all(torch.equal(buffer, before[name]) for name, buffer in G.named_buffers())
    generator.after_step(w.mean(0))
    keys = [key for key in data if key.startswith("after_update_emas.")]
    assert len(keys) == G.num_ws
    buffers = dict(G.named_buffers())
    for key in keys:
        name = key.removeprefix("after_update_emas.")
        assert not torch.equal(buffers[name], before.pop(name)), name
        assert_close(key, buffers[name], data[key], WS)
    assert all(torch.equal(buffers[name], value) for name, value in before.items())


def test_filters_are_those_of_the_checkpoint(record, G):
    with_own_filters = Generator(options_from_init_kwargs(record.init_kwargs))
    stored = {name: value for name, value in G.named_buffers() if "filter" in name}
    assert len(stored) == 2 * len(G.synthesis.layer_names) - 2
    for name, value in with_own_filters.named_buffers():
        if name in stored:
            torch.testing.assert_close(value, stored[name], rtol=1e-5, atol=1e-7)


# --- filters and plan


@pytest.mark.parametrize("taps", [5, 12, 24])
def test_lowpass_is_the_window_method(taps):
    expected = signal.firwin(taps, 3.0, width=7.0, fs=32)
    np.testing.assert_allclose(lowpass_filter(taps, 3.0, 7.0, 32).numpy(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("taps", [5, 24])
def test_radial_filter_passes_the_same_in_all_directions(taps):
    f = lowpass_filter(taps, 3.0, 7.0, 32, radial=True).double()
    assert f.shape == (taps, taps) and f.sum().item() == pytest.approx(1)
    assert torch.equal(f, f.t()) and torch.equal(f, f.flip(0)) and f.isfinite().all()
    positions = (torch.arange(taps) - (taps - 1) / 2) / 32

    def response(angle, frequency):
        x, y = math.cos(angle) * frequency, math.sin(angle) * frequency
        waves = torch.cos(2 * math.pi * (x * positions[None, :] + y * positions[:, None]))
        return (f * waves).sum().item()

    if taps == 24:  # enough for a filter to tell frequencies apart
        at_cutoff = [response(angle, 3.0) for angle in (0, 0.3, math.pi / 4)]
        assert max(at_cutoff) - min(at_cutoff) < 0.02 and at_cutoff[0] == pytest.approx(0.5, abs=0.1)
        assert response(0, 1.0) > 0.8 and abs(response(0.5, 10.0)) < 0.02


def test_single_tap_is_no_filter():
    assert lowpass_filter(1, 3.0, 7.0, 32) is None


@pytest.mark.parametrize(
    ("resolution", "layers", "millions"),
    [
        (256, "36 36 36 52 52 84 84 148 148 148 276 276 276 256 256", (28.47, 18.82)),
        (512, "36 36 52 52 84 84 148 148 276 276 532 532 532 512 512", (24.87, 16.67)),
        (1024, "36 36 52 52 84 148 148 276 276 532 1044 1044 1044 1024 1024", (22.31, 15.09)),
    ],
)
def test_plan_of_the_published_networks(resolution, layers, millions):
    """Sizes of the layers, and parameters of the translation- and the rotation-equivariant network."""
    shape = {"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": resolution, "img_channels": 3}
    radial = {"channel_base": 65536, "channel_max": 1024, "conv_kernel": 1, "use_radial_filters": True}
    for extra, expected in zip(({}, radial), millions, strict=True):
        with torch.device("meta"):
            G = generator_from_init_kwargs({**shape, **extra})
        assert [int(name.split("_")[1]) for name in G.synthesis.layer_names] == [int(size) for size in layers.split()]
        assert sum(p.numel() for p in G.parameters()) / 1e6 == pytest.approx(expected, abs=0.01)
        assert G.num_ws == 16


@pytest.mark.parametrize("conv_kernel", [1, 2, 3])
@pytest.mark.parametrize("lrelu_upsampling", [1, 2, 4])
def test_every_layer_makes_the_size_that_it_promises(conv_kernel, lrelu_upsampling):
    for options in (
        SynthesisOptions(16, 2, 4, 1, conv_kernel=conv_kernel, lrelu_upsampling=lrelu_upsampling, filter_size=5),
        SynthesisOptions(16, 2, 3, 0, margin_size=0, conv_kernel=conv_kernel, lrelu_upsampling=lrelu_upsampling),
    ):
        G = Generator(GeneratorOptions(3, 0, 3, 16, 1, synthesis=options))
        x, w = G.synthesis.input(torch.randn(1, 3)), torch.randn(1, 3)
        for (_, layer), module in zip(plan(3, 16, 1, options).layers, G.synthesis.layers(), strict=True):
            assert x.shape == (1, layer.in_channels, layer.in_size, layer.in_size)
            x = module(x, w)
            assert x.shape == (1, layer.out_channels, layer.out_size, layer.out_size)
        assert x.shape == (1, 1, 16, 16)


# --- properties of the network


def test_fresh_weights():
    G = small_generator()
    assert torch.equal(G.synthesis.input.affine.bias, torch.tensor([1.0, 0, 0, 0]))
    assert torch.equal(G.synthesis.input.affine.weight, torch.zeros(4, 8))
    assert G.synthesis.input.freqs.norm(dim=1).max() <= G.synthesis.input.bandwidth
    assert G(torch.randn(3, 8)).shape == (3, 3, 16, 16)
    radii = SynthesisInput(InputOptions(8, 4000, 4, 16, 3.0)).freqs.norm(dim=1)
    for share in (0.25, 0.5, 0.75):  # of the disk's area
        assert (radii < 3 * share**0.5).float().mean().item() == pytest.approx(share, abs=0.03)
    assert G(torch.zeros(0, 8)).shape == (0, 3, 16, 16)


def test_scale_of_weights_and_styles_cancels():
    G = small_generator()
    z = torch.randn(2, 8)
    expected = G(z)
    layer = G.synthesis.layers()[1]
    with torch.no_grad():
        layer.weight.mul_(1e-4)
        layer.affine.weight.mul_(1e4)
        layer.affine.bias.mul_(1e4)
    torch.testing.assert_close(G(z), expected, rtol=1e-4, atol=1e-5)


def test_images_do_not_depend_on_the_rest_of_the_batch():
    G = small_generator()
    z = torch.randn(4, 8)
    torch.testing.assert_close(G(z)[:1], G(z[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divided", [False, True])
def test_magnitudes_do_not_depend_on_micro_batches(divided):
    G = small_generator()
    z = torch.randn(4, 8)
    whole, parts = copy.deepcopy(G), copy.deepcopy(G)
    whole(z)
    for part in z.split([1, 3]) if divided else [z]:
        parts(part)
    with torch.no_grad():
        parts(torch.randn(9, 8))  # passes without gradients do not count
    for each in (whole, parts):
        update_magnitudes(each.synthesis)
    assert not torch.equal(whole.synthesis.layers()[0].magnitude_ema, torch.ones([]))
    for one, other in zip(whole.synthesis.layers(), parts.synthesis.layers(), strict=True):
        torch.testing.assert_close(one.magnitude_ema, other.magnitude_ema)
    before = copy.deepcopy(parts.state_dict())
    update_magnitudes(parts.synthesis)  # nothing was collected since
    assert all(torch.equal(value, before[name]) for name, value in parts.state_dict().items())


def test_magnitudes_of_frozen_layers_stay():
    G = small_generator()
    frozen, *others = G.synthesis.layers()
    frozen.requires_grad_(False)
    G(torch.randn(2, 8))
    update_magnitudes(G.synthesis)
    assert frozen.magnitude_ema == 1 and all(layer.magnitude_ema != 1 for layer in others)


def test_half_precision_layers_compute_in_float32_on_the_cpu():
    G = small_generator(num_fp16_res=9)
    assert all(layer.options.use_fp16 for layer in G.synthesis.layers())
    z = torch.randn(2, 8)
    assert torch.equal(G(z), G(z, force_fp32=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 layers need an NVIDIA GPU")
def test_half_precision_on_cuda(fixture_path, golden):
    G = networks.rebuild(pickles.load(fixture_path(f"{NAMES[0]}.pkl"))["G_ema"]).cuda()
    data, outputs = golden(NAMES[0]), []
    G.synthesis.layers()[2].register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    image = G.synthesis(torch.from_numpy(data["ws_psi1"]).cuda())
    assert outputs == [torch.float16]
    assert_close("half", image.cpu(), data["img_const_psi1"], 2e-2)


def test_resolutions_of_parameters():
    G = as_generator(small_generator())
    assert G.resolution_of("mapping.fc0.weight") is None
    assert G.resolution_of("synthesis.input.weight") == 16
    name = G.module.synthesis.layer_names[-1]
    assert G.resolution_of(f"synthesis.{name}.weight") == 16
    assert len(G.blocks()) == 5


# --- constructor arguments

SHAPE = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"kernel_size": 3}, "'kernel_size'"),
        ({"synthesis_kwargs": {}}, "'synthesis_kwargs'"),
        ({"mapping_kwargs": {"embed_features": 3}}, "'embed_features'"),
        ({"mapping_kwargs": None}, "mapping_kwargs as a dictionary, not None"),
        ({"z_dim": 0}, "z_dim .* not 0"),
        ({"c_dim": True}, "c_dim .* not True"),
        ({"img_resolution": 2**40}, "img_resolution"),
        ({"num_layers": 10**9}, "num_layers .* 1000000000"),
        ({"num_layers": 3, "num_critical": 3}, "num_critical .* from 0 to 2, not 3"),
        ({"channel_base": math.inf}, "channel_base .* not inf"),
        ({"margin_size": -1}, "margin_size .* not -1"),
        ({"filter_size": 100}, "filter_size .* not 100"),
        ({"conv_kernel": 0}, "conv_kernel .* not 0"),
        ({"lrelu_upsampling": 1.5}, "lrelu_upsampling .* not 1.5"),
        ({"first_cutoff": 0}, "first_cutoff .* not 0"),
        ({"first_stopband": math.nan}, "first_stopband .* not nan"),
        ({"conv_clamp": -1}, "conv_clamp .* not -1"),
        ({"use_radial_filters": "yes"}, "use_radial_filters as one of True, False, not 'yes'"),
        ({"magnitude_ema_beta": None}, "magnitude_ema_beta .* not None"),
        ({"output_scale": "1"}, "output_scale .* not '1'"),
        ({"mapping_kwargs": {"num_layers": 0}, "z_dim": 9}, "cannot turn 9 numbers into a w of 8"),
    ],
)
def test_bad_constructor_arguments(extra, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        generator_from_init_kwargs({**SHAPE, **extra})


@pytest.mark.parametrize("name", SHAPE)
def test_missing_constructor_argument(name):
    kwargs = {key: value for key, value in SHAPE.items() if key != name}
    with pytest.raises(UserError, match=f"lack {name}"):
        generator_from_init_kwargs(kwargs)


def test_rates_that_do_not_divide():
    known = {"w_dim": 4, "is_torgb": False, "is_critically_sampled": False, "use_fp16": False}
    sizes = {"in_channels": 2, "out_channels": 2, "in_size": 16, "out_size": 16}
    bands = {"in_cutoff": 2, "out_cutoff": 2, "in_half_width": 2, "out_half_width": 2}
    with pytest.raises(UserError, match="from 16 to 25"):
        LayerOptions(**known, **sizes, **bands, in_sampling_rate=16, out_sampling_rate=25)
