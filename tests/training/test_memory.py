"""The memory estimate against what tensors really take."""

from __future__ import annotations

import torch
from torch import nn

from refine import load_gan, load_teacher
from refine.config import RunConfig
from refine.runs.start import make_trainer
from refine.training.memory import estimate_memory, format_bytes, saved_bytes
from refine.training.state import state_of


def trainer_of(fixture_path, **changes):
    config = RunConfig(gan="g", teacher="t", **({"batch": 8, "batch_gpu": 2} | changes))
    gan = load_gan(str(fixture_path("sg2ada/b_cond16.pkl")))
    teacher = load_teacher(str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")))
    return make_trainer(config, gan, teacher, torch.device("cpu")), config


def test_saved_bytes_of_a_known_network():
    """Two linear layers and a ReLU keep the input, the layers' results once each, and no parameters."""
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.ones(3, 10)
    size, result = saved_bytes(lambda: network(x), network)
    assert size == 4 * (3 * 10 + 3 * 20) and result.shape == (3, 5)
    with torch.no_grad():
        assert saved_bytes(lambda: network(x), network)[0] == 0


def test_counts_are_those_of_a_step(fixture_path):
    """Weights, gradients and moments after a step, tensor by tensor; the state as a file."""
    trainer, config = trainer_of(fixture_path, share_forward=True)  # both networks' gradients are there at its end
    memory = estimate_memory(trainer, config)
    trainer.warm_up_step()
    trainer.step()
    networks = (trainer.generator, trainer.generator_ema, trainer.teacher, trainer.fake)
    assert memory.parameters == sum(p.nbytes for network in networks for p in network.parameters())
    gradients = [p.grad for n in (trainer.generator, trainer.fake) for p in n.parameters() if p.grad is not None]
    unused = trainer.fake.model.map_augment.weight.nbytes  # gets no gradient without augmentation
    assert memory.gradients == sum(g.nbytes for g in gradients) + unused
    optimizers = (trainer.generator_optimizer, trainer.fake_optimizer)
    moments = [t for o in optimizers for s in o.adam.state.values() for k, t in s.items() if k.startswith("exp")]
    assert memory.adam == sum(t.nbytes for t in moments) + 2 * unused

    def size(value):
        if isinstance(value, torch.Tensor):
            return value.nbytes
        return sum(size(v) for v in value.values()) if isinstance(value, dict) else 0

    # Buffers and step counts are not counted.
    assert memory.state - 2 * unused <= size(state_of(trainer, {})) < memory.state * 1.15


def test_activations_grow_with_images_and_shrink_with_frozen_layers(fixture_path):
    def activations(**changes):
        return estimate_memory(*trainer_of(fixture_path, **changes)).activations

    one = activations(batch_gpu=1)
    assert activations(batch_gpu=4) == 4 * one and activations(batch_gpu=None) == 8 * one
    assert activations(batch_gpu=1, share_forward=True) == one  # the graphs of both networks never meet
    assert activations(batch_gpu=1, train_layers="16") <= one
    trainer, config = trainer_of(fixture_path, batch_gpu=None)
    assert estimate_memory(trainer, config, num_processes=4).images == 2


def test_bytes_are_readable():
    assert [format_bytes(n) for n in (12, 3400, 5_600_000, 78_900_000_000)] == ["12 B", "3.4 kB", "5.6 MB", "78.9 GB"]
