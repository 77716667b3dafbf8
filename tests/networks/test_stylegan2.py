from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from refine import networks, pickles
from refine.errors import UserError
from refine.networks import stylegan2_layers
from refine.networks.stylegan2 import (
    Conv2dLayer,
    FullyConnectedLayer,
    Generator,
    SynthesisBlock,
    SynthesisLayer,
    ToRGBLayer,
    generator_from_init_kwargs,
    normalize_2nd_moment,
    update_w_avg,
)
from refine.networks.stylegan2_options import GeneratorOptions, MappingOptions, SynthesisOptions
from stylegan_ops.modulated_conv2d import modulated_conv2d

PICKLES = [
    "sg2ada/a_uncond32",
    "sg2ada/b_cond16",
    "sg2ada/b_cond16.oldstyle",
    "sg2ada/c_orig16",
    "sg2ada/c_resnet16",
    "sg2ada/d_gray16",
    "sg3/s1_stylegan2_uncond32",
]
# Relative to the largest value of an array, as measured between runs of the original code, with room.
WS, IMAGES, SCALARS, GRADIENTS, SECOND_ORDER = 1e-5, 2e-5, 5e-5, 3e-4, 2e-3


def assert_close(name, actual, expected, tolerance):
    result = actual.detach().numpy()
    assert result.shape == expected.shape, name
    assert result.dtype == expected.dtype, name
    error, scale = np.abs(result - expected).max(), np.abs(expected).max()
    assert error <= tolerance * scale, f"{name}: off by {error:.2e} where the largest value is {scale:.2e}"


@pytest.fixture(scope="module", params=PICKLES)
def name(request):
    return request.param


@pytest.fixture
def G(name, fixture_path):
    return networks.rebuild(pickles.load(fixture_path(f"{name}.pkl"))["G_ema"])


@pytest.fixture
def data(name, golden):
    return golden(name.removesuffix(".oldstyle"))


@pytest.fixture
def tensor(data):
    return lambda key: torch.from_numpy(data[key])


def test_attributes(G, data):
    assert isinstance(G, Generator)
    n, num_ws, w_dim = data["ws_psi1"].shape
    assert (G.z_dim, G.c_dim) == (data["in.z"].shape[1], data["in.c"].shape[1])
    assert (G.num_ws, G.w_dim) == (num_ws, w_dim)
    assert data["img_const_psi1"].shape == (n, G.img_channels, G.img_resolution, G.img_resolution)


def test_mapping(G, data, tensor):
    keys = [key for key in data if key.startswith("ws_psi") and not key.endswith("_csoft")]
    assert len(keys) == 5
    for key in keys:
        psi, _, cutoff = key.removeprefix("ws_psi").partition("_cut")
        cutoff = int(cutoff) if cutoff else None
        ws = G.mapping(tensor("in.z"), tensor("in.c"), truncation_psi=float(psi), truncation_cutoff=cutoff)
        assert_close(key, ws, data[key], WS)


def test_mapping_of_soft_labels(G, data, tensor):
    if G.c_dim == 0:
        assert "ws_psi1_csoft" not in data
        return
    assert_close("ws_psi1_csoft", G.mapping(tensor("in.z"), tensor("in.c_soft")), data["ws_psi1_csoft"], WS)


def fuse_convolutions(G, fused):
    for block in G.modules():
        if isinstance(block, SynthesisBlock):
            block.fused_modconv_default = fused
    return G


@pytest.mark.parametrize("fused", [True, False, "inference_only"])
def test_synthesis(G, data, tensor, fused):
    fuse_convolutions(G, fused)
    for key, ws, noise_mode in [
        ("img_const_psi1", "ws_psi1", "const"),
        ("img_none_psi1", "ws_psi1", "none"),
        ("img_const_psi0.7_cut2", "ws_psi0.7_cut2", "const"),
        ("img_const_mix", "ws_mix", "const"),
        ("img_const_wsrand", "ws_rand", "const"),
    ]:
        assert_close(key, G.synthesis(tensor(ws), noise_mode=noise_mode), data[key], IMAGES)


