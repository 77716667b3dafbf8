"""The loop on Gaussians, where the goal is known, and on the golden networks, where it must be exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from gaussian import NUM_PIXELS, GaussianDenoiser, GaussianGenerator
from trainers import golden_pair, gradients_of_move, modules, pair_of_modules, trainer_of, weights

from refine import load_generator
from refine.errors import UserError
from refine.networks.style_based import as_generator
from refine.objectives import OBJECTIVES, Objective
from refine.pair.freeze import select_layers
from refine.training import trained


def gaussians(seed=0):
    """Generator and teacher, as (mean, root) of each."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=rng)  # noqa: E731
    goal = draw(NUM_PIXELS) * 0.5, 0.5 * torch.eye(NUM_PIXELS) + 0.2 * draw(NUM_PIXELS, NUM_PIXELS)
    start = draw(NUM_PIXELS) * 0.5, 0.2 * torch.eye(NUM_PIXELS) + 0.1 * draw(NUM_PIXELS, NUM_PIXELS)
    return start, goal


def gaussian_trainer(seed=0, **options):
    start, goal = gaussians(seed)
    pair = pair_of_modules(GaussianGenerator(*start), GaussianDenoiser(*goal))
    return trainer_of(pair, **({"batch": 256, "ema_halflife_kimg": 20.0} | options))


SHARED = [pytest.param(form, marks=pytest.mark.slow) for form in ({"share_forward": True}, {"share_unet": True})]


@pytest.mark.parametrize("form", [{}, *SHARED])
def test_affine_generator_reaches_a_gaussian_teacher(form):
    """Mean and covariance within 2.5 %, with a fake score that is learned, whichever passes both updates share."""
    noise = {"sigma": "lognormal:0,1", "fake_sigma": "lognormal:0,1"}
    trainer = gaussian_trainer(glr=1.5e-2, flr=3e-2, kimg=204.8, lr_decay="cosine", beta1=0.5, **noise, **form)
    _, (mean, root) = gaussians()
    covariance = root @ root.t()

    def errors(generator):
        mean_error = (generator.synthesis.mean - mean).norm() / mean.norm()
        return float(mean_error.detach()), float((generator.covariance() - covariance).norm() / covariance.norm())

    assert min(errors(trainer.generator.module)) > 0.3
    for _ in range(40):
        trainer.warm_up_step()
    for _ in range(800):
        trainer.step()
    average = trainer.generator.average.network.module
    assert max(errors(average)) < 0.025, errors(average)


# -- golden networks -------------------------------------------------------------------------------------


WEIGHT = "synthesis.b8.conv0.weight"


def golden_trainer(gan="sg2ada/b_cond16.pkl", teacher="edm/s4_sid_ddpmpp_cond16.pkl", **changes):
    """Conditional 16-pixel networks."""
    options = {"batch": 8, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "ema_halflife_kimg": 0.05}
    return trainer_of(golden_pair(gan, teacher), **(options | changes))


def run(trainer, num_warm_up=2, num_steps=3):
    for _ in range(num_warm_up):
        trainer.warm_up_step()
    for _ in range(num_steps):
        trainer.step()
    return weights(trainer)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "changes", [{}, {"share_forward": True}, {"fake_steps": 3}, {"objective": "ikl:weighting=dmd"}]
)
def test_two_runs_are_equal_bit_for_bit(changes):
    first, second = (golden_trainer(**changes) for _ in range(2))
    start = weights(first)
    a, b = run(first), run(second)
    assert same(a, b)
    moved = [name for name in a if not torch.equal(a[name], start[name])]
    assert any(name.startswith("generator.synthesis") for name in moved) and any(
        name.startswith("fake.") for name in moved
    )
    assert all(
        torch.equal(p, q) for p, q in zip(*(x.teacher.module.parameters() for x in (first, second)), strict=True)
    )
    assert first.progress.cur_nimg == 24 and first.progress.warmup_nimg == 16 and first.progress.num_nonfinite == 0


