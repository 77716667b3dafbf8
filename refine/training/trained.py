"""Trained network: a network with its optimizer, learning rate, moving average and state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from refine.errors import OptionError
from refine.runtime.decay import HalfLife, Power
from refine.runtime.spans import span
from refine.training.optimizer import Optimizer
from refine.training.statistics import RunningMeans

MAX_NONFINITE_IN_A_ROW = 100  # updates; an adaptive loss scale takes some twenty to settle
UPDATE_SPAN = "optimizers, average"


class Trainable(Protocol):
    """Network that can be trained: a generator, a denoiser, or a head on a denoiser's features.

    Attributes:
        module: Module of the network.
    """

    module: torch.nn.Module


Network = TypeVar("Network", bound=Trainable)


@dataclass
class Progress:
    """Position of a run: all that a resumed run needs besides networks and optimizers.

    Attributes:
        step: Number of generator updates so far.
        cur_nimg: Number of images in these updates.
        warmup_nimg: Number of images in the warm-up.
        num_nonfinite: Number of updates skipped because of a gradient that was not finite.
    """

    step: int = 0
    cur_nimg: int = 0
    warmup_nimg: int = 0
    num_nonfinite: int = 0

    def advance(self, batch: int) -> None:
        """Counts a step of `batch` images."""
        self.step += 1
        self.cur_nimg += batch


class EMA(Generic[Network]):
    """Exponential moving average of a network's weights; buffers are copied.

    Args:
        network: Copy of the network, whose weights become the average.
        decay: Decay of the average.
    """

    def __init__(self, network: Network, decay: HalfLife | Power) -> None:
        self.network: Network = network
        self.decay = decay

    @torch.no_grad()
    def update(self, live: torch.nn.Module, cur_nimg: int, batch: int) -> None:
        """Moves the average toward the live weights.

        Args:
            live: Module with the live weights.
            cur_nimg: Images so far.
            batch: Images since the last update of the average.
        """
        beta = self.decay.beta(cur_nimg, batch)
        average = self.network.module
        parameters: list[Tensor] = list(average.parameters())
        torch._foreach_lerp_(parameters, list[Tensor](live.parameters()), 1 - beta)
        buffers = list(average.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(live.buffers()))


class TrainedNetwork(Generic[Network]):
    """Network together with everything that training does to it.

    Args:
        name: Name in states, statistics and messages: `generator`, `fake_score`, `ratio`.
        network: Generator, denoiser or head, whose parameters with `requires_grad` are trained.
        optimizer: Optimizer of these parameters.
        learning_rate: Function from the position of the run to the learning rate.
        average: Moving average of the weights; None for none.
        more_averages: Further moving averages, which are kept beside the first.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        optimizer: Optimizer,
        learning_rate: Callable[[Progress], float],
        average: EMA[Network] | None = None,
        more_averages: Sequence[EMA[Network]] = (),
    ) -> None:
        self.name, self.optimizer, self.learning_rate = name, optimizer, learning_rate
        self.network: Network = network
        self.average: EMA[Network] | None = average
        self.more_averages: Sequence[EMA[Network]] = more_averages
        self._nonfinite_in_a_row = 0
        # EDM2's networks, alone or within a one-step generator, force their weights to a norm after each update.
        modules: Iterable[Any] = network.module.modules()
        self._normalizing = [module for module in modules if hasattr(module, "normalize_weights")]

    @property
    def title(self) -> str:
        """Name in words, such as `fake score`."""
        return self.name.replace("_", " ")

    @property
    def module(self) -> torch.nn.Module:
        """Module of the network."""
        return self.network.module

    def averages(self) -> dict[str, EMA[Network]]:
        """All moving averages by name: `average`, and `average 0.5` for a further one of that decay."""
        first = {"average": self.average} if self.average is not None else {}
        return first | {f"average {average.decay}": average for average in self.more_averages}

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a scalar loss, which is this process's part of a sum over all processes."""
        with span(f"{self.title}, backward"):
            self.optimizer.backward(loss)

    def apply(self, progress: Progress, statistics: RunningMeans) -> bool:
        """Updates the weights with the gradient, summed over processes, and clears the gradient.

        Args:
            progress: Position of the run; skipped updates are counted in it.
            statistics: Means of what steps report; the norm of the gradient is added.

        Returns:
            True if the gradient was finite; if not, the update was skipped and counted.

        Raises:
            UserError: Too many gradients in a row were not finite.
        """
        with span(UPDATE_SPAN):
            norm = self.optimizer.step(self.learning_rate(progress))
            self.optimizer.zero_grad()
        if norm is not None:
            for module in self._normalizing:
                module.normalize_weights()
            self._nonfinite_in_a_row = 0
            statistics.add(f"Gradient/{_STATISTIC.get(self.name, self.name)}_norm", norm)
            return True
        progress.num_nonfinite += 1
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row > MAX_NONFINITE_IN_A_ROW:
            raise OptionError(
                f"The last {MAX_NONFINITE_IN_A_ROW} gradients of the {self.title} were not finite: start a new run "
                "from the newest training state with {init}, with {precision=fp32} or lower {glr} and {flr}."
            )
        return False

    def update_average(self, progress: Progress, batch: int) -> None:
        """Updates the moving averages, if the network has any.

        Args:
            progress: Position of the run.
            batch: Images since the last update of the averages.
        """
        with span(UPDATE_SPAN):
            for average in self.averages().values():
                average.update(self.module, progress.cur_nimg, batch)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State dicts of the network, under `module`, and of its moving averages, under the names of `averages`."""
        averages = {name: average.network.module.state_dict() for name, average in self.averages().items()}
        return {"module": self.module.state_dict(), **averages}

    def load_weights(self, weights: dict[str, dict[str, Tensor]]) -> None:
        """Restores the result of `weights`; further averages that it has not are taken from the first.

        Raises:
            RuntimeError: The weights belong to another architecture.
        """
        self.module.load_state_dict(weights["module"])
        for name, average in self.averages().items():
            average.network.module.load_state_dict(weights.get(name, weights["average"]))

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs: weights and optimizer."""
        return {**self.weights(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])


_STATISTIC = {"fake_score": "fake"}  # name in statistics, kept since the first release