def test_every_golden_image_is_compared(data):
    images = {key for key in data if key.startswith(("img_", "G_call", "rawG"))}
    assert images == {
        *("img_const_psi1", "img_none_psi1", "img_const_psi0.7_cut2", "img_const_mix", "img_const_wsrand"),
        *("G_call_const_psi0.7", "img_random_seed123", "rawG_img_const_psi1"),
    }


def test_call(G, data, tensor):
    image = G(tensor("in.z"), tensor("in.c"), truncation_psi=0.7, noise_mode="const")
    assert_close("G_call_const_psi0.7", image, data["G_call_const_psi0.7"], IMAGES)


def test_random_noise_is_drawn_in_the_order_of_the_layers(G, data, tensor):
    torch.manual_seed(123)
    image = G.synthesis(tensor("ws_psi1"))
    assert_close("img_random_seed123", image, data["img_random_seed123"], IMAGES)


def test_raw_generator(name, fixture_path, data, tensor):
    G = networks.rebuild(pickles.load(fixture_path(f"{name}.pkl"))["G"])
    image = G(tensor("in.z"), tensor("in.c"), noise_mode="const")
    assert_close("rawG_img_const_psi1", image, data["rawG_img_const_psi1"], IMAGES)


@pytest.mark.parametrize("fused", [True, False, "inference_only"])
def test_gradients(G, data, tensor, fused):
    fuse_convolutions(G, fused).requires_grad_(True)
    z = tensor("in.z").requires_grad_()
    ws = G.mapping(z, tensor("in.c"))
    loss = (G.synthesis(ws, noise_mode="const") * tensor("in.r")).sum()
    assert_close("loss", loss, data["loss"], SCALARS)
    names = [key.removeprefix("grad.") for key in data if key.startswith("grad.")]
    assert len(names) > 20
    parameters = dict(G.named_parameters())
    wanted = [z, ws, *(parameters[name] for name in names)]
    grads = torch.autograd.grad(loss, wanted)
    for key, grad in zip(["grad_z", "grad_ws", *(f"grad.{name}" for name in names)], grads, strict=True):
        assert_close(key, grad, data[key], GRADIENTS)


@pytest.mark.parametrize("fused", [True, False, "inference_only"])
def test_second_order_gradients(G, data, tensor, fused):
    """Of the sum of squares of dL/dws, as in path length regularization."""
    fuse_convolutions(G, fused).requires_grad_(True)
    z = tensor("in.z").requires_grad_()
    ws = G.mapping(z, tensor("in.c"))
    loss = (G.synthesis(ws, noise_mode="const") * tensor("in.r")).sum()
    (grad_ws,) = torch.autograd.grad(loss, ws, create_graph=True)
    penalty = grad_ws.square().sum()
    assert_close("pl_P", penalty, data["pl_P"], SCALARS)
    names = [key.removeprefix("pl_grad.") for key in data if key.startswith("pl_grad.")]
    assert len(names) > 20
    parameters = dict(G.named_parameters())
    grads = torch.autograd.grad(penalty, [z, *(parameters[name] for name in names)])
    for key, grad in zip(["pl_grad_z", *(f"pl_grad.{name}" for name in names)], grads, strict=True):
        assert_close(key, grad, data[key], SECOND_ORDER)


def test_w_avg_changes_by_its_function_only(G, data, tensor):
    key = "w_avg_after_train_call" if "w_avg_after_train_call" in data else "after_update_emas.mapping.w_avg"
    G.train()
    before = G.mapping.w_avg.clone()
    ws = G.mapping(tensor("in.z"), tensor("in.c"))
    G(tensor("in.z"), tensor("in.c"))
    assert torch.equal(G.mapping.w_avg, before)
    update_w_avg(G.mapping, ws[:, 0].mean(dim=0).requires_grad_())
    assert not G.mapping.w_avg.requires_grad
    assert not torch.equal(G.mapping.w_avg, before)
    assert_close(key, G.mapping.w_avg, data[key], WS)


