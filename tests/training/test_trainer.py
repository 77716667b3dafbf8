"""The loop on Gaussians, where the goal is known, and on the golden networks, where it must be exact."""

from __future__ import annotations

import copy

import pytest
import torch
from gaussian import NUM_PIXELS, GaussianDenoiser, GaussianGenerator

from refine import load_gan, load_teacher
from refine.config import RunConfig
from refine.errors import UserError
from refine.objectives import Objective
from refine.pair.bridge import Bridge
from refine.pair.freeze import select_layers
from refine.training import trainer as trainer_module
from refine.training.trainer import Trainer

CPU = torch.device("cpu")


def options(**changes):
    return RunConfig(gan="g", teacher="t", **({"batch": 256, "kimg": 600.0, "ema_halflife_kimg": 20.0} | changes))


def gaussians(seed=0):
    """Generator and teacher, as (mean, root) of each."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=rng)  # noqa: E731
    goal = draw(NUM_PIXELS) * 0.5, 0.5 * torch.eye(NUM_PIXELS) + 0.2 * draw(NUM_PIXELS, NUM_PIXELS)
    start = draw(NUM_PIXELS) * 0.5, 0.2 * torch.eye(NUM_PIXELS) + 0.1 * draw(NUM_PIXELS, NUM_PIXELS)
    return start, goal


def gaussian_trainer(config, seed=0):
    start, goal = gaussians(seed)
    generator, teacher = GaussianGenerator(*start), GaussianDenoiser(*goal).requires_grad_(False)
    fake = copy.deepcopy(teacher)
    return Trainer(config, generator, copy.deepcopy(generator), teacher, fake, Bridge(2, 0), CPU)


@pytest.mark.parametrize("form", [{}, {"share_forward": True}, {"share_unet": True}])
def test_affine_generator_reaches_a_gaussian_teacher(form):
    """Mean and covariance within 2.5 %, with a fake score that is learned, whichever passes both updates share."""
    noise = {"sigma": "lognormal:0,1", "fake_sigma": "lognormal:0,1"}
    config = options(glr=1.5e-2, flr=3e-2, kimg=204.8, lr_decay="cosine", beta1=0.5, **noise, **form)
    trainer = gaussian_trainer(config)
    _, (mean, root) = gaussians()
    covariance = root @ root.t()

    def errors(generator):
        mean_error = (generator.synthesis.mean - mean).norm() / mean.norm()
        return float(mean_error.detach()), float((generator.covariance() - covariance).norm() / covariance.norm())

    assert min(errors(trainer.generator)) > 0.3
    for _ in range(40):
        trainer.warm_up_step()
    for _ in range(800):
        trainer.step()
    assert max(errors(trainer.generator_ema)) < 0.025, errors(trainer.generator_ema)


# -- golden networks -------------------------------------------------------------------------------------


def golden_trainer(fixture_path, gan="sg2ada/b_cond16.pkl", teacher="edm/s4_sid_ddpmpp_cond16.pkl", **changes):
    """Conditional 16-pixel networks."""
    config = options(**({"batch": 8, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "ema_halflife_kimg": 0.05} | changes))
    generator = load_gan(str(fixture_path(gan))).network
    denoiser = load_teacher(str(fixture_path(teacher))).network
    bridge = Bridge(denoiser.img_resolution, denoiser.label_dim)
    select_layers(generator, config.train_layers, denoiser.img_resolution)
    networks = [generator, copy.deepcopy(generator).requires_grad_(False), denoiser, copy.deepcopy(denoiser)]
    return Trainer(config, *networks, bridge, CPU)


def weights(trainer):
    modules = {"G": trainer.generator, "G_ema": trainer.generator_ema, "fake": trainer.fake}
    return {f"{key}.{name}": value.clone() for key, m in modules.items() for name, value in m.state_dict().items()}


def run(trainer, num_warm_up=2, num_steps=3):
    for _ in range(num_warm_up):
        trainer.warm_up_step()
    for _ in range(num_steps):
        trainer.step()
    return weights(trainer)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("changes", [{}, {"share_forward": True}, {"fake_steps": 3}, {"weighting": "dmd"}])
def test_two_runs_are_equal_bit_for_bit(changes, fixture_path):
    first, second = (golden_trainer(fixture_path, **changes) for _ in range(2))
    start = weights(first)
    a, b = run(first), run(second)
    assert same(a, b)
    moved = [name for name in a if not torch.equal(a[name], start[name])]
    assert any(name.startswith("G.synthesis") for name in moved) and any(name.startswith("fake.") for name in moved)
    assert all(torch.equal(p, q) for p, q in zip(first.teacher.parameters(), second.teacher.parameters(), strict=True))
    assert first.progress.cur_nimg == 24 and first.progress.warmup_nimg == 16 and first.progress.num_nonfinite == 0


@pytest.mark.parametrize("share_forward", [True, False])
def test_micro_batches_accumulate_exactly(share_forward, fixture_path):
    """Without what is drawn per pass (dropout, the generator's noise) parts of a batch add up to the batch."""
    changes = {"share_forward": share_forward, "noise_mode": "const", "fake_dropout": False}
    whole, parts = (golden_trainer(fixture_path, **changes, batch_gpu=size) for size in (None, 2))
    for _ in range(2):
        for trainer in (whole, parts):
            trainer.warm_up_step()
    gradients = []
    for trainer in (whole, parts):
        trainer._generator_update(0)
        gradients.append([p.grad.clone() for p in trainer.generator_optimizer.parameters])
    largest = max(g.abs().max() for g in gradients[0])
    assert largest > 0
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * largest
    means = [trainer.averages.means() for trainer in (whole, parts)]
    assert means[0].keys() == means[1].keys()
    assert all(means[0][name] == pytest.approx(means[1][name], rel=1e-4) for name in means[0])


def test_no_gradient_before_the_warm_up(fixture_path):
    """The fake score starts as the teacher: a step without warm-up leaves the generator where it is."""
    trainer = golden_trainer(fixture_path, fake_dropout=False)
    trainer._generator_update(0)
    assert all(not p.grad.any() for p in trainer.generator_optimizer.parameters)
    assert trainer.averages.means()["Score/gap"] == 0
    trainer.warm_up_step()
    trainer._generator_update(1)
    assert any(p.grad.any() for p in trainer.generator_optimizer.parameters)


def test_warm_up_leaves_the_generator_alone(fixture_path):
    trainer = golden_trainer(fixture_path)
    before = weights(trainer)
    trainer.warm_up_step()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("fake."))
    assert trainer.progress.cur_nimg == 0 and trainer.progress.warmup_nimg == 8