@pytest.mark.parametrize("share_forward", [True, False])
def test_micro_batches_accumulate_exactly(share_forward):
    """Without what is drawn per pass (dropout, the generator's noise) parts of a batch add up to the batch."""
    changes = {"share_forward": share_forward, "noise_mode": "const", "fake_dropout": False}
    whole, parts = (golden_trainer(**changes, batch_gpu=size) for size in (None, 2))
    for _ in range(2):
        for trainer in (whole, parts):
            trainer.warm_up_step()
    gradients = [gradients_of_move(trainer)["generator"] for trainer in (whole, parts)]
    largest = max(g.abs().max() for g in gradients[0])
    assert largest > 0
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * largest
    means = [trainer.statistics.means() for trainer in (whole, parts)]
    assert means[0].keys() == means[1].keys()
    assert all(means[0][name] == pytest.approx(means[1][name], rel=1e-4) for name in means[0])


def test_no_gradient_before_the_warm_up():
    """The fake score starts as the teacher: a step without warm-up leaves the generator where it is."""
    trainer = golden_trainer(fake_dropout=False)
    assert not any(gradient.any() for gradient in gradients_of_move(trainer)["generator"])
    assert trainer.statistics.means()["Score/gap"] == 0
    trainer.warm_up_step()
    assert any(gradient.any() for gradient in gradients_of_move(trainer)["generator"])


def test_warm_up_leaves_the_generator_alone():
    trainer = golden_trainer()
    before = weights(trainer)
    trainer.warm_up_step()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("fake."))
    assert trainer.progress.cur_nimg == 0 and trainer.progress.warmup_nimg == 8


def test_moving_averages():
    trainer = golden_trainer(ema_rampup=None)
    trainer.warm_up_step()
    name, w_avg = "synthesis.b8.conv0.weight", "mapping.w_avg"
    live, average = modules(trainer)["generator"], modules(trainer)["generator_ema"]
    before = average.state_dict()[name].clone()
    w_before = live.state_dict()[w_avg].clone()
    inputs = next(trainer.inputs("generator", 0))
    w_mean = live.mapping(inputs.z, inputs.c)[:, 0].mean(0)
    trainer.step()
    beta = 0.5 ** (8 / 50)
    expected = beta * before + (1 - beta) * live.state_dict()[name]
    assert torch.allclose(average.state_dict()[name], expected, atol=1e-6)
    w_beta = live.mapping.w_avg_beta
    expected = w_beta * w_before + (1 - w_beta) * w_mean
    for network in (live, average):
        assert torch.allclose(network.state_dict()[w_avg], expected, atol=1e-6)


def test_further_averages_are_kept_restored_and_started_from_the_first(tmp_path):
    more = {"ema_more": "0.02,power:0.1"}
    trainer, other = golden_trainer(**more), golden_trainer(**more)
    run(trainer)
    state = {n.name: n.state_dict() for n in trainer.networks}
    assert list(state["generator"])[:4] == ["module", "average", "average 0.02", "average power:0.1"]
    for name, average in trainer.generator.averages().items():
        assert not torch.equal(average.network.module.state_dict()[WEIGHT], state["generator"]["module"][WEIGHT]), name
    other.generator.load_state_dict(state["generator"])
    pairs = zip(trainer.generator.averages().values(), other.generator.averages().values(), strict=True)
    assert all(
        torch.equal(a.network.module.state_dict()[WEIGHT], b.network.module.state_dict()[WEIGHT]) for a, b in pairs
    )
    without = golden_trainer()
    run(without)
    other.generator.load_weights(without.generator.weights())
    for average in other.generator.averages().values():
        assert torch.equal(average.network.module.state_dict()[WEIGHT], without.generator.weights()["average"][WEIGHT])