@pytest.mark.parametrize("w_avg", [None, torch.ones(10, 4)])
def test_other_averages_of_w_are_left_alone(w_avg):
    """A network without one, and StyleGAN-XL's, which has one for each class."""
    mapping = torch.nn.Module()
    mapping.w_avg, mapping.w_avg_beta = None if w_avg is None else w_avg.clone(), 0.5
    update_w_avg(mapping, torch.zeros(4))
    assert w_avg is None or torch.equal(mapping.w_avg, w_avg)


def test_half_precision_blocks_compute_in_float32_on_the_cpu(fixture_path, golden):
    G = networks.rebuild(pickles.load(fixture_path("sg2ada/b_cond16.pkl"))["G_ema"])
    assert [G.synthesis.get_submodule(f"b{res}").use_fp16 for res in (4, 8, 16)] == [False, True, True]
    dtypes = []
    for res in (4, 8, 16):
        for layer in ("conv1", "torgb"):
            module = G.synthesis.get_submodule(f"b{res}.{layer}")
            module.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    ws = torch.from_numpy(golden("sg2ada/b_cond16")["ws_psi1"])
    images = [G.synthesis(ws, noise_mode="const", force_fp32=force) for force in (False, True)]
    assert dtypes == [torch.float32] * 12
    assert torch.equal(*images)


# A whole float16 block runs on CUDA only, so on the CPU its layers are tested one by one.
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("noise_mode", ["const", "none", "random"])
def test_layers_in_half_precision(fused, noise_mode):
    torch.manual_seed(0)
    options = SynthesisOptions(fused_modconv_default=fused)
    conv, torgb = SynthesisLayer(6, 5, 8, 16, 2, options), ToRGBLayer(6, 3, 8, 256)
    skip = Conv2dLayer(6, 5, options.resample_filter)
    torch.nn.init.constant_(conv.noise_strength, 0.3)
    x, w = torch.randn(2, 6, 8, 8), torch.randn(2, 8)
    for layer in (
        lambda x: conv(x, w, noise_mode=noise_mode, fused_modconv=fused),
        lambda x: torgb(x, w, fused_modconv=fused),
        lambda x: skip(x, gain=0.5),
    ):
        torch.manual_seed(1)
        expected = layer(x)
        torch.manual_seed(1)
        result = layer(x.half())
        assert result.dtype == torch.float16
        assert_close("half", result.float(), expected.detach().numpy(), 5e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 blocks need an NVIDIA GPU")
def test_half_precision_on_cuda(fixture_path, golden):
    G = networks.rebuild(pickles.load(fixture_path("sg2ada/b_cond16.pkl"))["G_ema"]).cuda()
    data = golden("sg2ada/b_cond16")
    outputs = []
    G.synthesis.b16.conv1.register_forward_hook(lambda module, inputs, output: outputs.append(output.dtype))
    image = G.synthesis(torch.from_numpy(data["ws_psi1"]).cuda(), noise_mode="const")
    assert outputs == [torch.float16]
    assert_close("half", image.cpu(), data["img_const_psi1"], 2e-2)


@contextmanager
def largest_outputs(module: torch.nn.Module) -> Iterator[dict[str, float]]:
    """The largest magnitude that each convolution and image layer returns inside the `with`."""
    largest: dict[str, float] = {}

    def hook_for(name):
        return lambda layer, inputs, output: largest.__setitem__(name, output.abs().max().item())

    hooks = [
        child.register_forward_hook(hook_for(name))
        for name, child in module.named_modules()
        if isinstance(child, SynthesisLayer | ToRGBLayer)
    ]
    yield largest
    for hook in hooks:
        hook.remove()


def small_generator(**synthesis):
    torch.manual_seed(0)
    return Generator(
        GeneratorOptions(
            *(8, 0, 8, 16, 3),
            mapping=MappingOptions(num_layers=2),
            synthesis=SynthesisOptions(channel_base=64, channel_max=6, **synthesis),
        )
    )


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_clamp_limits_every_layer(architecture):
    limit = 0.125
    z = torch.randn(4, 8)

    def largest_outputs_of(conv_clamp):
        G = small_generator(architecture=architecture, conv_clamp=conv_clamp)
        for name, parameter in G.named_parameters():
            if name.endswith("torgb.bias"):
                torch.nn.init.ones_(parameter)
        with largest_outputs(G) as largest:
            G(z)
        return largest

    assert min(largest_outputs_of(None).values()) > limit
    largest = largest_outputs_of(limit)
    assert len(largest) == (8 if architecture == "skip" else 6)
    for name, value in largest.items():
        # The second layer of a residual block is scaled by sqrt(1/2), its clamp along with it.
        scaled = architecture == "resnet" and name.endswith("conv1") and name != "synthesis.b4.conv1"
        assert value == pytest.approx(limit * (math.sqrt(0.5) if scaled else 1), rel=1e-6), name


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_derivatives_in_float64(architecture):
    G = small_generator(architecture=architecture, conv_clamp=None, activation="swish").double()
    for parameter in G.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter)
    z = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: G(z, noise_mode="const"), z, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda z: G(z, noise_mode="const"), z, fast_mode=True)


