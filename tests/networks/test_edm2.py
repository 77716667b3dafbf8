"""EDM2's pixel networks against golden vectors; magnitudes, forced normalization, float16 files, wrong files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forge import dumped

from refine import load_teacher, networks, pickles
from refine.commands import inspect
from refine.diffusion.guidance import Guided
from refine.diffusion.sampler import HeunOptions, heun_sample
from refine.errors import UserError
from refine.networks import edm2, edm2_layers
from refine.networks.preconditioned import as_denoiser

NAMES = ["edm2/s1_edm2_cond16", "edm2/s2_edm2_uncond16"]
D, HEUN, GRAD = 5e-5, 2e-5, 3e-4  # tolerances of the fixtures' README
HEUN_OPTIONS = HeunOptions(num_steps=12)


def network_of(fixture_path, name):
    return load_teacher(str(fixture_path(f"{name}.pkl"))).network


@pytest.fixture(params=NAMES)
def case(request, fixture_path, golden):
    """Network, golden arrays, and the description of one fixture."""
    name = request.param
    described = json.loads(fixture_path(f"{name}.json").read_text())
    arrays = {key: torch.from_numpy(value) for key, value in golden(name).items()}
    return network_of(fixture_path, name), arrays, described


def error(actual, expected):
    """Largest error relative to the largest expected magnitude, of the worst sample for batches of images."""
    assert actual.shape == expected.shape
    rows = len(expected) if expected.ndim == 4 and expected.shape[-1] > 3 else 1
    want = expected.double().reshape(rows, -1)
    difference = (actual.detach().double().reshape(rows, -1) - want).abs()
    return float((difference.amax(1) / want.abs().amax(1)).max())


def labels_of(net, t, name="in.labels"):
    return t[name] if net.label_dim and t[name].shape[1] else None


def check_gradients(net, t, described, prefix):
    """Gradients of every parameter: those that are stored whole, and the digests of all."""
    grads = {name: p.grad for name, p in net.named_parameters()}
    for key in (key for key in t if key.startswith(f"{prefix}grad.")):
        found = grads[key.removeprefix(f"{prefix}grad.")]
        assert error(found.reshape(t[key].shape), t[key]) < GRAD, key
    digests = t[f"{prefix}grad_digest"]
    for row, name in zip(digests, described["parameters"], strict=True):
        if grads[name] is None:
            assert not row.any(), name
            continue
        assert ((digest(grads[name]) - row).abs() < GRAD * digests.abs().amax(0)).all(), name


def digest(tensor):
    flat = tensor.double().flatten()
    ramp = torch.arange(1, len(flat) + 1, dtype=torch.float64) / len(flat)
    return torch.stack([flat.sum(), flat.square().sum(), flat @ ramp])


def test_golden_vectors(case):
    net, t, _ = case
    x, sigma, labels = t["in.x"], t["in.sigma"], labels_of(net, t)
    assert error(net(x, sigma, labels), t["D"]) < D
    assert error(net.log_variance(sigma), t["logvar"]) < D
    (key,) = [key for key in t if key.startswith("D_scalar_sigma")]
    assert error(net(x, float(key.removeprefix("D_scalar_sigma")), labels), t[key]) < D
    if net.label_dim:
        assert error(net(x, sigma), t["D_nolabel"]) < D
        assert error(net(x, sigma, t["in.labels_soft"]), t["D_softlabel"]) < D


class WithoutClasses:
    """A guide that is asked without labels; EDM2 then takes zeros."""

    def __init__(self, denoiser):
        self.denoiser, self.label_dim, self.augment_dim = denoiser, 0, 0
        for name in ("img_channels", "img_resolution", "sigma_min", "sigma_max"):
            setattr(self, name, getattr(denoiser, name))

    def __call__(self, x, sigma, class_labels=None, augment_labels=None):
        return self.denoiser(x, sigma)


def test_golden_sampling_with_guidance(case, fixture_path):
    net, t, described = case
    guide = as_denoiser(network_of(fixture_path, described["guiding_net"].removesuffix(".pkl")))
    if "Dguide" in t:
        assert error(guide(t["in.x"], t["in.sigma"], labels_of(guide, t)), t["Dguide"]) < D
    teacher = as_denoiser(net)
    guide = guide if net.label_dim else WithoutClasses(guide)
    labels = labels_of(net, t)
    labels4 = None if labels is None else labels[:4]
    assert error(heun_sample(teacher, t["in.latents"], labels4, HEUN_OPTIONS), t["heun12"]) < HEUN
    for key in (key for key in t if key.startswith("heun12_guid")):
        guided = Guided(teacher, guide, float(key.removeprefix("heun12_guid").removesuffix("_fp16params")))
        if "fp16" not in key:
            assert error(heun_sample(guided, t["in.latents"], labels4, HEUN_OPTIONS), t[key]) < HEUN, key


def test_golden_gradients(case):
    net, t, described = case
    net.requires_grad_(True)
    x = t["in.x"].clone().requires_grad_()
    loss = (net(x, t["in.sigma"], labels_of(net, t)) * t["in.r"]).sum()
    (loss + (net.log_variance(t["in.sigma"]) * t["in.q"]).sum()).backward()
    assert error(x.grad, t["grad_x"]) < GRAD
    check_gradients(net, t, described, "")


def test_golden_training_pass(case):
    """EDM2 normalizes the stored weights in each training pass; here that is a step of its own."""
    net, t, described = case
    net.normalize_weights()
    net.requires_grad_(True).train()
    denoised, log_variance = net(t["in.x"], t["in.sigma"], labels_of(net, t)), net.log_variance(t["in.sigma"])
    assert error(denoised, t["train_D"]) < D and error(log_variance, t["train_logvar"]) < D
    ((denoised * t["in.r"]).sum() + (log_variance * t["in.q"]).sum()).backward()
    check_gradients(net, t, described, "train_")
    weights = dict(net.named_parameters())
    for key in (key for key in t if key.startswith("after_train.")):
        assert error(weights[key.removeprefix("after_train.")], t[key]) < 1e-6, key
    for row, name in zip(t["after_train_digest"], described["parameters"], strict=True):
        assert torch.allclose(digest(weights[name])[1], row[1], rtol=1e-5), name
    assert error(net.eval()(t["in.x"], t["in.sigma"], labels_of(net, t)), t["D_after_train"]) < D


def test_golden_loss(case):
    """EDM2's loss by noise level, with its uncertainty."""
    net, t, described = case
    options = described["loss_init_kwargs"]
    sigma_data = options.get("sigma_data", 0.5)
    sigma = (t["edm2loss_rnd"] * options["P_std"] + options["P_mean"]).exp()
    x0 = t["in.images"]
    u = net.log_variance(sigma.flatten()).reshape(-1, 1, 1, 1)
    denoised = net(x0 + sigma * t["edm2loss_noise"], sigma, labels_of(net, t))
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    assert error(weight / u.exp() * (denoised - x0) ** 2 + u, t["edm2loss"]) < D


