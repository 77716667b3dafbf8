"""Trainers of the golden pair and of networks made in a test, and a look at the gradients of a step."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch

from refine.config import TrainingOptions
from refine.networks.loading import load_generator, load_teacher
from refine.networks.preconditioned import as_denoiser
from refine.networks.style_based import as_generator
from refine.pair.bridge import make_bridge
from refine.pair.pair import Pair, pair_of
from refine.training.trainer import Trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
GAN, TEACHER = str(FIXTURES / "sg2ada/b_cond16.pkl"), str(FIXTURES / "edm/s4_sid_ddpmpp_cond16.pkl")
CPU = torch.device("cpu")


def golden_pair(gan=GAN, teacher=TEACHER, *, double=False):
    """Conditional 16-pixel networks, or others; on request in float64."""
    files = load_generator(str(FIXTURES / gan)), load_teacher(str(FIXTURES / teacher))
    if double:
        for file in files:
            file.network.double()
    return pair_of(*files)


def pair_of_modules(generator, teacher):
    """A pair of networks made in a test."""
    networks = as_generator(generator), as_denoiser(teacher)
    return Pair(*networks, make_bridge(*networks))


def trainer_of(pair, **options):
    return Trainer(pair, TrainingOptions(**options), CPU)


def modules(trainer):
    """Every network that a step may change, by the names of the first states."""
    found = {"generator": trainer.generator.module, "generator_ema": trainer.generator.average.network.module}
    if trainer.objective.needs_fake:
        found["fake"] = trainer.fake_score.module
    return found


def weights(trainer):
    return {f"{key}.{name}": v.clone() for key, m in modules(trainer).items() for name, v in m.state_dict().items()}


@contextmanager
def gradients_kept(trainer):
    """Lets a step leave its gradients behind: a list of tensors for each trained network, None where there is none."""
    kept = {}
    originals = {}

    def keep(trained):
        plain = originals[trained.name] = trained.optimizer.step

        def step(lr):
            norm = plain(lr)
            kept[trained.name] = [None if p.grad is None else p.grad.clone() for p in trained.optimizer.parameters]
            return norm

        trained.optimizer.step = step

    for trained in trainer.networks:
        keep(trained)
    try:
        yield kept
    finally:
        for trained in trainer.networks:
            trained.optimizer.step = originals[trained.name]


def gradients_of_move(trainer):
    """Gradients of one update of the generator, and of the updates of other networks that go with it."""
    with gradients_kept(trainer) as kept:
        trainer.move_generator()
    return kept
