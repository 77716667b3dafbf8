"""One pass of the fake score for both updates: the gradients by hand, what it cannot go with, what it costs."""

from __future__ import annotations

import weakref

import pytest
import torch
from trainers import CPU, golden_pair, gradients_of_move, modules, trainer_of

from refine.config import RunConfig
from refine.errors import UserError
from refine.presets import PRESETS
from refine.runtime.spans import listening
from refine.training.memory import estimate_memory
from refine.training.profiling import Ceilings, Clock, Counter, Parts
from refine.training.state import load_state, read_state, state_of


def make(double=True, **changes):
    """A trainer of the golden pair, by default in float64."""
    options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "noise_mode": "const", "share_unet": True}
    return trainer_of(golden_pair(double=double), **(options | changes))


def gradients_by_hand(trainer):
    """Of both networks for the draws of step 0, from the formulas alone."""
    config, generator = trainer.options, trainer.generator.module
    fake, teacher = trainer.fake_score.module, trainer.teacher.module
    of_generator, of_fake = (network.optimizer.parameters for network in trainer.networks)
    totals = [[torch.zeros_like(p) for p in parameters] for parameters in (of_generator, of_fake)]
    for draws in trainer.inputs("generator", 0):
        images = generator.synthesis(generator.mapping(draws.z, draws.c), noise_mode="const", force_fp32=True)
        x0 = images.detach()
        sigma = draws.sigma.reshape(-1, 1, 1, 1)
        x_t = x0 + sigma * draws.noise
        estimates = []
        for network in (fake, teacher):
            network.train(config.fake_dropout)
            draws.seeds.seed_torch("dropout")
            estimates.append(network(x_t, draws.sigma, draws.c))
            network.eval()
        lam = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        loss = (lam * (estimates[0] - x0) ** 2).sum() / config.batch
        toward = (estimates[0] - estimates[1]).detach() / config.batch
        parts = (
            torch.autograd.grad(images, of_generator, toward, materialize_grads=True),
            torch.autograd.grad(loss, of_fake, allow_unused=True, materialize_grads=True),
        )
        for total, part in zip(totals, parts, strict=True):
            for a, b in zip(total, part, strict=True):
                a += b
    return totals


@pytest.mark.parametrize(
    "changes", [{}, {"fake_dropout": False}, {"batch_gpu": 2}, {"checkpoint": True, "batch_gpu": 3, "batch": 6}]
)
def test_gradients_are_those_computed_by_hand(changes):
    trainer = make(**changes)
    for _ in range(2):
        trainer.warm_up_step()
    expected = gradients_by_hand(trainer)
    found = gradients_of_move(trainer)
    for network, wanted in zip(trainer.networks, expected, strict=True):
        largest = max(float(g.abs().max()) for g in wanted)
        assert largest > 0
        for one, other in zip(found[network.name], wanted, strict=True):
            one = torch.zeros_like(other) if one is None else one
            assert (one - other).abs().max() <= 1e-12 * largest


def test_processes_share_the_work(monkeypatch):
    """The parts of two processes add up to the whole."""
    whole = make(fake_dropout=False)
    parts = [make(fake_dropout=False) for _ in range(2)]
    for trainer in (whole, *parts):
        trainer.warm_up_step()
    found = [gradients_of_move(whole)]
    for index, trainer in enumerate(parts):
        monkeypatch.setattr(
            "refine.runtime.distributed.share", lambda count, index=index: slice(2 * index, 2 * index + 2)
        )
        found.append(gradients_of_move(trainer))
    for name in ("generator", "fake_score"):
        largest = max(float(g.abs().max()) for g in found[0][name] if g is not None)
        for a, b, c in zip(*(gradients[name] for gradients in found), strict=True):
            assert a is None or (a - b - c).abs().max() <= 1e-12 * largest


