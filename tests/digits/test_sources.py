"""The embedded sources against golden vectors: outputs and gradients that the original networks computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refine import pickles
from refine.digits.sources.edm import EDMPrecond
from refine.digits.sources.stylegan2 import Discriminator, Generator
from refine.pickles.tree import named_tensors

TOLERANCE = 3e-5  # of the largest element; the original differs by up to 1e-5 from its own float64 evaluation
NOT_HERE = ("num_fp16_res", "conv_clamp", "block_kwargs", "augment_dim", "embedding_type", "encoder_type")
NOT_HERE += ("decoder_type", "channel_mult_noise", "resample_filter")  # at what these sources have as the only way


def rebuilt(fixture_path, name, key, cls):
    """The golden network as an instance of our source's class, and its golden vectors."""
    record = pickles.load(fixture_path(f"{name}.pkl"))[key]
    kwargs = {k: v for k, v in record.init_kwargs.items() if k not in NOT_HERE}
    if "synthesis_kwargs" in kwargs:
        kwargs["synthesis_kwargs"] = {k: v for k, v in kwargs["synthesis_kwargs"].items() if k not in NOT_HERE}
    network = cls(**kwargs)
    values = {n: t.read() for n, t in named_tensors(record).items() if not n.startswith("model.map_augment.")}
    network.load_state_dict(values, strict=True)
    with np.load(fixture_path(f"{name}.npz")) as golden:
        return network.eval(), {k: torch.from_numpy(v) for k, v in golden.items()}


def assert_close(value, expected):
    assert value.shape == expected.shape
    assert float((value - expected).abs().max() / expected.abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["b_cond16", "d_gray16"])
def test_discriminator(fixture_path, name):
    D, golden = rebuilt(fixture_path, f"sg2ada/{name}", "D", Discriminator)
    images, c, weights = golden["in.d_img"], golden["in.d_c"], golden["in.d_q"]
    for count in (8, 4, 2, 1):
        assert_close(D(images[:count], c[:count]), golden[f"logits_n{count}"])
    images = images.requires_grad_(True)
    (gradient,) = torch.autograd.grad((D(images, c) * weights).sum(), images)
    assert_close(gradient, golden["d_grad_img"])


@pytest.mark.parametrize("name", ["b_cond16", "d_gray16"])
def test_gradient_penalty(fixture_path, name):
    D, golden = rebuilt(fixture_path, f"sg2ada/{name}", "D", Discriminator)
    images = golden["in.d_img"].requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(images, golden["in.d_c"]).sum(), images, create_graph=True)
    penalty = gradient.square().sum(dim=[1, 2, 3])
    assert_close(penalty, golden["r1_penalty"])
    penalty.sum().backward()
    parameters = dict(D.named_parameters())
    names = [name.removeprefix("r1_grad.") for name in golden if name.startswith("r1_grad.")]
    assert len(names) > 10
    for name in names:
        expected = golden[f"r1_grad.{name}"]
        found = parameters[name].grad
        found = torch.zeros_like(expected) if found is None else found
        scale = max(float(expected.abs().max()), 1e-3)
        assert float((found - expected).abs().max()) < 1e-4 * scale, name


@pytest.mark.parametrize("name", ["b_cond16", "d_gray16"])
def test_generator(fixture_path, name):
    G, golden = rebuilt(fixture_path, f"sg2ada/{name}", "G_ema", Generator)
    z, c = golden["in.z"], golden["in.c"]
    assert_close(G.mapping(z, c, truncation_psi=0.7, truncation_cutoff=2), golden["ws_psi0.7_cut2"])
    assert_close(G(z, c, truncation_psi=0.7, noise_mode="const"), golden["G_call_const_psi0.7"])
    assert_close(G.synthesis(golden["ws_psi1"], noise_mode="none"), golden["img_none_psi1"])
    assert_close(G.synthesis(golden["ws_rand"], noise_mode="const"), golden["img_const_wsrand"])
    torch.manual_seed(123)
    assert_close(G.synthesis(golden["ws_psi1"], noise_mode="random"), golden["img_random_seed123"])
    G.train()
    G.mapping(z, c)
    assert_close(G.mapping.w_avg, golden["w_avg_after_train_call"])


@pytest.mark.parametrize("name", ["s1_edm_ddpmpp_uncond16", "s4_sid_ddpmpp_cond16"])
def test_denoiser(fixture_path, name):
    D_T, golden = rebuilt(fixture_path, f"edm/{name}", "ema", EDMPrecond)
    x, sigma, labels = golden["in.x"], golden["in.sigma"], golden["in.labels"]
    if D_T.label_dim == 0:
        labels = None
    assert_close(D_T(x, sigma, labels), golden["D"])
    assert_close(D_T(x, golden["in.sigma"].new_tensor(2.5), labels), golden["D_scalar_sigma2.5"])
    if labels is not None:
        assert_close(D_T(x, sigma), golden["D_nolabel"])
        assert_close(D_T(x, sigma, golden["in.labels_soft"]), golden["D_softlabel"])
    x = x.requires_grad_(True)
    (gradient,) = torch.autograd.grad((D_T(x, sigma, labels) * golden["in.r"]).sum(), x)
    assert_close(gradient, golden["grad_x"])
