"""Forms of a step: which passes the generator's update and one of the fake score's updates share.

Each form answers three questions of `Trainer.step`: how many updates of the fake score come before the generator's,
what the scores of a micro-batch are, and what follows the generator's backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from refine.objectives import Scores
from refine.training.inputs import StepInputs

if TYPE_CHECKING:
    from refine.training.trainer import Trainer


class FreshBatches:
    """No pass is shared: every update has images and noise of its own."""

    shares_images = False
    shares_noise = False

    def num_separate_updates(self, fake_steps: int) -> int:
        """Updates of the fake score before the generator's."""
        return fake_steps

    def teacher_dropout(self, options: Any) -> bool:
        """Whether the teacher has its dropout on when it looks at generated images."""
        return bool(options.paired_dropout)

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Estimates of both denoisers for the generator's loss."""
        teacher = trainer.estimate(trainer.teacher, x_t, inputs)
        fake = trainer.estimate(trainer.fake_score.network, x_t, inputs)
        return Scores(x0, inputs.sigma, teacher, fake)

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """Work on a micro-batch once the generator's graph is gone."""

    def finish(self, trainer: Trainer) -> None:
        """Work after the last micro-batch, before the generator moves."""


class NoFakeScore(FreshBatches):
    """The objective looks at the teacher alone."""

    def num_separate_updates(self, fake_steps: int) -> int:
        """None."""
        return 0

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """The teacher's estimate, in the place of both."""
        teacher = trainer.estimate(trainer.teacher, x_t, inputs)
        return Scores(x0, inputs.sigma, teacher, teacher)


class SharedImages(FreshBatches):
    """One pass of the generator: the fake score's last update takes the images of the generator's."""

    shares_images = True

    def num_separate_updates(self, fake_steps: int) -> int:
        """All but the one that shares the images."""
        return fake_steps - 1

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """Fits the fake score after the generator's backward pass: one graph at a time in memory."""
        trainer.fake_score_backward(x0, inputs)

    def finish(self, trainer: Trainer) -> None:
        """Updates the fake score."""
        trainer.fake_score.apply(trainer.progress, trainer.statistics)


class SharedPass(SharedImages):
    """One pass of the fake score as well: the estimate that it learns from moves the generator.

    Both see one noise level and one noise, and the teacher has the fake score's dropout masks.
    """

    shares_noise = True

    def teacher_dropout(self, options: Any) -> bool:
        """As the fake score's."""
        return bool(options.fake_dropout)

    def scores(self, trainer: Trainer, x0: Tensor, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Fits the fake score first: the graph of that pass is gone before anything else is computed."""
        fake = trainer.fake_score_backward(x0, inputs)
        teacher = trainer.estimate(trainer.teacher, x_t, inputs, purpose="dropout")
        return Scores(x0, inputs.sigma, teacher, fake)

    def after_backward(self, trainer: Trainer, x0: Tensor, inputs: StepInputs) -> None:
        """Nothing: the fake score has its gradient already."""


def choose_sharing(*, needs_fake: bool, share_forward: bool, share_unet: bool) -> FreshBatches:
    """Form of a step for an objective and the user's options."""
    if not needs_fake:
        return NoFakeScore()
    return SharedPass() if share_unet else SharedImages() if share_forward else FreshBatches()