def test_without_noise_there_are_no_noise_tensors_and_no_draws():
    G = small_generator(use_noise=False)
    assert not [name for name in G.state_dict() if "noise" in name]
    z = torch.randn(2, 8)
    state = torch.get_rng_state()
    images = [G(z, noise_mode=mode) for mode in ("random", "const", "none")]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])


def test_random_noise_differs_from_call_to_call():
    G = small_generator()
    for name, parameter in G.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.ones_(parameter)
    z = torch.randn(2, 8)
    assert not torch.equal(G(z), G(z))


@pytest.mark.parametrize(
    ("default", "expected"),
    [(True, True), (False, False), ("inference_only", None)],
)
@pytest.mark.parametrize("training", [False, True])
def test_when_convolutions_are_fused(monkeypatch, default, training, expected):
    G = small_generator(fused_modconv_default=default).train(training)
    seen = []

    def spy(*args, fused_modconv, **kwargs):
        seen.append(fused_modconv)
        return modulated_conv2d(*args, fused_modconv=fused_modconv, **kwargs)

    monkeypatch.setattr(stylegan2_layers, "modulated_conv2d", spy)
    G(torch.zeros(1, 8))
    assert seen == [expected] * 8


def test_empty_batch():
    G = small_generator()
    assert G(torch.zeros(0, 8)).shape == (0, 3, 16, 16)
    assert G.train()(torch.zeros(0, 8)).shape == (0, 3, 16, 16)


def test_smallest_generator_is_one_block():
    G = Generator(GeneratorOptions(8, 0, 8, 4, 1, synthesis=SynthesisOptions(channel_max=4)))
    assert G.num_ws == 2
    assert G(torch.randn(3, 8)).shape == (3, 1, 4, 4)


