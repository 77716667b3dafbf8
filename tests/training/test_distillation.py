"""Distillation in the real loop: Gaussian and mixture teachers, whose generator is known in closed form; U-Nets."""

from __future__ import annotations

import copy

import pytest
import torch
from gaussian import NUM_PIXELS, GaussianDenoiser
from toy import eight_modes, energy_distance, two_gaussians
from trainers import FIXTURES, gradients_of_move, modules, trainer_of, weights

from refine import load_generator, load_teacher
from refine.errors import OptionError, UserError
from refine.networks.one_step import OneStep, OneStepGenerator
from refine.networks.preconditioned import as_denoiser
from refine.objectives.f_divergence import DIVERGENCES
from refine.pair.bridge import make_bridge
from refine.pair.pair import Pair, distillation_of
from refine.training.cost import step_cost
from refine.training.memory import estimate_memory

SIGMA_INIT = 2.5


def distillation(teacher, sigma_init=SIGMA_INIT):
    """A pair of a denoiser made in a test and a generator that starts as its copy."""
    networks = OneStepGenerator(OneStep(copy.deepcopy(teacher), sigma_init)), as_denoiser(teacher)
    return Pair(*networks, make_bridge(*networks), distills=True)


# -- Gaussians -------------------------------------------------------------------------------------------


def gaussian_teacher():
    rng = torch.Generator().manual_seed(3)
    mean = 0.5 * torch.randn(NUM_PIXELS, generator=rng)
    root = 0.5 * torch.eye(NUM_PIXELS) + 0.2 * torch.randn(NUM_PIXELS, NUM_PIXELS, generator=rng)
    return GaussianDenoiser(mean, root)


def law(module):
    """Mean and covariance of D(sigma z) for the exact denoiser of N(m, C): m - K m and sigma^2 K K', K = C/(C+s^2)."""
    denoiser, sigma = module.denoiser, module.sigma_init
    covariance = (denoiser.root @ denoiser.root.t()).detach()
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(NUM_PIXELS))
    mean = denoiser.mean.detach()
    return mean - gain @ mean, sigma**2 * gain @ gain.t()


def errors(module, mean, covariance):
    found = law(module)
    return float((found[0] - mean).norm() / mean.norm()), float((found[1] - covariance).norm() / covariance.norm())


FAST = ["ikl"]
SLOW = ["sim", "sid", "sid:alpha=0.5", "sid:alpha=1.2", "fgm", *(f"f:{name}" for name in DIVERGENCES)]