def test_float16_files(case, fixture_path, golden):
    """Files hold float16; networks compute with float32 copies, and with the float16 tensors too."""
    net, t, described = case
    stored = {str(record.dtype) for record in
              pickles.named_tensors(pickles.load(fixture_path(described["pickles"][0]))["ema"]).values()}  # fmt: skip
    assert stored == {"torch.float16"} and {p.dtype for p in net.parameters()} == {torch.float32}
    expected = t["D_fp16params"] if "D_fp16params" in t else t["D"]
    found = net.half()(t["in.x"], t["in.sigma"], labels_of(net, t))
    assert found.dtype == torch.float32 and error(found, expected) < 1e-3


# -- construction -------------------------------------------------------------------------------------


def small(**options):
    torch.manual_seed(0)
    given = {"img_resolution": 16, "img_channels": 3, "label_dim": 4, "model_channels": 16, "channel_mult": [1, 2]}
    given |= {"num_blocks": 1, "attn_resolutions": [8], "channels_per_head": 16}
    net = edm2.denoiser_from_init_kwargs(given | options)
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.5)
    return net.eval()


@torch.no_grad()
def test_layers_preserve_magnitude():
    x, y = torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0)), torch.randn(2, 32, 16, 16)

    def rms(t):
        return float(t.square().mean().sqrt())

    assert rms(edm2_layers.mp_silu(x)) == pytest.approx(1, abs=0.02)
    assert rms(edm2_layers.mp_sum(x[:, :32], y, 0.3)) == pytest.approx(1, abs=0.02)
    for t in (0.2, 0.5):
        joined = edm2_layers.mp_cat(x, y, t)
        assert rms(joined) == pytest.approx(1, abs=0.02)
        shares = [rms(part) ** 2 * part.shape[1] for part in (joined[:, 64:], joined[:, :64])]
        assert shares[0] / shares[1] == pytest.approx((t / (1 - t)) ** 2, rel=0.05)
    assert rms(edm2_layers.MPConv(64, 48, 3)(x)) == pytest.approx(1, abs=0.1)
    assert rms(edm2_layers.normalized(5 * x, [1])) == pytest.approx(1, abs=1e-3)
    assert rms(edm2_layers.MPFourier(256)(torch.randn(64))) == pytest.approx(1, abs=0.03)
    scaled = edm2_layers.MPConv(64, 48, 3)
    plain = scaled(x)
    scaled.weight *= 7
    assert error(scaled(x), plain) < 1e-3
    scaled.normalize_weight()
    assert float(scaled.weight.square().mean([1, 2, 3]).sub(1).abs().max()) < 1e-3


