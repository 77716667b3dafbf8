"""Intermediate teachers from the warm-up, used in reverse (DisBack, Zhang et al., arXiv 2408.15991).

During the warm-up the fake score moves from the teacher to the generator. Its states on the way are a path of denoisers
between the two distributions. The refinement begins at the generator's end of the path: each state in turn takes the
teacher's place, then the teacher itself. So the generator always follows a distribution that is not far away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from refine.contracts import Denoiser

if TYPE_CHECKING:
    from refine.training.trainer import Trainer

SHARE = 0.25  # of the run, over which the intermediate teachers are used; each for an equal part


class NoBacktrack:
    """No intermediate teachers."""

    networks: Sequence[Denoiser] = ()
    count = 0

    def guide(self, trainer: Trainer) -> Denoiser:
        """Denoiser that the generator follows: the teacher."""
        return trainer.teacher

    def record(self, trainer: Trainer, batch: int) -> None:
        """Keeps nothing."""

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Kept states of the fake score, oldest first."""
        return []

    def load_state_dict(self, states: list[dict[str, Tensor]]) -> None:
        """Restores states that `state_dict` returned."""


class Backtrack(NoBacktrack):
    """States of the fake score from the warm-up, and the denoiser that takes their weights.

    Args:
        network: Frozen copy of the teacher, on the device of the run; its weights are overwritten.
        count: Number of intermediate teachers, at least 1.
    """

    def __init__(self, network: Denoiser, count: int) -> None:
        self.network, self.count = network, count
        self.networks = (network,)
        self._states: list[dict[str, Tensor]] = []
        self._loaded: int | None = None

    def guide(self, trainer: Trainer) -> Denoiser:
        """Denoiser that the generator follows at this position of the run: a state of the warm-up, or the teacher."""
        index = len(self._states) - 1 - int(trainer.position() / SHARE * max(len(self._states), 1))
        if index < 0:
            if trainer.progress.step:  # the path is behind
                self._states = []
            return trainer.teacher
        if self._loaded != index:
            self.network.module.load_state_dict(self._states[index])
            self._loaded = index
        return self.network

    def record(self, trainer: Trainer, batch: int) -> None:
        """Keeps the state of the fake score if the warm-up has just passed one of `count` evenly spaced places.

        Args:
            trainer: Trainer after a step of the warm-up.
            batch: Images of that step.
        """
        interval = trainer.options.warmup_kimg * 1000 / (self.count + 1)
        nimg = trainer.progress.warmup_nimg
        passed = int(nimg / interval) > int((nimg - batch) / interval)
        if passed and len(self._states) < self.count:
            state: dict[str, Any] = trainer.fake_score.module.state_dict()
            self._states.append({name: tensor.detach().cpu().clone() for name, tensor in state.items()})

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Kept states of the fake score, oldest first."""
        return list(self._states)

    def load_state_dict(self, states: list[dict[str, Tensor]]) -> None:
        """Restores states that `state_dict` returned."""
        self._states, self._loaded = list(states), None