def test_fresh_weights_have_the_scale_of_the_equalised_learning_rate():
    torch.manual_seed(0)
    G = Generator(GeneratorOptions(256, 10, 256, 32, 3, synthesis=SynthesisOptions(channel_max=64)))
    for name, value in G.state_dict().items():
        if name.startswith("mapping.fc") and name.endswith("weight"):
            assert value.std().item() == pytest.approx(100, rel=0.05), name  # 1 / lr_multiplier
        elif name.endswith("affine.bias"):
            assert torch.equal(value, torch.ones_like(value)), name
        elif name.endswith(("bias", "noise_strength", "w_avg")):
            assert torch.equal(value, torch.zeros_like(value)), name
        elif name.endswith(("weight", "const", "noise_const")):
            assert value.std().item() == pytest.approx(1, rel=0.25), name
        else:
            assert name.endswith("resample_filter")
            assert value.sum().item() == pytest.approx(1), name
    # So that every layer keeps unit variance, up to the covariance that one input leaves to chance.
    z, c = torch.randn(64, 256), torch.nn.functional.one_hot(torch.arange(64) % 10, 10).float()
    assert G.mapping(z, c).square().mean().item() == pytest.approx(1, rel=0.3)
    x = G.synthesis.b4.conv1(G.synthesis.b4.const.expand(64, -1, -1, -1), torch.randn(64, 256))
    assert x.square().mean().item() == pytest.approx(1, rel=0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda G: G(torch.zeros(2, 7)), r"z must have shape \[N, 8\], not \[2, 7\]"),
        (lambda G: G.synthesis(torch.zeros(2, 5, 8)), r"ws must have shape \[N, 6, 8\], not \[2, 5, 8\]"),
        (lambda G: G.synthesis(torch.zeros(2, 8)), r"not \[2, 8\]"),
        (lambda G: G(torch.zeros(2, 8), noise_mode="off"), "one of random, const, none, not 'off'"),
    ],
)
def test_bad_inputs(call, message):
    with pytest.raises(ValueError, match=message):
        call(small_generator())


@pytest.mark.parametrize(("c", "found"), [(None, "None"), (torch.zeros(2, 4), r"\[2, 4\]"), (torch.zeros(5), r"\[5\]")])
def test_a_conditional_generator_needs_labels(c, found):
    G = Generator(GeneratorOptions(8, 5, 8, 4, 1, synthesis=SynthesisOptions(channel_max=4)))
    with pytest.raises(ValueError, match=rf"c must have shape \[N, 5\], not {found}"):
        G(torch.zeros(2, 8), c)


# --- constructor arguments of the pickles

SHAPE = {"z_dim": 8, "c_dim": 0, "w_dim": 8, "img_resolution": 16, "img_channels": 3}


@pytest.mark.parametrize(
    ("dialect", "w_avg_beta", "use_fp16", "conv_clamp", "fused"),
    [("ada", 0.995, [False] * 3, None, "inference_only"), ("sg3", 0.998, [False, True, True], 256, True)],
)
def test_defaults_of_the_dialects(dialect, w_avg_beta, use_fp16, conv_clamp, fused):
    with torch.device("meta"):
        G = generator_from_init_kwargs(SHAPE, dialect)
    assert all(tensor.is_meta for tensor in G.state_dict().values())
    assert G.mapping.num_layers == 8
    assert G.mapping.w_avg_beta == w_avg_beta
    blocks = [G.synthesis.get_submodule(f"b{res}") for res in (4, 8, 16)]
    assert [block.use_fp16 for block in blocks] == use_fp16
    assert [block.conv1.conv_clamp for block in blocks] == [conv_clamp] * 3
    assert [block.torgb.conv_clamp for block in blocks] == [conv_clamp] * 3
    assert [block.fused_modconv_default for block in blocks] == [fused] * 3
    assert [block.conv1.weight.shape[0] for block in blocks] == [512] * 3


def test_keywords_are_found_where_the_dialect_puts_them():
    mapping = {"num_layers": 3, "layer_features": 5, "embed_features": 7, "lr_multiplier": 0.1}
    synthesis = {"channel_base": 64, "channel_max": 5, "kernel_size": 5, "resample_filter": [1, 2, 1]}
    ada = {**SHAPE, "c_dim": 2, "mapping_kwargs": mapping, "synthesis_kwargs": synthesis}
    sg3 = {**SHAPE, "c_dim": 2, "mapping_kwargs": mapping, **synthesis}
    for G in (generator_from_init_kwargs(ada, "ada"), generator_from_init_kwargs(sg3, "sg3")):
        assert G.mapping.embed.weight.shape == (7, 2)
        assert [G.mapping.get_submodule(f"fc{i}").weight.shape for i in range(3)] == [(5, 15), (5, 5), (8, 5)]
        assert G.synthesis.b16.conv0.weight.shape == (4, 5, 5, 5)
        assert G.synthesis.b16.resample_filter.shape == (3, 3)
        assert G(torch.randn(2, 8), torch.eye(2)).shape == (2, 3, 16, 16)