def test_state_of_a_resumed_network_is_whole():
    net, other = small(), small()
    other.load_state_dict(net.state_dict(), strict=True)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 5.0])
    assert torch.equal(net(x, sigma), other(x, sigma))
    assert not any("filter" in name or "kernel" in name for name in net.state_dict())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"img_channels": 4}, "autoencoder"),
        ({"img_resolution": 15}, "img_resolution=15"),
        ({"num_blocks": 65}, "num_blocks=65"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"concat_balance": 2}, "concat_balance=2"),
        ({"channels_per_head": 0}, "channels_per_head"),
        ({"channels_per_head": 48}, "48"),
        ({"unknown": 1}, "'unknown'"),
        ({"model_channels": 2**40}, "model_channels"),
        ({"clip_act": "x"}, "clip_act"),
    ],
)
def test_impossible_arguments(change, part):
    with pytest.raises(UserError, match=part):
        small(**change)


def test_latent_network_gets_its_sentence(fixture_path, tmp_path):
    pickle = pickles.load(fixture_path(f"{NAMES[0]}.pkl"))
    pickle["ema"].attributes["_init_kwargs"]["img_channels"] = 4
    path = tmp_path / "edm2-img512-s.pkl"
    path.write_bytes(dumped({"ema": pickle["ema"]}))
    with pytest.raises(UserError) as caught:
        load_teacher(str(path))
    assert str(path) in str(caught.value) and "edm2-img64" in str(caught.value)
    assert networks.identify(pickle["ema"]).role == "denoiser"


def test_inspect(fixture_path):
    shown = CliRunner().invoke(inspect.main, [str(fixture_path(f"{NAMES[0]}.pkl")), "--json"])
    ema = json.loads(shown.stdout)["entries"]["ema"]
    assert ema["rebuilt_by_refine"] and ema["architecture"] == "EDM2 denoiser" and ema["dtypes"] == ["float16"]
    assert (ema["label_dim"], ema["img_resolution"], ema["init_kwargs"]["channel_mult"]) == (5, 16, [1, 2, 2])


def test_defaults_are_those_of_the_published_networks():
    with torch.device("meta"):
        net = edm2.denoiser_from_init_kwargs(
            {"img_resolution": 64, "img_channels": 3, "label_dim": 1000, "model_channels": 192}
        )
    count = sum(p.numel() for p in net.parameters())
    assert count / 1e6 == pytest.approx(280, rel=0.01)  # table 2 of arXiv 2312.02696: EDM2-S
    np.testing.assert_equal([len(net.unet.enc), len(net.unet.dec)], [16, 21])
