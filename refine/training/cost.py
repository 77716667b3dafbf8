"""Cost of a step in U-Net units: how much work the passes of teacher and fake score are, per image of the batch.

A forward pass is 1 unit. So is each of the two parts of a backward pass, the gradient of the input and that of the
weights. Fitting the fake score takes 3; a pass that the generator's gradient goes through, with the network's weights
constant, takes 2. Recomputed activations (`--checkpoint`) add 1 to each pass that is differentiated. A guide counts as
the network that it guides. A one-step generator is a U-Net itself: 3 for its update, and 1 for the images of each other
update. Other generators, the head of the density ratio and optimizers are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from refine.diffusion.guidance import parts_of
from refine.training.trainer import Trainer, is_unet


@dataclass(frozen=True)
class StepCost:
    """U-Net units of a step.

    Attributes:
        generator: Units of the generator's update: estimates of teacher and fake score, and gradients through them.
        fake_score: Units of all updates of the fake score.
        ratio: Units of the density ratio's update: features of generated images and of the teacher's samples.
        drawing: Units of a one-step generator itself, in all updates.
    """

    generator: int
    fake_score: int
    ratio: int
    drawing: int = 0

    @property
    def total(self) -> int:
        """Units of the whole step."""
        return self.generator + self.fake_score + self.ratio + self.drawing

    def __str__(self) -> str:
        parts = {
            "generator": self.generator,
            "fake score": self.fake_score,
            "density ratio": self.ratio,
            "one-step generator's images": self.drawing,
        }
        listed = ", ".join(f"{name} {units}" for name, units in parts.items() if units)
        return f"{self.total} U-Net units per step ({listed}; a forward pass is 1, forward and backward are 3)"


def step_cost(trainer: Trainer) -> StepCost:
    """Units of a trainer's step."""
    options = trainer.options
    recomputed = int(options.checkpoint)

    def estimate(through: bool) -> int:
        return 2 + recomputed if through else 1

    needs_fake = trainer.objective.needs_fake
    drawing = 0
    if is_unet(trainer.generator.network):
        fake_updates = trainer.sharing.num_separate_updates(options.fake_steps) if needs_fake else 0
        drawing = 3 + recomputed + fake_updates + bool(trainer.ratio.trained)
    teachers = len(parts_of(trainer.teacher))  # with its guide
    fakes = len(parts_of(trainer.fake_score.network)) if needs_fake else 0
    own_estimate = needs_fake and not trainer.sharing.shares_noise
    return StepCost(
        generator=teachers * estimate(trainer.through_teacher)
        + (fakes * estimate(trainer.through_fake_score) if own_estimate else 0),
        fake_score=options.fake_steps * (3 + recomputed + fakes - 1) if needs_fake else 0,
        ratio=2 * teachers if trainer.ratio.trained else 0,
        drawing=drawing,
    )