@pytest.mark.parametrize("objective", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_mean_and_covariance_reach_the_teachers(objective):
    """In closed form, from a start that is nearer to the mean and has less than half of the spread."""
    teacher = gaussian_teacher()
    mean, covariance = teacher.mean.detach(), (teacher.root @ teacher.root.t()).detach()
    noise = {"sigma": "lognormal:0,1", "fake_sigma": "lognormal:0,1"}
    rates = {"glr": 2e-2, "flr": 3e-2, "rlr": 3e-3, "lr_decay": "cosine", "beta1": 0.5, "clip_grad": 5.0}
    sizes = {"batch": 256, "kimg": 204.8, "ema_halflife_kimg": 20.0, "ratio_samples": 4000}
    trainer = trainer_of(distillation(teacher), objective=objective, **noise, **rates, **sizes)
    module = trainer.generator.module
    before = errors(module, mean, covariance)
    z = torch.randn(20_000, 1, 2, 2)
    drawn = module(z).flatten(1).detach()
    assert (drawn.mean(0) - law(module)[0]).abs().max() < 0.02  # the closed form is that of what is drawn
    assert (drawn.t().cov() - law(module)[1]).abs().max() < 0.02
    for _ in range(40):
        trainer.warm_up_step()
    for _ in range(800):
        trainer.step()
    after = errors(trainer.generator.average.network.module, mean, covariance)
    assert before[1] > 0.5 and max(after) < 0.05, (before, after)


# -- mixtures --------------------------------------------------------------------------------------------

PROBLEMS = {"two Gaussians": two_gaussians, "eight modes": eight_modes}


def draw(generator, count, rng):
    with torch.no_grad():
        z = torch.randn(count, *generator.z_shape, generator=rng)
        return generator(z, torch.zeros(count, 0)).images.flatten(1)


FAR = [("ikl:score", "eight modes"), ("sid", "eight modes"), ("sim", "eight modes")]
NEAR = [(name, "two Gaussians") for name in ("sid", "sim", *(f"f:{name},weighting=score" for name in DIVERGENCES))]


@pytest.mark.parametrize(
    ("objective", "problem"),
    [("ikl:score", "two Gaussians"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (*NEAR, *FAR))],
)
def test_modes_reach_the_teachers(objective, problem):
    """The energy distance to the teacher's samples falls by ten times, and every mode has its share."""
    teacher = PROBLEMS[problem]()
    options = {"batch": 256, "kimg": 60.0, "ema_halflife_kimg": 3.0, "ratio_samples": 2000, "fake_steps": 2}
    rates = {"glr": 2e-3, "flr": 2e-3, "rlr": 2e-3, "lr_decay": "cosine", "clip_grad": 1.0, "beta1": 0.5}
    noise = {"sigma": "lognormal:-1,0.7", "fake_sigma": "lognormal:-1.2,1.2", "share_forward": True}
    trainer = trainer_of(distillation(teacher), objective=objective, **options, **rates, **noise)
    rng = torch.Generator().manual_seed(1)
    mode = torch.multinomial(teacher.weights, 3000, replacement=True, generator=rng)
    reals = (teacher.modes[mode] + teacher.std * torch.randn(3000, 2, generator=rng)).detach()
    before = energy_distance(draw(trainer.generator.network, 3000, rng), reals)
    for _ in range(40):
        trainer.warm_up_step()
    for _ in range(234):
        trainer.step()
    points = draw(trainer.generator.average.network, 3000, rng)
    after = energy_distance(points, reals)
    nearest = torch.cdist(points, teacher.modes.detach()).argmin(1)
    shares = torch.bincount(nearest, minlength=len(teacher.modes)) / len(points)
    assert after < before / 10, (before, after)
    assert (shares - teacher.weights).abs().max() < 0.08, shares


# -- U-Nets ----------------------------------------------------------------------------------------------


def unet_trainer(teacher="edm/s4_sid_ddpmpp_cond16.pkl", **changes):
    options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "ema_halflife_kimg": 0.05}
    return trainer_of(distillation_of(load_teacher(str(FIXTURES / teacher))), **(options | changes))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("objective", ["ikl", "sid"])
def test_a_step_moves_the_generator_alone_from_the_teacher(objective):
    first, second = (unet_trainer(objective=objective) for _ in range(2))
    start = weights(first)
    teacher = {name: value.clone() for name, value in first.teacher.module.state_dict().items()}
    for trainer in (first, second):
        trainer.warm_up_step()
        assert all(torch.equal(start[k], v) for k, v in weights(trainer).items() if k.startswith("generator."))
        trainer.step()
    assert same(weights(first), weights(second)) and same(teacher, first.teacher.module.state_dict())
    moved = {name for name, value in weights(first).items() if not torch.equal(value, start[name])}
    assert any(name.startswith("generator.model") for name in moved)
    assert all(not module.training for module in modules(first).values())


def test_dropout_as_in_sid():
    """The generator is trained with its dropout, another mask each step, and drawn without."""
    trainer = unet_trainer()
    inputs = next(trainer.inputs("generator", 0))
    with_dropout, again = trainer.view(inputs).x0, trainer.view(inputs).x0
    other = next(trainer.inputs("generator", 1))
    plain = trainer.generator.network(inputs.z, inputs.c).images
    assert torch.equal(with_dropout, again) and not torch.allclose(with_dropout, plain, atol=1e-3)
    assert not torch.allclose(trainer.view(other).x0 - trainer.generator.network(other.z, other.c).images,
                              with_dropout - plain, atol=1e-3)  # fmt: skip
    assert torch.equal(unet_trainer(gan_dropout=False).view(inputs).x0, plain)


