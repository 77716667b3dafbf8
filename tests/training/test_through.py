"""Gradients of the generator that pass through teacher, fake score and ratio: exact, in every form, and their price."""

from __future__ import annotations

import copy

import pytest
import torch
from trainers import golden_pair, gradients_kept, trainer_of

from refine.runtime.spans import listening
from refine.training.acceleration import compile_blocks
from refine.training.cost import step_cost
from refine.training.memory import estimate_memory
from refine.training.profiling import Ceilings, Clock, Counter, Parts
from refine.training.state import load_state, read_state, state_of
from stylegan_ops import dispatch

CPU = torch.device("cpu")
THROUGH = ["sid:alpha=1.2", "sim:c=0.1", "fgm", "fisher:kl", "smart"]


@pytest.fixture(autouse=True, scope="module")
def shared_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNNLIB_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def make(objective, *, double=True, **changes):
    options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0, "noise_mode": "const", "fake_dropout": False}
    trainer = trainer_of(
        golden_pair(double=double), **(options | {"objective": objective, "ratio_samples": 8} | changes)
    )
    for _ in range(2 if trainer.needs_warm_up else 0):
        trainer.warm_up_step()
    return trainer


def gradient_of(trainer):
    with gradients_kept(trainer) as kept:
        trainer.move_generator()
    return torch.cat([g.flatten() for g in kept["generator"] if g is not None])


def sid_by_hand(x0, teacher, fake, alpha):
    delta = teacher - fake
    weight = 1 / (x0 - teacher).abs().mean([1, 2, 3]).detach()
    return weight * (delta * (teacher - x0 - alpha * delta)).sum([1, 2, 3])


BY_HAND = {
    "sid:alpha=1.2": lambda *scores: sid_by_hand(*scores, 1.2),
    "sid:alpha=0.5": lambda *scores: sid_by_hand(*scores, 0.5),
    "uid": lambda x0, t, f: ((t - x0) ** 2 - (f - x0) ** 2).sum([1, 2, 3]),
    "sim:distance=l2": lambda x0, t, f: 2 * ((t - f) * (f - x0)).sum([1, 2, 3]),
    "smart:uniform": lambda x0, t, f: ((x0 - t) ** 2).sum([1, 2, 3]),
}


@pytest.mark.parametrize("objective", BY_HAND)
def test_gradient_is_that_computed_by_hand(objective):
    """On copies of the networks, with nothing of the trainer's but its inputs."""
    trainer = make(objective, batch_gpu=2)
    generator = copy.deepcopy(trainer.generator.module)
    teacher = copy.deepcopy(trainer.teacher.module)
    fake = copy.deepcopy(trainer.fake_score.module if trainer.objective.needs_fake else trainer.teacher.module)
    total = 0.0
    for inputs in trainer.inputs("generator", 0):
        x0 = generator.synthesis(generator.mapping(inputs.z, inputs.c), noise_mode="const", force_fp32=True)
        x_t = x0 + inputs.sigma.reshape(-1, 1, 1, 1) * inputs.noise
        labels = trainer.bridge.labels(inputs.c)
        estimates = [network(x_t, inputs.sigma, labels) for network in (teacher, fake)]
        total = total + BY_HAND[objective](x0, *estimates).sum() / 4
    gradients = torch.autograd.grad(total, [p for p in generator.parameters() if p.requires_grad], allow_unused=True)
    expected = torch.cat([g.flatten() for g in gradients if g is not None])
    found = gradient_of(trainer)
    assert expected.abs().max() > 0 and (found - expected).abs().max() <= 1e-10 * expected.abs().max()


ALIKE = [pytest.param(objective, marks=pytest.mark.slow) for objective in ("sim:c=0.1", "fgm", "smart")]


@pytest.mark.parametrize("objective", ["sid:alpha=1.2", "fisher:kl", *ALIKE])
def test_forms_of_a_step_agree(objective):
    """Micro-batches, recomputed activations and traced blocks give the gradient of the plain step."""
    plain = gradient_of(make(objective))
    compiled = make(objective)
    networks = [compiled.teacher, *([compiled.fake_score.network] if compiled.objective.needs_fake else [])]
    for network in networks:
        compile_blocks(network.blocks()[:1], "aot_eager")
    for trainer in (make(objective, batch_gpu=1), make(objective, checkpoint=True), compiled):
        assert (gradient_of(trainer) - plain).abs().max() <= 1e-9 * plain.abs().max()


