"""The recipe that the benchmark compares with computes what Refine's networks compute."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.speed import baseline_step, steps
from benchmarks.studies import agreement, sharing
from refine.config import RunConfig
from refine.digits.figures import Figures
from refine.networks.edm_layers import UNetBlock
from refine.training import trainer as trainer_module

generate = baseline_step.generate
SMALL = {
    "unconditional": steps.Size(16, 0, 3, (16, 2, 128, 16), (8, (1, 2), 1), 4),
    "conditional": steps.Size(32, 5, 1, (16, 2, 256, 16), (8, (2, 2), 1), 4),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_those_of_refine(name):
    size = SMALL[name]
    generator, teacher = steps.networks(size)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *teacher.parameters()]:
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
        z = torch.randn(3, generator.z_dim, generator=rng)
        c = torch.eye(max(size.classes, 1))[[0, 0, -1]]
        images = generator(z, c, noise_mode="const")
        torch.testing.assert_close(baseline_step.generate(generator, z, c, "const"), images, rtol=1e-4, atol=1e-4)
        sigma = torch.tensor([0.1, 1.0, 10.0])
        expected = teacher(images, sigma, c if size.classes else None)
        denoised = baseline_step.denoise(teacher, images, sigma.reshape(-1, 1, 1, 1), c)
        torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_both_step(name):
    size = SMALL[name]
    recipe = baseline_step.Baseline(*steps.networks(size), size.batch)
    trainer = steps.make_trainer(steps.pair_of_modules(*steps.networks(size)), torch.device("cpu"), batch=size.batch)
    pairs = (
        (recipe.step, recipe.generator, recipe.fake),
        (trainer.step, trainer.generator.module, trainer.fake_score.module),
    )
    for take_step, *networks in pairs:
        before = [[p.clone() for p in network.parameters()] for network in networks]
        for _ in range(2):
            take_step()
        for start, network in zip(before, networks, strict=True):
            assert any(not torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


def test_teacher_of_fewer_pixels_sees_means():
    size = SMALL["conditional"]._replace(teacher_resolution=8)
    recipe = baseline_step.Baseline(*steps.networks(size), 4)
    z, c, sigma, noise = recipe.draw()
    assert recipe.seen(z, c).shape == noise.shape == (4, 1, 8, 8) and sigma.shape == (4, 1, 1, 1)
    before = [p.clone() for p in recipe.generator.parameters()]
    recipe.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, recipe.generator.parameters(), strict=True))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operator computes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


def test_no_weights_for_each_sample():
    """They would make the baseline slower than what it stands for: nothing is larger than images or one weight."""
    size = steps.Size(8, 0, 3, (16, 2, 1024, 64), (8, (1,), 1), 4)
    recipe = baseline_step.Baseline(*steps.networks(size), size.batch)
    with Largest() as largest:
        recipe.step()
    weight = max(p.numel() for p in recipe.generator.parameters())
    assert weight == 64 * 64 * 9 and largest.numel < 2 * weight


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_steps_are_those_of_refine_for_the_same_numbers(monkeypatch, float64_by_default):
    """Warm-up, ramps, both updates and the average: Refine with a forward pass for each update, on the same draws."""
    size = SMALL["conditional"]
    options = {
        "batch": 4,
        "glr": 1e-3,
        "flr": 2e-3,
        "lr_rampup_kimg": 0.012,
        "lr_decay": "cosine",
        "kimg": 0.1,
        "ema_halflife_kimg": 0.1,
        "ema_rampup": 0.5,
        "share_forward": False,
        "sigma": "lognormal:0.6,1",
        "fake_sigma": "lognormal:0.6,1",
    }
    # In float64: Adam makes whole steps of rounding errors where a gradient is zero, as that of a key's bias is.
    networks = [network.double() for network in steps.networks(size)]
    for module in networks[1].modules():
        if isinstance(module, UNetBlock):
            module.dropout = 0.0
    monkeypatch.setattr(baseline_step, "generate", lambda g, z, c: generate(g, z, c, "const"))
    pair = steps.pair_of_modules(*networks)
    plain = agreement.Plain(RunConfig(gan="g", teacher="t", **options), pair)
    shipped = steps.make_trainer(pair, torch.device("cpu"), noise_mode="const", **options)
    drawn = []
    draw = trainer_module.draw

    def remember(*args):
        drawn.append(draw(*args))
        return drawn[-1]

    def same_numbers():
        d = drawn.pop(0)
        sigma, noise = (d.sigma, d.noise) if len(d.sigma) else (d.fake_sigma, d.fake_noise)
        return d.z, d.c, sigma.reshape(-1, 1, 1, 1), noise

    monkeypatch.setattr(trainer_module, "draw", remember)
    monkeypatch.setattr(plain.recipe, "draw", same_numbers)
    for training in (shipped, plain):
        for _ in range(2):
            training.warm_up_step()
        for _ in range(4):
            training.step()
    assert not drawn
    vector = torch.nn.utils.parameters_to_vector
    results = (
        (plain.recipe.generator, shipped.generator.module, networks[0]),
        (plain.recipe.generator_ema, shipped.generator.average.network.module, networks[0]),
        (plain.recipe.fake, shipped.fake_score.module, networks[1]),
    )
    for index, (*ours, start) in enumerate(results):
        a, b = (vector(network.parameters()) for network in ours)
        assert (a - b).norm() < 1e-4 * (b - vector(start.parameters())).norm(), index
    means = plain.statistics.means(), shipped.statistics.means()
    for name, value in means[0].items():
        assert value == pytest.approx(means[1][name], rel=1e-5), name


def test_settings_that_the_recipe_lacks_are_refused():
    for changes in (
        {"sigma": "karras"},
        {"fake_sigma": "lognormal:0,1"},
        {"objective": "ikl:weighting=dmd"},
        {"fake_steps": 2},
    ):
        with pytest.raises(ValueError, match="the plain recipe knows"):
            agreement.Plain(RunConfig(gan="g", teacher="t", **changes), None)


def test_agreement_is_told_by_all_divisions():
    """Five values against five: 252 divisions, of which two are as far apart as these."""
    low, high = [1.0, 2, 3, 4, 5], [6.0, 7, 8, 9, 10]
    assert agreement.permutation_p(low, high) == pytest.approx(2 / 252)
    assert agreement.permutation_p(low, low) == 1
    runs = {
        form: [{"figures": {"fid": x, "recall": x}, "loss": [0, 0, x], "gap": [9, 9, x]} for x in values]
        for form, values in zip(agreement.FORMS, (low, low, high, high), strict=True)
    }
    lines = agreement.comparison(runs)
    assert len(lines) == 3 + 4 * 4
    assert lines[4].endswith("| +0 (-2.3 to +2.3) | 1.00 |") and lines[5].endswith("| +5 (+2.7 to +7.3) | 0.01 |")
    assert (
        agreement.table(runs)[-1]
        == "| 3 | " + " | ".join(f"{mean:.1f} ± 1.6 | {mean:.4f} ± 1.5811" for mean in (3, 3, 8, 8)) + " |"
    )


@pytest.mark.slow
def test_forms_of_sharing_are_timed():
    found = sharing.costs(sharing.FORMS, 1)
    assert found.keys() == sharing.FORMS.keys() and all(seconds > 0 for both in found.values() for seconds in both)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("form", [agreement.PLAIN, "Refine, two forwards"])
def test_a_form_is_trained_and_judged(form, monkeypatch):
    monkeypatch.setitem(agreement.COMMON, "warmup_kimg", 0.032)
    found = agreement.run(form, 0, 1.0, "selection", 200)
    assert len(found["loss"]) == len(found["gap"]) == 1 and found["figures"]["fid"] > 0


def test_means_of_figures_over_seeds():
    each = [Figures(1.0, 0.5, 0.5, 0.5, 0.5, 30.0, (0.1, 0.9)), Figures(3.0, 0.5, 0.5, 0.5, 0.5, 34.0, (0.3, 0.7))]
    means = sharing.mean_figures(each)
    assert (means.fid, means.variance) == (2.0, 32.0) and means.class_shares == pytest.approx((0.2, 0.8))


def test_equal_time_is_shared_by_warm_up_and_steps():
    batch = sharing.COMMON["batch"]
    warm_up_steps = -(-sharing.COMMON["warmup_kimg"] * 1000 // batch)
    assert sharing.kimg_within(100 + 0.1 * warm_up_steps, 0.1, 0.25) == 400 * batch / 1000
