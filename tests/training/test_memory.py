"""The memory estimate against what tensors really take."""

from __future__ import annotations

import torch
from torch import nn
from trainers import golden_pair, gradients_kept, modules
from trainers import trainer_of as trainer_of_pair

from refine.runtime.text import format_bytes
from refine.training.memory import estimate_memory, saved_bytes
from refine.training.state import state_of


def trainer_of(**changes):
    return trainer_of_pair(golden_pair(), **({"batch": 8, "batch_gpu": 2} | changes))


def test_saved_bytes_of_a_known_network():
    """Two linear layers and a ReLU keep the input, the layers' results once each, and no parameters."""
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    x = torch.ones(3, 10)
    size, result = saved_bytes(lambda: network(x), network)
    assert size == 4 * (3 * 10 + 3 * 20) and result.shape == (3, 5)
    with torch.no_grad():
        assert saved_bytes(lambda: network(x), network)[0] == 0


def test_counts_are_those_of_a_step():
    """Weights, gradients and moments after a step, tensor by tensor; the state as a file."""
    trainer = trainer_of(share_forward=True)  # both networks' gradients are there at its end
    memory = estimate_memory(trainer)
    trainer.warm_up_step()
    with gradients_kept(trainer) as kept:
        trainer.step()
    networks = (*modules(trainer).values(), trainer.teacher.module)
    assert memory.parameters == sum(p.nbytes for network in networks for p in network.parameters())
    gradients = [g for gradients in kept.values() for g in gradients if g is not None]
    unused = trainer.fake_score.module.model.map_augment.weight.nbytes  # gets no gradient without augmentation
    assert memory.gradients == sum(g.nbytes for g in gradients) + unused
    moments = [
        t
        for n in trainer.networks
        for s in n.optimizer.adam.state.values()
        for k, t in s.items()
        if k.startswith("exp")
    ]
    assert memory.adam == sum(t.nbytes for t in moments) + 2 * unused

    def size(value):
        if isinstance(value, torch.Tensor):
            return value.nbytes
        return sum(size(v) for v in value.values()) if isinstance(value, dict) else 0

    # Buffers and step counts are not counted.
    assert memory.state - 2 * unused <= size(state_of(trainer, {})) < memory.state * 1.15


def test_activations_grow_with_images_and_shrink_with_frozen_layers():
    def activations(**changes):
        return estimate_memory(trainer_of(**changes)).activations

    one = activations(batch_gpu=1)
    assert activations(batch_gpu=4) == 4 * one and activations(batch_gpu=None) == 8 * one
    assert activations(batch_gpu=1, share_forward=True) == one  # the graphs of both networks never meet
    assert activations(batch_gpu=1, train_layers="16") <= one
    trainer = trainer_of(batch_gpu=None)
    assert estimate_memory(trainer, num_processes=4).images == 2


def test_bytes_are_readable():
    assert [format_bytes(n) for n in (12, 3400, 5_600_000, 78_900_000_000)] == ["12 B", "3.4 kB", "5.6 MB", "78.9 GB"]