@pytest.mark.parametrize("objective", [*THROUGH, "sid:alpha=0.5"])
def test_half_precision_follows_float32(objective):
    """U-Nets in bf16 change the direction of the generator's gradient by a cosine above 0.98."""
    directions = []
    for precision in ("fp32", "bf16"):
        trainer = make(objective, double=False, precision="fp32")
        trainer.precision = precision  # from here on: both have the same networks
        directions.append(gradient_of(trainer))
    assert all(d.dtype == torch.float32 and d.isfinite().all() for d in directions)
    cosine = float(torch.nn.functional.cosine_similarity(*directions, dim=0))
    assert cosine > 0.98, cosine


@pytest.mark.parametrize("changes", [{}, {"share_forward": True}, {"fake_steps": 2, "batch_gpu": 2}])
def test_the_fake_scores_gradient_is_its_own(changes):
    """A step of SiD fits the fake score exactly as a step of IKL does, whatever passes through."""
    gradients = []
    for objective in ("ikl", "sid"):
        trainer = make(objective, **changes)
        with gradients_kept(trainer) as kept:
            trainer.step()
        gradients.append(kept["fake_score"])
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("objective", ["sid", "fisher:kl"])
def test_goes_on_as_if_never_stopped(objective, tmp_path):
    whole, first, second = (make(objective, double=False, fake_dropout=True, noise_mode="random") for _ in range(3))
    for trainer in (whole, first):
        trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(first, {}), path)
    load_state(second, read_state(path), {})
    for trainer in (whole, second):
        trainer.step()
    for a, b in zip(whole.networks, second.networks, strict=True):
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.module.state_dict().values(), b.module.state_dict().values(), strict=True)
        )


# -- price -------------------------------------------------------------------------------------------------


def kept_for_backward(trainer):
    """Bytes that the generator's update keeps for its backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for n in trainer.networks for p in n.module.parameters()}
    own |= {p.untyped_storage().data_ptr() for p in trainer.teacher.module.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.move_generator()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("objective", ["sid", "sim", "fisher:js", "smart"])
def test_memory_is_what_was_estimated(objective):
    """Within a tenth of what plain PyTorch keeps; our own kernels keep less."""
    trainer = make(objective, double=False)
    estimated = estimate_memory(trainer).activations
    assert all(p.grad is None for n in trainer.networks for p in n.module.parameters())
    assert "Loss/gan" not in trainer.statistics.means() and dispatch._mode is None
    with_kernels = kept_for_backward(trainer)
    with dispatch.temporary_mode("off"):
        assert kept_for_backward(trainer) == pytest.approx(estimated, rel=0.1)
    assert with_kernels <= 1.01 * estimated
    assert estimated > 3 * estimate_memory(make("sds", double=False)).activations


def flop_of_a_step(trainer):
    parts = Parts(Clock(CPU))
    with listening(parts), Counter(Ceilings(), parts) as counter:
        trainer.step()
    return {name: work.flop for name, work in counter.by_part.items()}


@pytest.mark.parametrize(
    ("objective", "changes", "parts"),
    [
        ("ikl", {}, (2, 3, 0)),
        ("ikl", {"share_unet": True}, (1, 3, 0)),
        ("ikl", {"fake_steps": 3}, (2, 9, 0)),
        ("ikl", {"gan_weight": 1.0}, (3, 3, 2)),
        ("sid", {}, (4, 3, 0)),
        ("sid", {"checkpoint": True}, (6, 4, 0)),
        ("f:js", {}, (2, 3, 2)),
        ("fisher:js", {}, (4, 3, 2)),
        ("sds", {}, (1, 0, 0)),
        ("smart", {}, (2, 0, 0)),
    ],
)
def test_units_of_a_step(objective, changes, parts):
    cost = step_cost(make(objective, double=False, **changes))
    assert (cost.generator, cost.fake_score, cost.ratio) == parts and cost.total == sum(parts)
    assert f"{sum(parts)} U-Net units" in str(cost)


def test_units_are_operations():
    """A step of SiD computes two gradients by the input more than one of IKL: two units, within a tenth."""
    counts = {name: flop_of_a_step(make(name, double=False)) for name in ("ikl", "sid", "f:js")}
    unit = counts["ikl"]["teacher, forward"]
    assert unit == counts["ikl"]["fake score, forward"] / 2 > 0
    assert counts["ikl"]["fake score, backward"] == pytest.approx(2 * unit, rel=0.1)
    more = sum(counts["sid"].values()) - sum(counts["ikl"].values())
    assert more == pytest.approx(2 * unit, rel=0.1)
    assert counts["f:js"]["teacher, forward"] == pytest.approx(3 * unit, rel=0.35)  # once more where it is held out
    assert counts["f:js"]["ratio, forward"] > 0 and counts["f:js"]["ratio, backward"] > 0