def test_average_ramps_up():
    """After the first step, the half-life is 5 % of one batch: the average is the live network."""
    trainer = golden_trainer()
    run(trainer, 1, 1)
    networks = modules(trainer)
    live, average = (networks[n].state_dict()["synthesis.b8.conv0.weight"] for n in ("generator", "generator_ema"))
    assert torch.allclose(live, average, atol=1e-5)


def test_layers_above_the_teacher_are_frozen():
    files = {"gan": "sg2ada/a_uncond32.pkl", "teacher": "edm/s1_edm_ddpmpp_uncond16.pkl"}
    trainer = golden_trainer(**files)
    before = {name: value.clone() for name, value in trainer.generator.module.state_dict().items()}
    run(trainer)
    moved = {
        name for name, value in trainer.generator.module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".")[1] for name in moved} == {"b4", "b8", "b16"}
    everything = golden_trainer(**files, train_layers="all")
    run(everything)
    changed = [n for n, v in everything.generator.module.state_dict().items() if not torch.equal(v, before[n])]
    assert any(n.startswith("mapping.fc") for n in changed) and any(n.startswith("synthesis.b32") for n in changed)


def test_layers_by_resolution(fixture_path):
    generator = as_generator(load_generator(str(fixture_path("sg2ada/a_uncond32.pkl"))).network)
    names = select_layers(generator, "8,32", 16)
    assert {name.split(".")[1] for name in names} == {"b8", "b32"}
    assert [name for name, p in generator.module.named_parameters() if p.requires_grad] == names
    assert len(select_layers(generator, "auto", 32)) == len(list(generator.module.parameters()))
    with pytest.raises(UserError, match=r"train_layers\b.*\b64 pixels"):
        select_layers(generator, "8,64", 16)


def test_gradients_that_are_not_finite_are_counted_and_left_out():
    trainer = golden_trainer(share_forward=False)
    trainer.warm_up_step()
    good = weights(trainer)
    trainer.teacher.module.model.get_parameter("dec.16x16_aux_conv.bias").data.fill_(float("nan"))
    trainer.step()
    after = weights(trainer)
    assert trainer.progress.num_nonfinite == 1
    assert all(torch.equal(good[n], after[n]) for n in good if n.startswith("generator.synthesis"))
    assert all(torch.isfinite(value).all() for value in after.values())


def test_clipping():
    """Adam divides by the gradient's size; what clipping changes is the size of its moments."""
    free, clipped = (golden_trainer(clip_grad=clip) for clip in (None, 1e-3))
    norms = []
    for trainer in (free, clipped):
        run(trainer, 2, 1)
        moments = [s["exp_avg"] for s in trainer.generator.optimizer.adam.state.values()]
        norms.append(torch.stack([m.norm() for m in moments]).norm().item())
    assert norms[1] == pytest.approx(1e-3, rel=1e-3) and norms[0] > 2e-3


