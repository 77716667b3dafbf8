"""One-step generators: SiD's images and gradients, what a file tells of itself, and files that other code opens."""

from __future__ import annotations

import logging
import pickle
import sys

import pytest
import torch

import refine
from refine import load_generator, load_teacher, pickles
from refine.errors import OptionError, UserError
from refine.networks import sampling
from refine.networks.loading import as_one_step, denoiser_of
from refine.networks.one_step import OneStep, OneStepGenerator, described, recorded
from refine.networks.style_based import as_generator
from refine.pair.pair import distillation_of
from refine.pickles import PickleError

SID = "sid/s1_sid_ddpmpp_uncond16"
SIGMAS = {"x_sigma2.5": 2.5, "x_sigma1": 1.0, "x_sigma80": 80.0, "x_aug0_sigma2.5": 2.5, "x_sampler_sigma2.5": 2.5}


@pytest.fixture
def sid(fixture_path):
    return str(fixture_path(f"{SID}.pkl"))


def close(found, expected, rtol=5e-5):
    expected = torch.as_tensor(expected)
    return (found - expected).abs().max() <= rtol * expected.abs().max()


@pytest.mark.parametrize("name", SIGMAS)
def test_images_are_those_of_sid(sid, golden, name):
    """Augmentation labels of zeros, and its own sampler, give the same."""
    arrays = golden(SID)
    generator = as_generator(load_generator(sid, sigma_init=SIGMAS[name]).network)
    assert isinstance(generator, OneStepGenerator)
    assert (generator.z_shape, generator.c_dim, generator.img_channels) == ((3, 16, 16), 0, 3)
    z = torch.from_numpy(arrays["in.z"])
    output = generator(z, torch.zeros(len(z), 0))
    assert output.w is None and close(output.images, arrays[name])


def test_labels_reach_the_network(fixture_path, golden):
    teacher = load_teacher(str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")))
    generator = as_one_step(teacher, 2.5).network
    z, labels = torch.randn(3, 3, 16, 16), torch.eye(5)[[4, 0, 2]]
    expected = teacher.network(2.5 * z, torch.full([3], 2.5), labels)
    assert torch.equal(generator(z, labels), expected)
    assert not torch.allclose(generator(z, labels.roll(1, 0)), expected, atol=1e-3)


def test_gradients_are_those_of_sid(sid, golden, fixture_path):
    """Of sum(x r): with respect to z, and sums, squares and moments of each parameter's."""
    import json

    arrays = golden(SID)
    network = load_generator(sid).network.requires_grad_(True)
    z = torch.from_numpy(arrays["in.z"]).requires_grad_(True)
    loss = (network(z) * torch.from_numpy(arrays["in.r"])).sum()
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), rel=2e-4)
    loss.backward()
    assert close(z.grad, arrays["grad_z"], 3e-4)
    gradients = {name.removeprefix("denoiser."): p.grad for name, p in network.named_parameters()}
    names = json.loads(fixture_path(f"{SID}.json").read_text())["parameters"]
    digest = []
    for name in names:
        flat = torch.zeros(1) if gradients[name] is None else gradients[name]
        flat = flat.flatten().double()
        ramp = torch.arange(1, len(flat) + 1, dtype=torch.float64) / len(flat)
        digest.append(torch.stack([flat.sum(), flat.square().sum(), flat @ ramp]))
        if f"grad.{name}" in arrays:
            assert close(gradients[name], arrays[f"grad.{name}"], 3e-4), name
    found, expected = torch.stack(digest), torch.from_numpy(arrays["grad_digest"])
    assert ((found - expected).abs() <= 3e-4 * expected.abs().max(0).values).all()


# -- what a file tells -----------------------------------------------------------------------------------


def test_sids_file_does_not_tell_and_the_level_is_said(sid, caplog):
    with caplog.at_level(logging.INFO, "refine"):
        assert load_generator(sid).network.sigma_init == 2.5
    assert any("2.5" in line and "--sigma-init" in line and sid in line for line in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.INFO, "refine"):
        assert load_generator(sid, sigma_init=1.0).network.sigma_init == 1.0
    assert caplog.messages == []