@pytest.mark.parametrize("fake_dropout", [True, False])
def test_equal_networks_agree(fake_dropout):
    """Before the warm-up fake score and teacher are one network, and with one mask they say the same."""
    trainer = make(double=False, fake_dropout=fake_dropout)
    gradients = gradients_of_move(trainer)["generator"]
    means = trainer.statistics.means()
    assert means["Score/gap"] == 0 and means["Loss/fake"] > 0
    assert not any(gradient.any() for gradient in gradients)


def test_a_step_is_one_pass_of_each_network():
    """Operations of the U-Nets: the teacher once, the fake score once with its backward pass."""
    trainer = make(double=False)
    parts = Parts(Clock(CPU))
    with listening(parts), Counter(Ceilings(), parts) as counter:
        trainer.step()
    flop = {name: work.flop for name, work in counter.by_part.items()}
    assert flop["fake score, forward"] == flop["teacher, forward"] > 0
    assert flop["teacher, forward"] < flop["fake score, backward"] <= 2.2 * flop["teacher, forward"]


def test_the_fake_scores_graph_is_gone_when_the_teacher_begins(monkeypatch):
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    trainer, kept, counts = make(double=False), weakref.WeakSet(), []
    of_fake, of_teacher = trainer.fake_score.module.forward, trainer.teacher.module.forward

    def keep(tensor):
        kept.add(one := Kept(tensor))
        return one

    def fake_forward(*args, **kwargs):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
            denoised = of_fake(*args, **kwargs)
        counts.append(len(kept))
        return denoised

    def teacher_forward(*args, **kwargs):
        counts.append(len(kept))
        return of_teacher(*args, **kwargs)

    monkeypatch.setattr(trainer.fake_score.module, "forward", fake_forward)
    monkeypatch.setattr(trainer.teacher.module, "forward", teacher_forward)
    trainer.step()
    assert counts[0] > 100 and counts[1:] == [0]


def test_both_graphs_are_in_memory():
    shared, alone = (make(double=False, batch_gpu=1, share_unet=share) for share in (True, False))
    sizes = [estimate_memory(trainer).activations for trainer in (shared, alone)]
    assert sizes[1] < sizes[0] < 2 * sizes[1]


def test_goes_on_as_if_never_stopped(tmp_path):
    whole, first, second = (make(double=False, fake_steps=2, noise_mode="random") for _ in range(3))
    for trainer in (whole, first):
        trainer.warm_up_step()
        trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(first, {}), path)
    load_state(second, read_state(path), {})
    for trainer in (whole, second):
        trainer.step()
    for name in modules(whole):
        tensors = (modules(trainer)[name].state_dict() for trainer in (whole, second))
        assert all(torch.equal(a, b) for a, b in zip(*(t.values() for t in tensors), strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "sds"}, "objective=sds"),
        ({"sigma": "karras"}, "sigma=karras"),
        ({"sigma": "lognormal:-1.2,1.2->lognormal:0,1.2"}, "fake_sigma="),
        ({"fake_augment": 0.1}, "fake_augment=0"),
        ({"paired_dropout": True, "fake_dropout": False}, "paired_dropout=True or fake_dropout=False"),
    ],
)
def test_what_it_cannot_go_with(changes, words):
    with pytest.raises(UserError, match=words):
        RunConfig(gan="g", teacher="t", share_unet=True, **changes)
    RunConfig(gan="g", teacher="t", **changes)


def test_equal_noise_levels_may_be_written_differently():
    RunConfig(gan="g", teacher="t", share_unet=True, sigma="lognormal", fake_sigma="lognormal:-1.2,1.2")


def test_noise_levels_of_the_preset_count(fixture_path):
    pair = {
        "gan": str(fixture_path("sg2ada/b_cond16.pkl")),
        "teacher": str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")),
    }
    given = pair | {"preset": "tiny", "objective": "ikl", "share_unet": True}
    assert RunConfig.from_preset(**given, sigma=PRESETS["tiny"].options["fake_sigma"]).share_unet
    with pytest.raises(UserError, match=r"not sigma=lognormal:0\.5,1 and fake_sigma="):
        RunConfig.from_preset(**given, sigma="lognormal:0.5,1")