@pytest.mark.parametrize("objective", ["ikl", "sid"])
def test_checkpointing_and_micro_batches_change_nothing(objective):
    """Checkpointing keeps the dropout masks; micro-batches add up without dropout."""
    options = {"objective": objective, "fake_dropout": False}
    plain = gradients_of_move(unet_trainer(**options))["generator"]
    recomputed = gradients_of_move(unet_trainer(**options, checkpoint=True))["generator"]
    for a, b in zip(plain, recomputed, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))


def test_precision_and_memory():
    """bf16 covers the generator too; the dry run counts three U-Nets and what is kept for gradients through them."""
    trainer = unet_trainer(precision="bf16", gan_dropout=False, objective="sid")
    inputs = next(trainer.inputs("generator", 0))
    exact = trainer.generator.network(inputs.z, inputs.c).images
    error = (trainer.view(inputs).x0 - exact).abs().max() / exact.abs().max()
    assert 0 < error < 0.1
    through, checkpointed, ikl = (
        unet_trainer(**changes)
        for changes in ({"objective": "sid"}, {"objective": "sid", "checkpoint": True}, {"objective": "ikl"})
    )
    num = sum(p.numel() for p in trainer.teacher.module.parameters())
    memory = [estimate_memory(each) for each in (through, checkpointed, ikl)]
    assert memory[0].parameters == 4 * 4 * num and memory[0].adam == 2 * 2 * 4 * num  # G, its average, fake, teacher
    assert memory[0].activations > 2 * memory[2].activations > 0
    assert memory[1].activations < memory[0].activations / 2
    # IKL: 2 estimates, fake score 3, generator 3 and once more for the fake score's images.
    assert [step_cost(each).total for each in (ikl, through, checkpointed)] == [9, 11, 15]


def test_blocks_by_resolution_are_refused():
    with pytest.raises(OptionError, match="train_layers=8"):
        unet_trainer(train_layers="8")
    assert all(p.requires_grad for p in unet_trainer(train_layers="all").generator.module.parameters())


def test_edm2_teachers_and_state_dicts(tmp_path):
    """EDM2's generator keeps its weights normalized; a state dict has no pickle that could be written."""
    trainer = unet_trainer("edm2/s1_edm2_cond16.pkl", batch=2)
    trainer.warm_up_step()
    trainer.step()
    weight = trainer.generator.module.state_dict()["unet.enc.16x16_conv.weight"]
    norms = weight.flatten(1).square().mean(1).sqrt()
    assert (norms - 1).abs().max() < 1e-3
    pair = distillation_of(load_teacher(str(FIXTURES / "edm2/s1_edm2_cond16.pkl")))
    path = tmp_path / "edm2.pkl"
    pair.write_snapshot(path, *(trainer.generator.module.state_dict() for _ in range(2)), "ikl")
    loaded = load_generator(str(path))
    z, c = torch.randn(2, *loaded.network.z_shape), torch.eye(5)[:2]
    expected = trainer.generator.network(z, c).images
    assert (loaded.network(z, c) - expected).abs().max() < 2e-2 * expected.abs().max()  # stored in float16, as it came
    settings = "image_size=16,num_head_channels=64,attention_order=new,noise_schedule=cosine"
    with pytest.raises(UserError, match=r"s2_adm_cond16_new\.pt"):
        distillation_of(load_teacher(str(FIXTURES / "adm/s2_adm_cond16_new.pt"), settings=settings))


def test_a_guided_teacher_guides_its_copy():
    """The generator starts as the teacher without the guide, and is drawn to the guided teacher."""
    teacher = load_teacher(str(FIXTURES / "edm/s1_edm_ddpmpp_uncond16.pkl"))
    guide = load_teacher(str(FIXTURES / "edm/s1_edm_ddpmpp_uncond16.pkl"))
    pair = distillation_of(teacher, guide_file=guide, guidance=1.5)
    assert pair.digests.keys() == {"teacher", "guide"}
    trainer = trainer_of(pair, batch=2, glr=1e-3, flr=1e-3)
    trainer.warm_up_step()
    trainer.step()
    assert trainer.progress.cur_nimg == 2