def test_moving_averages(fixture_path):
    trainer = golden_trainer(fixture_path, ema_rampup=None)
    trainer.warm_up_step()
    name, w_avg = "synthesis.b8.conv0.weight", "mapping.w_avg"
    before = trainer.generator_ema.state_dict()[name].clone()
    w_before = trainer.generator.state_dict()[w_avg].clone()
    draws, _ = next(trainer._micro_batches("generator", 0))
    w_mean = trainer.generator.mapping(draws.z, draws.c)[:, 0].mean(0)
    trainer.step()
    beta = 0.5 ** (8 / 50)
    expected = beta * before + (1 - beta) * trainer.generator.state_dict()[name]
    assert torch.allclose(trainer.generator_ema.state_dict()[name], expected, atol=1e-6)
    w_beta = trainer.generator.mapping.w_avg_beta
    expected = w_beta * w_before + (1 - w_beta) * w_mean
    for network in (trainer.generator, trainer.generator_ema):
        assert torch.allclose(network.state_dict()[w_avg], expected, atol=1e-6)


def test_average_ramps_up(fixture_path):
    """After the first step, the half-life is 5 % of one batch: the average is the live network."""
    trainer = golden_trainer(fixture_path)
    run(trainer, 1, 1)
    live, average = (n.state_dict()["synthesis.b8.conv0.weight"] for n in (trainer.generator, trainer.generator_ema))
    assert torch.allclose(live, average, atol=1e-5)


