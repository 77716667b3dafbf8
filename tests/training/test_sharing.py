"""One pass of the fake score for both updates: the gradients by hand, what it cannot go with, what it costs."""

from __future__ import annotations

import weakref

import pytest
import torch

from refine import load_gan, load_teacher
from refine.config import RunConfig
from refine.errors import UserError
from refine.runs.start import make_trainer
from refine.training.memory import estimate_memory
from refine.training.profiling import Ceilings, Clock, Counter, Parts, parts_of
from refine.training.state import load_state, read_state, state_of

CPU = torch.device("cpu")


@pytest.fixture
def make(fixture_path):
    """Trainers of the golden pair, by default in float64."""

    def trainer(double=True, **changes):
        options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "noise_mode": "const", "share_unet": True}
        config = RunConfig(gan="g", teacher="t", **(options | changes))
        gan = load_gan(str(fixture_path("sg2ada/b_cond16.pkl")))
        teacher = load_teacher(str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")))
        if double:
            gan.network.double()
            teacher.network.double()
        return make_trainer(config, gan, teacher, CPU)

    return trainer


def gradients_by_hand(trainer):
    """Of both networks for the draws of step 0, from the formulas alone."""
    config, generator, fake, teacher = trainer.config, trainer.generator, trainer.fake, trainer.teacher
    of_generator, of_fake = (o.parameters for o in (trainer.generator_optimizer, trainer.fake_optimizer))
    totals = [[torch.zeros_like(p) for p in parameters] for parameters in (of_generator, of_fake)]
    for draws, seeds in trainer._micro_batches("generator", 0):
        images = generator.synthesis(generator.mapping(draws.z, draws.c), noise_mode="const", force_fp32=True)
        x0 = images.detach()
        sigma = draws.sigma.reshape(-1, 1, 1, 1)
        x_t = x0 + sigma * draws.noise
        estimates = []
        for network in (fake, teacher):
            network.train(config.fake_dropout)
            seeds.seed_torch("dropout")
            estimates.append(network(x_t, draws.sigma, draws.c))
            network.eval()
        lam = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        loss = (lam * (estimates[0] - x0) ** 2).sum() / config.batch
        towards = (estimates[0] - estimates[1]).detach() / config.batch
        parts = (
            torch.autograd.grad(images, of_generator, towards, materialize_grads=True),
            torch.autograd.grad(loss, of_fake, allow_unused=True, materialize_grads=True),
        )
        for total, part in zip(totals, parts, strict=True):
            for a, b in zip(total, part, strict=True):
                a += b
    return totals


@pytest.mark.parametrize(
    "changes", [{}, {"fake_dropout": False}, {"batch_gpu": 2}, {"checkpoint": True, "batch_gpu": 3, "batch": 6}]
)
def test_gradients_are_those_computed_by_hand(make, changes):
    trainer = make(**changes)
    for _ in range(2):
        trainer.warm_up_step()
    expected = gradients_by_hand(trainer)
    trainer._generator_update(0)
    for optimizer, wanted in zip((trainer.generator_optimizer, trainer.fake_optimizer), expected, strict=True):
        largest = max(float(g.abs().max()) for g in wanted)
        assert largest > 0
        for parameter, gradient in zip(optimizer.parameters, wanted, strict=True):
            found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
            assert (found - gradient).abs().max() <= 1e-12 * largest


def test_processes_share_the_work(make, monkeypatch):
    """The parts of two processes add up to the whole."""
    whole = make(fake_dropout=False)
    parts = [make(fake_dropout=False) for _ in range(2)]
    for trainer in (whole, *parts):
        trainer.warm_up_step()
    whole._generator_update(0)
    for index, trainer in enumerate(parts):
        monkeypatch.setattr(
            "refine.runtime.distributed.share", lambda count, index=index: slice(2 * index, 2 * index + 2)
        )
        trainer._generator_update(0)
    for name in ("generator_optimizer", "fake_optimizer"):
        parameters = [getattr(trainer, name).parameters for trainer in (whole, *parts)]
        largest = max(float(p.grad.abs().max()) for p in parameters[0] if p.grad is not None)
        for a, b, c in zip(*parameters, strict=True):
            assert a.grad is None or (a.grad - b.grad - c.grad).abs().max() <= 1e-12 * largest


@pytest.mark.parametrize("fake_dropout", [True, False])
def test_equal_networks_agree(make, fake_dropout):
    """Before the warm-up fake score and teacher are one network, and with one mask they say the same."""
    trainer = make(double=False, fake_dropout=fake_dropout)
    trainer._generator_update(0)
    means = trainer.averages.means()
    assert means["Score/gap"] == 0 and means["Loss/fake"] > 0
    assert all(not p.grad.any() for p in trainer.generator_optimizer.parameters)


def test_a_step_is_one_pass_of_each_network(make):
    """Operations of the U-Nets: the teacher once, the fake score once with its backward pass."""
    trainer = make(double=False)
    parts = Parts(Clock(CPU))
    with parts_of(trainer, parts), Counter(Ceilings(), parts) as counter:
        trainer.step()
    flop = {name: work.flop for name, work in counter.by_part.items()}
    assert flop["fake score, forward"] == flop["teacher, forward"] > 0
    assert flop["teacher, forward"] < flop["fake score, backward"] <= 2.2 * flop["teacher, forward"]


def test_the_fake_scores_graph_is_gone_when_the_teacher_begins(make, monkeypatch):
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    trainer, kept, counts = make(double=False), weakref.WeakSet(), []
    of_fake, of_teacher = trainer.fake.forward, trainer.teacher.forward

    def keep(tensor):
        kept.add(one := Kept(tensor))
        return one

    def fake_forward(*args):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
            denoised = of_fake(*args)
        counts.append(len(kept))
        return denoised

    def teacher_forward(*args):
        counts.append(len(kept))
        return of_teacher(*args)

    monkeypatch.setattr(trainer.fake, "forward", fake_forward)
    monkeypatch.setattr(trainer.teacher, "forward", teacher_forward)
    trainer.step()
    assert counts[0] > 100 and counts[1:] == [0]


def test_both_graphs_are_in_memory(make):
    shared, alone = (make(double=False, batch_gpu=1, share_unet=share) for share in (True, False))
    sizes = [estimate_memory(trainer, trainer.config).activations for trainer in (shared, alone)]
    assert sizes[1] < sizes[0] < 2 * sizes[1]


def test_goes_on_as_if_never_stopped(make, tmp_path):
    whole, first, second = (make(double=False, fake_steps=2, noise_mode="random") for _ in range(3))
    for trainer in (whole, first):
        trainer.warm_up_step()
        trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(first, {}), path)
    load_state(second, read_state(path), {})
    for trainer in (whole, second):
        trainer.step()
    for name in ("generator", "generator_ema", "fake"):
        tensors = (getattr(trainer, name).state_dict() for trainer in (whole, second))
        assert all(torch.equal(a, b) for a, b in zip(*(t.values() for t in tensors), strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "sds"}, "nothing to share with objective=sds"),
        ({"sigma": "karras"}, "give both the same"),
        ({"sigma": "lognormal:-1.2,1.2->lognormal:0,1.2"}, "give both the same"),
        ({"fake_augment": 0.1}, "use fake_augment=0"),
        ({"paired_dropout": True, "fake_dropout": False}, "leave out paired_dropout=True or fake_dropout=False"),
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
    given = pair | {"preset": "tiny", "share_unet": True}
    assert RunConfig.from_preset(**given, sigma="lognormal:0,1.2").share_unet
    with pytest.raises(UserError, match=r"not sigma=lognormal:0\.5,1 and fake_sigma="):
        RunConfig.from_preset(**given, sigma="lognormal:0.5,1")