def test_learning_rate_ramps_up():
    trainer = golden_trainer(lr_rampup_kimg=0.032)
    trainer.warm_up_step()
    rates = []
    for _ in range(6):
        trainer.step()
        rates.append(trainer.generator.optimizer.adam.param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


def test_reported_by_noise_level():
    trainer = golden_trainer()
    run(trainer, 2, 4)
    means = trainer.statistics.means()
    bands = [name for name in means if name.startswith("Score/gap/")]
    assert bands and all(means[name] > 0 for name in bands)
    totals = trainer.statistics._totals
    assert totals["Score/gap/sigma"][:, 1].sum() == totals["Score/gap"][0, 1] == 32
    assert {"Loss/fake", "Gradient/fake_norm", "Gradient/generator_norm"} <= means.keys()


@dataclass(frozen=True)
class SidLike(Objective):
    """An objective that differentiates both denoisers: Delta . (D_F - x0)."""

    name: ClassVar[str] = "sid-like"
    through_networks: ClassVar[bool] = True

    def loss(self, scores):
        delta = scores.teacher - scores.fake
        return (delta * (scores.fake - scores.x0)).sum(dim=[1, 2, 3])


@dataclass(frozen=True)
class Detached(SidLike):
    name: ClassVar[str] = "detached"
    through_networks: ClassVar[bool] = False


@dataclass(frozen=True)
class Nothing(SidLike):
    name: ClassVar[str] = "nothing"

    def loss(self, scores):
        return 0 * scores.x0.sum([1, 2, 3])


def test_objective_through_the_networks(monkeypatch):
    """Its derivative reaches the generator through both denoisers, and leaves the fake score's own gradient alone."""
    gradients, moved = [], []
    for objective in (SidLike, Detached, Nothing):
        monkeypatch.setitem(OBJECTIVES, objective.name, objective)
        trainer = golden_trainer(objective=objective.name, fake_dropout=False, share_forward=True)
        trainer.warm_up_step()
        kept = gradients_of_move(trainer)
        gradients.append([g for g in kept["fake_score"] if g is not None])
        moved.append(kept["generator"])
    assert len(gradients[0]) > 10
    for a, b, c in zip(*gradients, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert any((a - b).abs().max() > 1e-3 * a.abs().max() for a, b in zip(moved[0], moved[1], strict=True))


def test_no_fake_score_where_none_is_needed():
    trainer = golden_trainer(objective="sds")
    before = weights(trainer)
    trainer.step()
    after = weights(trainer)
    assert [network.name for network in trainer.networks] == ["generator"] and not hasattr(trainer, "fake_score")
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("generator.synthesis"))
    assert not {"Score/gap", "Loss/fake"} & trainer.statistics.means().keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(precision):
    """The U-Nets' rounding changes the generator's gradient little; master weights stay float32."""
    directions = []
    for name in ("fp32", precision):
        trainer = golden_trainer(precision=name, fake_dropout=False, noise_mode="const")
        for _ in range(3):
            trainer.warm_up_step()
        gradients = gradients_of_move(trainer)["generator"]
        assert all(p.dtype == torch.float32 for p in trainer.fake_score.module.parameters())
        directions.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert torch.nn.functional.cosine_similarity(*directions, dim=0) > 0.99


def test_paired_dropout_and_augmentation():
    """With equal masks two equal networks agree; the fake score is fitted under augmentation."""
    trainer = golden_trainer(paired_dropout=True, share_forward=False, fake_augment=0.5)
    trainer.move_generator()
    assert trainer.statistics.means()["Score/gap"] == 0
    for _ in range(2):
        trainer.warm_up_step()
        trainer.step()
    assert trainer.statistics.means()["Score/gap"] > 0 and trainer.progress.num_nonfinite == 0
    plain = golden_trainer(share_forward=False)
    augmented = golden_trainer(share_forward=False, fake_augment=0.5)
    plain.warm_up_step()
    augmented.warm_up_step()
    assert not same(weights(plain), weights(augmented))


def test_a_run_of_gradients_that_are_not_finite_ends(monkeypatch):
    monkeypatch.setattr(trained, "MAX_NONFINITE_IN_A_ROW", 2)
    trainer = golden_trainer()
    trainer.teacher.module.model.get_parameter("dec.16x16_aux_conv.bias").data.fill_(float("nan"))
    trainer.step()
    trainer.step()
    with pytest.raises(UserError, match="gradients of the generator"):
        trainer.step()
    assert all(value == value for value in trainer.statistics.means().values())


def test_nothing_left_to_train(fixture_path):
    generator = as_generator(load_generator(str(fixture_path("sg2ada/a_uncond32.pkl"))).network)
    with pytest.raises(UserError, match="train_layers="):
        select_layers(generator, "auto", 2)


def test_the_fake_scores_rate_is_counted_from_the_warm_up():
    trainer = golden_trainer(lr_rampup_kimg=0.032)
    rates = []
    for step in range(6):
        (trainer.warm_up_step if step < 3 else trainer.step)()
        rates.append(trainer.fake_score.optimizer.adam.param_groups[0]["lr"] / 1e-3)
    assert rates == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