def test_layers_above_the_teacher_are_frozen(fixture_path):
    files = {"gan": "sg2ada/a_uncond32.pkl", "teacher": "edm/s1_edm_ddpmpp_uncond16.pkl"}
    trainer = golden_trainer(fixture_path, **files)
    before = {name: value.clone() for name, value in trainer.generator.state_dict().items()}
    run(trainer)
    moved = {name for name, value in trainer.generator.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in moved} == {"b4", "b8", "b16"}
    everything = golden_trainer(fixture_path, **files, train_layers="all")
    run(everything)
    changed = [n for n, v in everything.generator.state_dict().items() if not torch.equal(v, before[n])]
    assert any(n.startswith("mapping.fc") for n in changed) and any(n.startswith("synthesis.b32") for n in changed)


def test_layers_by_resolution(fixture_path):
    generator = load_gan(str(fixture_path("sg2ada/a_uncond32.pkl"))).network
    names = select_layers(generator, "8,32", 16)
    assert {name.split(".")[1] for name in names} == {"b8", "b32"}
    assert [name for name, p in generator.named_parameters() if p.requires_grad] == names
    assert len(select_layers(generator, "auto", 32)) == len(list(generator.parameters()))
    with pytest.raises(UserError, match="names 64 pixels"):
        select_layers(generator, "8,64", 16)


def test_gradients_that_are_not_finite_are_counted_and_left_out(fixture_path):
    trainer = golden_trainer(fixture_path, share_forward=False)
    trainer.warm_up_step()
    good = weights(trainer)
    trainer.teacher.model.get_parameter("dec.16x16_aux_conv.bias").data.fill_(float("nan"))
    trainer.step()
    after = weights(trainer)
    assert trainer.progress.num_nonfinite == 1
    assert all(torch.equal(good[n], after[n]) for n in good if n.startswith("G.synthesis"))
    assert all(torch.isfinite(value).all() for value in after.values())


def test_clipping(fixture_path):
    """Adam divides by the gradient's size; what clipping changes is the size of its moments."""
    free, clipped = (golden_trainer(fixture_path, clip_grad=clip) for clip in (None, 1e-3))
    norms = []
    for trainer in (free, clipped):
        run(trainer, 2, 1)
        moments = [s["exp_avg"] for s in trainer.generator_optimizer.adam.state.values()]
        norms.append(torch.stack([m.norm() for m in moments]).norm().item())
    assert norms[1] == pytest.approx(1e-3, rel=1e-3) and norms[0] > 2e-3