def test_memory_layout_is_accepted_and_changes_nothing():
    kwargs = {**SHAPE, "synthesis_kwargs": {"fp16_channels_last": True}}
    with torch.device("meta"):
        assert generator_from_init_kwargs(kwargs, "ada").state_dict().keys()
        assert generator_from_init_kwargs({**SHAPE, "fp16_channels_last": False}, "sg3").state_dict().keys()
    assert kwargs["synthesis_kwargs"] == {"fp16_channels_last": True}


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 50])
def test_number_of_half_precision_resolutions(count):
    options = SynthesisOptions(num_fp16_res=count)
    with torch.device("meta"):
        G = Generator(GeneratorOptions(8, 0, 8, 32, 3, synthesis=options))
    half = [res for res in (4, 8, 16, 32) if G.synthesis.get_submodule(f"b{res}").use_fp16]
    assert half == [8, 16, 32][max(0, 3 - count) :]


@pytest.mark.parametrize(
    ("dialect", "extra", "message"),
    [
        ("ada", {"magnitude_ema_beta": 0.9}, "'magnitude_ema_beta'"),
        ("ada", {"channel_base": 64}, "'channel_base'"),
        ("ada", {"mapping_kwargs": {"depth": 3}}, "'depth'"),
        ("ada", {"synthesis_kwargs": {"width": 3}}, "'width'"),
        ("ada", {"synthesis_kwargs": {1: 3}}, "no constructor argument 1"),
        ("ada", {"synthesis_kwargs": [1]}, r"synthesis_kwargs as a dictionary, not \[1\]"),
        ("sg3", {"synthesis_kwargs": {}}, "'synthesis_kwargs'"),
        ("sg3", {"mapping_kwargs": None}, "mapping_kwargs as a dictionary, not None"),
        ("sg3", {"output_scale": 0.25}, "'output_scale'"),
        ("sg3", {"z_dim": 0}, "z_dim as a whole number from 1 to 1048576, not 0"),
        ("sg3", {"z_dim": 10**9999}, "z_dim .* not .*int"),
        ("sg3", {"conv_clamp": 10**400}, "conv_clamp"),
        ("sg3", {10**9999: 1}, "no constructor argument .*int"),
        ("sg3", {"activation": "a" * 10**6}, r"not 'aaa.{,30}aaa'\.$"),
        ("sg3", {"z_dim": True}, "z_dim .* not True"),
        ("sg3", {"c_dim": -1}, "c_dim .* not -1"),
        ("sg3", {"w_dim": 8.0}, "w_dim .* not 8.0"),
        ("sg3", {"img_resolution": 2}, "img_resolution .* not 2"),
        ("sg3", {"img_resolution": 2**40}, "img_resolution .* not 1099511627776"),
        ("sg3", {"img_resolution": 24}, "a power of two, not 24"),
        ("sg3", {"img_channels": "3"}, "img_channels .* not '3'"),
        ("sg3", {"mapping_kwargs": {"num_layers": 10**9}}, "num_layers .* 1000000000"),
        ("sg3", {"mapping_kwargs": {"layer_features": 0}}, "layer_features .* not 0"),
        ("sg3", {"mapping_kwargs": {"embed_features": "x"}}, "embed_features .* not 'x'"),
        ("sg3", {"mapping_kwargs": {"activation": "gelu"}}, "activation as one of linear, .* not 'gelu'"),
        ("sg3", {"mapping_kwargs": {"lr_multiplier": 0}}, "lr_multiplier=0"),
        ("sg3", {"channel_base": 8}, "resolution 16 needs channel_base to be at least that, not 8"),
        ("sg3", {"channel_base": 0}, "channel_base .* not 0"),
        ("sg3", {"channel_max": 0.5}, "channel_max .* not 0.5"),
        ("sg3", {"num_fp16_res": -1}, "num_fp16_res .* not -1"),
        ("sg3", {"conv_clamp": -1}, "conv_clamp .* not -1"),
        ("sg3", {"conv_clamp": math.nan}, "conv_clamp .* not nan"),
        ("sg3", {"architecture": "dense"}, "architecture as one of orig, skip, resnet, not 'dense'"),
        ("sg3", {"architecture": ["skip"]}, r"not \['skip'\]"),
        ("sg3", {"resample_filter": [1] * 33}, "resample_filter"),
        ("sg3", {"resample_filter": []}, "resample_filter"),
        ("sg3", {"resample_filter": [1, -1]}, "sums to 0"),
        ("sg3", {"kernel_size": 33}, "kernel_size .* not 33"),
        ("sg3", {"kernel_size": 2}, "odd kernel_size, not 2"),
        ("sg3", {"use_noise": "yes"}, "use_noise as one of True, False, not 'yes'"),
        ("sg3", {"activation": None}, "activation .* not None"),
        ("sg3", {"fused_modconv_default": "never"}, "fused_modconv_default .* not 'never'"),
    ],
)
def test_bad_constructor_arguments(dialect, extra, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        generator_from_init_kwargs({**SHAPE, **extra}, dialect)


@pytest.mark.parametrize("name", SHAPE)
def test_missing_constructor_argument(name):
    kwargs = {key: value for key, value in SHAPE.items() if key != name}
    with pytest.raises(UserError, match=f"lack {name}"):
        generator_from_init_kwargs(kwargs, "ada")


# --- golden vectors of the building blocks


@pytest.mark.parametrize("op", ["normalize_2nd_moment", "fully_connected"])
def test_building_blocks(op, fixture_path, golden):
    arrays = golden("ops/sg2_misc")
    cases = json.loads(fixture_path("ops/sg2_misc.json").read_text())["cases"]
    cases = [case for case in cases if case["op"] == op]
    assert len(cases) == {"normalize_2nd_moment": 2, "fully_connected": 5}[op]
    for case in cases:
        inputs = {k: torch.from_numpy(arrays[v]) for k, v in case["inputs"].items() if v is not None}
        x, r = inputs["x"].requires_grad_(), inputs["r"].requires_grad_()
        if op == "normalize_2nd_moment":
            wanted, y = {"x": x}, normalize_2nd_moment(x, **case["args"])
        else:
            out_features, in_features = inputs["weight"].shape
            layer = FullyConnectedLayer(in_features, out_features, bias="bias" in inputs, **case["args"])
            if layer.bias is not None:
                assert torch.equal(layer.bias, torch.full_like(layer.bias, case["args"]["bias_init"]))
            layer.load_state_dict({name: inputs[name] for name in layer.state_dict()})
            wanted, y = {"x": x, **dict(layer.named_parameters())}, layer(x)
        grads = torch.autograd.grad((y * r).sum(), list(wanted.values()), create_graph=True)
        m = sum((grad * inputs[f"s_{name}"]).sum() for name, grad in zip(wanted, grads, strict=True))
        second = torch.autograd.grad(m, [*wanted.values(), r], allow_unused=True)
        results = {"y": (y, 1e-5)}
        results |= {f"d_{name}": (grad, 1e-5) for name, grad in zip(wanted, grads, strict=True)}
        for name, tensor, grad in zip([*wanted, "r"], [*wanted.values(), r], second, strict=True):
            results[f"dd_{name}"] = (torch.zeros_like(tensor) if grad is None else grad, 1e-4)
        assert results.keys() == case["outputs"].keys()
        for name, (result, tolerance) in results.items():
            assert_close(f"{case['id']}.{name}", result, arrays[case["outputs"][name]], tolerance)