def test_a_diffusion_model_is_no_generator_unless_told(fixture_path):
    teacher = str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))
    with pytest.raises(PickleError, match=r"s1_edm_ddpmpp_uncond16\.pkl.*--teacher.*--sigma-init"):
        load_generator(teacher)
    assert load_generator(teacher, sigma_init=4.0).network.sigma_init == 4.0


def test_a_gan_has_no_noise_level(fixture_path):
    with pytest.raises(UserError, match=r"sigma_init=2\.5 .*d_gray16\.pkl"):
        load_generator(str(fixture_path("sg2ada/d_gray16.pkl")), sigma_init=2.5)


@pytest.mark.parametrize(
    ("name", "level"),
    [("edm/s1_edm_ddpmpp_uncond16", 80.5), ("edm/s5_ve_ncsnpp_uncond16", 0.01), ("edm/s3_vp_ddpmpp_uncond16", 1e-4)],
)
def test_levels_outside_the_teachers(fixture_path, name, level):
    with pytest.raises(OptionError, match=f"sigma_init={level:g}"):
        distillation_of(load_teacher(str(fixture_path(f"{name}.pkl"))), level)


def test_discrete_levels(fixture_path):
    teacher = load_teacher(str(fixture_path("edm/s6_iddpm_adm_uncond16.pkl")))
    level = as_one_step(teacher, 2.5).network.sigma_init
    assert level == float(teacher.network.round_sigma(torch.tensor(2.5))) and 2.3 < level < 2.7


def times(factor, name):
    return factor if name.endswith("bias") else 1


def snapshot(tmp_path, teacher, sigma_init=1.5, objective="sid:alpha=1.2"):
    """A snapshot whose moving average has twice, and whose live network three times the start's biases."""
    pair = distillation_of(load_teacher(teacher), sigma_init)
    start = pair.generator.module.state_dict()
    average, live = ({name: times(n, name) * value for name, value in start.items()} for n in (2, 3))
    path = tmp_path / "network-snapshot-000001.pkl"
    pair.write_snapshot(path, live, average, objective)
    return path, start


def test_a_snapshot_tells_everything(fixture_path, tmp_path):
    teacher = str(fixture_path("edm/s2_edm_adm_cond16.pkl"))
    path, start = snapshot(tmp_path, teacher)
    written, source = pickles.load(path), pickles.load(teacher)
    assert recorded(written) == {"sigma_init": 1.5, "objective": "sid:alpha=1.2"}
    assert set(written) == set(source) | {"net", "one_step"}
    for key, factor in (("ema", 2), ("net", 3)):
        found = pickles.named_tensors(written[key])
        assert found.keys() == start.keys()
        assert all(torch.equal(found[name].read(), times(factor, name) * value) for name, value in start.items())
    loaded = load_generator(str(path))
    assert loaded.key == "ema" and loaded.network.sigma_init == 1.5 and "one-step" in loaded.architecture.name
    with pytest.raises(PickleError, match=r"000001\.pkl.*--gan"):
        load_teacher(str(path))
    assert load_generator(str(path), sigma_init=2.0).network.sigma_init == 2.0
    again = tmp_path / "again.pkl"
    refine.save(load_generator(str(path), sigma_init=2.0), again)
    assert recorded(pickles.load(again)) == {"sigma_init": 2.0, "objective": "sid:alpha=1.2"}


def test_a_snapshot_of_a_snapshot_keeps_its_entries(fixture_path, tmp_path, sid):
    """A one-step generator of somebody else's is refined, and written as its file was."""
    network = load_generator(sid)
    path = tmp_path / "saved.pkl"
    refine.save(network, path)
    assert set(pickles.load(path)) == {"ema", "one_step"} and load_generator(str(path)).network.sigma_init == 2.5


