"""Forms of a step, by the passes that the generator's update shares with an update of the fake score.

Each form decides the number of fake-score updates before the generator's update, the scores of a micro-batch, and the
work after the generator's backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from refine.objectives import Scores
from refine.training.inputs import StepInputs

if TYPE_CHECKING:
    from refine.training.trainer import Trainer


class FreshBatches:
    """Form without sharing: every update has its own images and noise."""

    shares_images = False
    shares_noise = False

    def num_separate_updates(self, fake_steps: int) -> int:
        """Number of fake-score updates before the generator's update."""
        return fake_steps

    def teacher_dropout(self, options: Any) -> bool:
        """True if the teacher uses dropout in the generator's update."""
        return bool(options.paired_dropout)

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Estimates of both denoisers for the generator's loss.

        Args:
            trainer: Trainer of the step.
            x0: Generated images at the teacher's resolution, [N, C, R, R].
            x_t: The same images with noise, [N, C, R, R].
            inputs: Inputs of the micro-batch.
        """
        teacher = trainer.estimate(trainer.guide, x_t, inputs)
        fake = trainer.estimate(trainer.fake_score.network, x_t, inputs)
        return Scores(x0, inputs.sigma, teacher, fake)

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """Work on a micro-batch after the generator's graph is freed."""

    def finish(self, trainer: Trainer) -> None:
        """Work after the last micro-batch, before the generator's weights change."""


class NoFakeScore(FreshBatches):
    """Form for objectives that need only the teacher."""

    def num_separate_updates(self, fake_steps: int) -> int:
        """Zero."""
        return 0

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Estimate of the teacher, in place of both estimates."""
        teacher = trainer.estimate(trainer.guide, x_t, inputs)
        return Scores(x0, inputs.sigma, teacher, teacher)


class SharedImages(FreshBatches):
    """Form with one generator pass: the last fake-score update uses the images of the generator's update."""

    shares_images = True

    def num_separate_updates(self, fake_steps: int) -> int:
        """Number of all updates but the last, which shares the images."""
        return fake_steps - 1

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """Trains the fake score after the generator's backward pass, so that memory holds one graph at a time."""
        trainer.fake_score_backward(x0, inputs)

    def finish(self, trainer: Trainer) -> None:
        """Updates the fake score's weights."""
        trainer.fake_score.apply(trainer.progress, trainer.statistics)


class SharedPass(SharedImages):
    """Form with one fake-score pass as well: its estimate serves both its own loss and the generator's gradient.

    Both updates have the same noise levels and noise, and the teacher has the fake score's dropout masks.
    """

    shares_noise = True

    def teacher_dropout(self, options: Any) -> bool:
        """True if the fake score uses dropout."""
        return bool(options.fake_dropout)

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Estimates of both denoisers; the fake score is trained first, and its graph is freed at once."""
        fake = trainer.fake_score_backward(x0, inputs)
        teacher = trainer.estimate(trainer.guide, x_t, inputs, purpose="dropout")
        return Scores(x0, inputs.sigma, teacher, fake)

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """No work: the fake score already has its gradient."""


def choose_sharing(*, needs_fake: bool, share_forward: bool, share_unet: bool) -> FreshBatches:
    """Form of a step for an objective and the user's options.

    Args:
        needs_fake: Whether the objective needs a fake score.
        share_forward: Whether both updates share a generator pass.
        share_unet: Whether both updates share a fake-score pass, too.
    """
    if not needs_fake:
        return NoFakeScore()
    return SharedPass() if share_unet else SharedImages() if share_forward else FreshBatches()