def test_learning_rate_ramps_up(fixture_path):
    trainer = golden_trainer(fixture_path, lr_rampup_kimg=0.032)
    trainer.warm_up_step()
    rates = []
    for _ in range(6):
        trainer.step()
        rates.append(trainer.generator_optimizer.adam.param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_reported_by_noise_level(fixture_path):
    trainer = golden_trainer(fixture_path)
    run(trainer, 2, 4)
    means = trainer.averages.means()
    bands = [name for name in means if name.startswith("Score/gap/")]
    assert bands and all(means[name] > 0 for name in bands)
    totals = trainer.averages._totals
    assert totals["Score/gap/sigma"][:, 1].sum() == totals["Score/gap"][0, 1] == 32
    assert {"Loss/fake", "Gradient/fake_norm", "Gradient/generator_norm"} <= means.keys()


def sid_like(scores, weighting):
    """An objective that differentiates both denoisers: Delta . (D_F - x0)."""
    delta = scores.teacher - scores.fake
    return (delta * (scores.fake - scores.x0)).sum(dim=[1, 2, 3])


def test_objective_through_the_networks(fixture_path, monkeypatch):
    """Its derivative reaches the generator through both denoisers, and leaves the fake score's own gradient alone."""
    gradients, moved = [], []
    for loss, through in ((sid_like, True), (sid_like, False), (lambda scores, _: 0 * scores.x0.sum([1, 2, 3]), True)):
        objective = Objective(loss, ("uniform",), through_networks=through)
        monkeypatch.setitem(trainer_module.OBJECTIVES, "ikl", objective)
        trainer = golden_trainer(fixture_path, fake_dropout=False)
        trainer.warm_up_step()
        trainer._generator_update(0)
        gradients.append([p.grad.clone() for p in trainer.fake_optimizer.parameters if p.grad is not None])
        moved.append([p.grad.clone() for p in trainer.generator_optimizer.parameters])
    for a, b, c in zip(*gradients, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert any((a - b).abs().max() > 1e-3 * a.abs().max() for a, b in zip(moved[0], moved[1], strict=True))


def test_no_fake_score_where_none_is_needed(fixture_path):
    trainer = golden_trainer(fixture_path, objective="sds")
    before = weights(trainer)
    trainer.step()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("fake."))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("G.synthesis"))
    assert not {"Score/gap", "Loss/fake"} & trainer.averages.means().keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(precision, fixture_path):
    """The U-Nets' rounding changes the generator's gradient little; master weights stay float32."""
    directions = []
    for name in ("fp32", precision):
        trainer = golden_trainer(fixture_path, precision=name, fake_dropout=False, noise_mode="const")
        for _ in range(3):
            trainer.warm_up_step()
        trainer._generator_update(0)
        assert all(p.dtype == torch.float32 for p in trainer.fake.parameters())
        directions.append(torch.cat([p.grad.flatten() for p in trainer.generator_optimizer.parameters]))
    assert torch.nn.functional.cosine_similarity(*directions, dim=0) > 0.99


def test_paired_dropout_and_augmentation(fixture_path):
    """With equal masks two equal networks agree; the fake score is fitted under augmentation."""
    trainer = golden_trainer(fixture_path, paired_dropout=True, share_forward=False, fake_augment=0.5)
    trainer._generator_update(0)
    assert trainer.averages.means()["Score/gap"] == 0
    for _ in range(2):
        trainer.warm_up_step()
        trainer.step()
    assert trainer.averages.means()["Score/gap"] > 0 and trainer.progress.num_nonfinite == 0
    plain = golden_trainer(fixture_path, share_forward=False)
    augmented = golden_trainer(fixture_path, share_forward=False, fake_augment=0.5)
    plain.warm_up_step()
    augmented.warm_up_step()
    assert not same(weights(plain), weights(augmented))


def test_a_run_of_gradients_that_are_not_finite_ends(fixture_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_NONFINITE_IN_A_ROW", 2)
    trainer = golden_trainer(fixture_path)
    trainer.teacher.model.get_parameter("dec.16x16_aux_conv.bias").data.fill_(float("nan"))
    trainer.step()
    trainer.step()
    with pytest.raises(UserError, match="gradients of the generator were not finite"):
        trainer.step()
    assert all(value == value for value in trainer.averages.means().values())


def test_nothing_left_to_train(fixture_path):
    generator = load_gan(str(fixture_path("sg2ada/a_uncond32.pkl"))).network
    with pytest.raises(UserError, match="leaves nothing to train"):
        select_layers(generator, "auto", 2)


def test_the_fake_scores_rate_is_counted_from_the_warm_up(fixture_path):
    trainer = golden_trainer(fixture_path, lr_rampup_kimg=0.032)
    rates = []
    for step in range(6):
        (trainer.warm_up_step if step < 3 else trainer.step)()
        rates.append(trainer.fake_optimizer.adam.param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