@pytest.mark.parametrize("level", [None, "x", True, -1.0, float("nan"), float("inf"), [2.5]])
def test_damaged_records(fixture_path, tmp_path, level):
    source = pickles.load(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))
    damaged = described(source, 2.5)
    damaged.root["one_step"] = {"sigma_init": level} if level is not None else 3
    pickles.save(damaged, tmp_path / "damaged.pkl")
    with pytest.raises(PickleError, match=r"damaged\.pkl.*sigma_init"):
        load_generator(str(tmp_path / "damaged.pkl"))


def test_other_code_opens_a_snapshot(tmp_path):
    """Plain `pickle.load` beside a `torch_utils`: `ema` is a network of EDM's, whatever else is there."""
    path, start = snapshot(tmp_path, "edm-digits", 2.5)
    with path.open("rb") as file:
        data = pickle.load(file)
    network, z = data["ema"], torch.randn(2, 1, 16, 16)
    assert type(network).__module__ not in sys.modules or not type(network).__module__.startswith("refine.networks")
    assert all(torch.equal(value, times(2, name) * start[name]) for name, value in network.state_dict().items())
    labels = torch.eye(10)[:2]
    theirs = network(2.5 * z, torch.full([2], 2.5), labels)
    assert torch.allclose(theirs, load_generator(str(path)).network(z, labels), atol=1e-5 * float(theirs.abs().max()))
    assert data["one_step"]["sigma_init"] == 2.5 and data["loss_fn"] is not None


def test_a_one_step_generator_is_also_a_denoisers_file(sid):
    """SiD's files tell nothing: as a teacher they are what they hold."""
    assert denoiser_of(pickles.load(sid)).network.sigma_max == float("inf")


# -- seeds -----------------------------------------------------------------------------------------------


class StackedRandomGenerator:
    """A random generator for each seed, as the scripts of EDM and SiD have it; after its description."""

    def __init__(self, seeds):
        self.generators = [torch.Generator().manual_seed(int(seed) % (1 << 32)) for seed in seeds]

    def randn(self, size):
        return torch.stack([torch.randn(size[1:], generator=generator) for generator in self.generators])

    def randint(self, high, size):
        return torch.stack([torch.randint(high, size=size[1:], generator=g) for g in self.generators])


def test_same_seed_same_image_as_in_sids_script(fixture_path, sid):
    teacher = load_teacher(str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")))
    loaded = as_one_step(teacher, 2.5)
    seeds = [0, 7, 2**32 - 1]
    random = StackedRandomGenerator(seeds)
    latents = random.randn([3, 3, 16, 16])
    classes = random.randint(5, [3])
    labels = torch.eye(5)[classes]
    expected = teacher.network(2.5 * latents, torch.full([3], 2.5), labels)
    assert torch.allclose(refine.generate(loaded, seeds), expected, atol=1e-5)
    labels = torch.eye(5)[[3, 3, 3]]
    expected = teacher.network(2.5 * latents, torch.full([3], 2.5), labels)
    assert torch.allclose(refine.generate(loaded, seeds, class_index=3), expected, atol=1e-5)
    with pytest.raises(UserError, match="classes 0 to 4"):
        refine.generate(loaded, seeds, class_index=5)
    with pytest.raises(UserError, match=r"psi 0\.7"):
        refine.generate(loaded, seeds, truncation_psi=0.7)
    unconditional = load_generator(sid)
    assert torch.equal(sampling.seed_input(unconditional.network, 7, None).z, latents[1:2])


def test_it_looks_like_its_denoiser(sid):
    network = load_generator(sid).network
    assert isinstance(network, OneStep)
    assert list(network.state_dict()) == list(network.denoiser.state_dict())
    values = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(values)
    assert not any(value.any() for value in network.denoiser.state_dict().values())
    contract = as_generator(network)
    assert len(contract.blocks()) > 4 and contract.resolution_of("denoiser.model.out_conv.weight") is None
    contract.after_step(None)
