"""Compiled and recomputed blocks give what plain ones give, and dropout is dropout."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from trainers import GAN, TEACHER, golden_pair, trainer_of

from refine.networks.edm_layers import dropout
from refine.networks.loading import load_generator, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.training import trainer as trainer_module
from refine.training.acceleration import checkpoint_blocks, compile_blocks


def blocks_of(network):
    adapter = as_generator if hasattr(network, "synthesis") else as_denoiser
    return adapter(network).blocks()


@pytest.fixture(scope="module")
def networks():
    networks = {"generator": load_generator(GAN).network, "denoiser": load_teacher(TEACHER).network.train()}
    for network in networks.values():
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("map_augment" not in name)  # which these tests leave out
    return networks


def run(network, gradients=True):
    """Images or estimates, and the gradients of all parameters, with the same random numbers each time."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.eye(5)[[0, 3]]
    torch.manual_seed(3)
    with torch.set_grad_enabled(gradients):
        if hasattr(network, "synthesis"):
            y = network(torch.randn(2, network.z_dim, generator=rng), labels, noise_mode="random")
        else:
            y = network(torch.randn(2, network.img_channels, 16, 16, generator=rng), torch.tensor([0.3, 2.0]), labels)
    if not gradients:
        return [y]
    return [y, *torch.autograd.grad(y.square().sum(), [p for p in network.parameters() if p.requires_grad])]


def kept_bytes(network):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(network)
    return sum(sizes)


@pytest.mark.parametrize("name", ["generator", "denoiser"])
def test_recomputed_blocks_are_the_same_with_noise_and_dropout(networks, name):
    plain, changed = networks[name], copy.deepcopy(networks[name])
    checkpoint_blocks(blocks_of(changed))
    assert len(blocks_of(changed)) > 1
    assert all(torch.equal(a, b) for a, b in zip(run(plain), run(changed), strict=True))
    assert torch.equal(run(plain, False)[0], run(changed, False)[0])
    assert kept_bytes(changed) < kept_bytes(plain) / 2
    assert changed.state_dict().keys() == plain.state_dict().keys()


def same_when_compiled(plain, backend):
    changed = copy.deepcopy(plain)
    compile_blocks(blocks_of(changed), backend)
    assert len(blocks_of(changed)) > 1
    for gradients in (False, True):
        for a, b in zip(run(plain, gradients), run(changed, gradients), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.detach().abs().max()))
    assert changed.state_dict().keys() == plain.state_dict().keys()


def without_dropout(network):
    # The compiled form leaves dropout to PyTorch, which draws other numbers.
    return copy.deepcopy(network).eval()


@pytest.mark.parametrize("name", ["generator", pytest.param("denoiser", marks=pytest.mark.slow)])
def test_blocks_are_compiled_whole(networks, name):
    """Without graph breaks, that is: fullgraph raises an error at the first."""
    same_when_compiled(without_dropout(networks[name]), "aot_eager")


@pytest.mark.slow
def test_inductor_gives_what_eager_gives(networks):
    """The generator only: compiling the denoiser, which `aot_eager` has above, takes minutes."""
    same_when_compiled(without_dropout(networks["generator"]), "inductor")


def test_a_run_with_checkpoints_is_the_same_run():
    weights = []
    for checkpoint in (False, True):
        trainer = trainer_of(golden_pair(), batch=4, kimg=1.0, checkpoint=checkpoint, glr=1e-3, flr=1e-3)
        for _ in range(2):
            trainer.step()
        weights.append([p for network in trainer.networks for p in network.module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("shape", [(1000, 999), (3,), (0,)])
def test_dropout_has_its_probability_and_keeps_the_mean(shape):
    x, p = torch.ones(shape, requires_grad=True), 0.13
    torch.manual_seed(0)
    y = dropout(x, p, training=True)
    kept = y != 0
    torch.testing.assert_close(y, kept / (1 - p))
    if y.numel() > 1000:
        n = y.numel()
        assert abs(kept.float().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
        neighbors = (kept[:, 1:] == kept[:, :-1]).float().mean()
        assert abs(neighbors - (p**2 + (1 - p) ** 2)) < 5 / math.sqrt(n)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, kept / (1 - p))
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p, training=True), y)


def test_dropout_at_its_limits():
    x = torch.randn(1000)
    assert dropout(x, 0.3, training=False) is x or torch.equal(dropout(x, 0.3, training=False), x)
    assert torch.equal(dropout(x, 0.0, training=True), x)
    assert not dropout(x, 1.0, training=True).any()


def gradients_of_a_step(**changes):
    """Of generator and fake score, where both scores differ; without dropout, which compiled networks draw anew."""
    options = {"batch": 2, "kimg": 1.0, "beta1": 0.0, "fake_dropout": False, "noise_mode": "const"}
    trainer = trainer_of(golden_pair(), **options, **changes)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.fake_score.module.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    trainer.step()
    adams = [network.optimizer.adam for network in trainer.networks]
    return [[state["exp_avg"] for state in adam.state.values()] for adam in adams]  # with beta1=0, the gradients


def same_gradients(found, expected):
    for a, b in zip(found, expected, strict=True):
        scale = max(float(gradient.abs().max()) for gradient in b)
        assert scale > 0
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4 * float(y.abs().max()) + 1e-6 * scale)


@pytest.fixture(scope="module")
def eager_gradients():
    return gradients_of_a_step()


def compile_one(monkeypatch, backend):
    """Has `--compile` compile one block of each network: all of them take minutes."""
    monkeypatch.setattr(trainer_module, "compile_blocks", lambda blocks: compile_blocks(blocks[1:2], backend))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_of_compiled_networks(monkeypatch, eager_gradients, checkpoint):
    """`aot_eager` traces what inductor would compile, and keeps PyTorch's arithmetic; also under checkpoints."""
    compile_one(monkeypatch, "aot_eager")
    same_gradients(gradients_of_a_step(compile=True, checkpoint=checkpoint), eager_gradients)


@pytest.mark.slow
def test_a_step_by_inductor_under_checkpoints(monkeypatch, eager_gradients):
    compile_one(monkeypatch, "inductor")
    same_gradients(gradients_of_a_step(compile=True, checkpoint=True), eager_gradients)
