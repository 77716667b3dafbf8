"""Density ratio of teacher and generator without data, learned by a head on features of the frozen teacher.

The head is trained to distinguish noisy samples of the teacher from noisy images of the generator (binary
cross-entropy, at the noise levels of the generator's update), so that its logit estimates ln p_T(x_t) / q(x_t).
Published methods with such a ratio use data for p (f-distill, arXiv 2502.15681; DMD2, arXiv 2405.14867). The quantity
that they need is the teacher's density, so samples of the teacher are the right choice and no data is needed.

At every noise level, the expectation of the ratio over the generator's images is 1. A running mean of the head's ratio,
in bins of ln sigma, is divided out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from refine.contracts import Denoiser
from refine.objectives import Scores
from refine.runtime import distributed
from refine.runtime.random import stream_generator, stream_seed
from refine.runtime.spans import span
from refine.training.inputs import StepInputs, micro_batches
from refine.training.optimizer import Optimizer
from refine.training.ratio_head import BinTally, FeatureTaps, RatioHead, RatioNetwork
from refine.training.statistics import RunningMeans
from refine.training.teacher_samples import SampleRequest, TeacherSamples, teacher_samples
from refine.training.trained import Progress, TrainedNetwork

if TYPE_CHECKING:
    from refine.training.trainer import Trainer

HELD_OUT = 0.1  # share of the teacher's samples that the head is never trained on
HELD_OUT_EVERY = 8  # updates between two measurements of overfitting


class NoRatio:
    """Placeholder for runs that need no ratio."""

    differentiable = False
    trained: Sequence[TrainedNetwork[Any]] = ()

    def watching(self) -> AbstractContextManager[object]:
        """Context for the teacher's pass in the generator's update."""
        return nullcontext()

    def with_logit(self, trainer: Trainer, scores: Scores, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Scores, unchanged."""
        return scores

    def adversarial_loss(self, scores: Scores, statistics: RunningMeans) -> Tensor | float:
        """Zero."""
        return 0.0

    def fit(self, trainer: Trainer, stream: str, step: int) -> None:
        """No work."""


class Ratio(NoRatio):
    """Head, its training, and its part in the generator's update.

    Args:
        teacher: Frozen teacher.
        device: Device of the run.
        objective_differentiates: Whether the objective differentiates the logit.
        gan_weight: Weight of the adversarial term; 0 for none.
        make_trained: Function from the head's network to the trained network.
        get_samples: Function that returns samples of the teacher; called once, before the first update.
        seed: Seed of the head's weights.
    """

    def __init__(
        self,
        teacher: Denoiser,
        device: torch.device,
        *,
        objective_differentiates: bool,
        gan_weight: float,
        make_trained: Callable[[RatioNetwork], TrainedNetwork[Any]],
        get_samples: Callable[[], TeacherSamples],
        seed: int,
    ) -> None:
        self.differentiable = objective_differentiates or gan_weight > 0
        self.gan_weight, self._get_samples = gan_weight, get_samples
        self._samples: TeacherSamples | None = None
        self.taps = FeatureTaps(teacher, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "ratio weights", 0))
            head = RatioHead(self.taps.shapes, teacher.img_channels, teacher.img_resolution, teacher.label_dim)
        dtype = next((p.dtype for p in teacher.module.parameters()), torch.float32)
        self.head = head.to(device, dtype)
        self.network = make_trained(RatioNetwork(self.head))
        self.trained = (self.network,)

    def watching(self) -> AbstractContextManager[object]:
        """Context that keeps the features of the teacher's pass inside it for `with_logit`."""
        return self.taps.watching()

    def with_logit(self, trainer: Trainer, scores: Scores, x_t: Tensor, inputs: StepInputs) -> Scores:
        """Scores with the calibrated logit of the watched pass; the logit is differentiable if required.

        Args:
            trainer: Trainer of the step.
            scores: Scores of the pass.
            x_t: Noisy images of the pass, [N, C, R, R].
            inputs: Inputs of the micro-batch.
        """
        with torch.set_grad_enabled(self.differentiable), span("ratio, forward"):
            logit = self.head(x_t, scores.teacher, self.taps.taken(), inputs.sigma, trainer.bridge.labels(inputs.c))
            return replace(scores, logit=self.head.calibrated(logit, inputs.sigma))

    def adversarial_loss(self, scores: Scores, statistics: RunningMeans) -> Tensor | float:
        """Non-saturating loss -ln sigmoid(logit) of the generator, weighted and summed over images."""
        if not self.gan_weight:
            return 0.0
        assert scores.logit is not None
        loss = functional.softplus(-scores.logit)
        statistics.add_by_band("Loss/gan", loss, scores.sigma)
        return self.gan_weight * loss.sum()

    def fit(self, trainer: Trainer, stream: str, step: int) -> None:
        """Updates the head once, on generated images of its own and as many samples of the teacher.

        Args:
            trainer: Trainer of the step.
            stream: Name of the random stream of the update.
            step: Index of the step.
        """
        samples = self.samples
        measures = step % HELD_OUT_EVERY == 0
        tally = BinTally(self.head.log_bins)
        for index, (inputs, numbers) in enumerate(self._batches(trainer, stream, step)):
            with torch.no_grad():
                x0 = trainer.view(inputs).x0
            of_fakes = self._logit(trainer, x0, inputs)
            of_reals = self._logit(trainer, *self._take(samples, numbers, inputs))
            with torch.enable_grad():
                losses = functional.softplus(of_fakes), functional.softplus(-of_reals)
                loss = losses[0] + losses[1]
                self.network.backward(loss.sum() / trainer.options.batch)
            tally.add(of_fakes.detach(), inputs.sigma)
            right = ((of_fakes < 0).float() + (of_reals > 0).float()) / 2
            trainer.statistics.add_by_band("Loss/ratio", loss, inputs.sigma)
            trainer.statistics.add_by_band("Ratio/accuracy", right, inputs.sigma)
            if measures and index == 0:
                trainer.statistics.add("Ratio/samples_loss", losses[1])
                self._measure_held_out(trainer, stream, step, samples, inputs)
        self.network.apply(trainer.progress, trainer.statistics)
        self.head.update_calibration(tally)

    @property
    def samples(self) -> TeacherSamples:
        """Samples of the teacher, loaded or drawn on first use."""
        if self._samples is None:
            with distributed.phase("the teacher's samples"):
                self._samples = self._get_samples()
        return self._samples

    def _batches(self, trainer: Trainer, stream: str, step: int) -> Iterator[tuple[StepInputs, Tensor]]:
        """Inputs of this process's micro-batches, each with the indices of the teacher's samples to use."""
        batch = trainer.options.batch
        first_held_out = len(self.samples) - num_held_out(len(self.samples))
        source = stream_generator(trainer.options.seed, f"{stream}/samples", step)
        numbers = torch.randint(first_held_out, [batch], generator=source)[distributed.share(batch)]
        parts = micro_batches(len(numbers), trainer.options.batch_gpu)
        for inputs, which in zip(trainer.inputs(stream, step), parts, strict=True):
            yield inputs, numbers[which]

    def _take(self, samples: TeacherSamples, numbers: Tensor, inputs: StepInputs) -> tuple[Tensor, StepInputs]:
        """Samples by index, and inputs with the samples' labels but unchanged noise and noise levels."""
        device = inputs.noise.device
        images = samples.images[numbers].to(device, inputs.noise.dtype)
        return images, replace(inputs, c=samples.c[numbers].to(device))

    def _logit(self, trainer: Trainer, images: Tensor, inputs: StepInputs) -> Tensor:
        """Logit of images at the teacher's resolution; only the head's parameters receive gradients."""
        with torch.no_grad(), self.watching():
            x_t = trainer.noisy(images, inputs)
            denoised = trainer.estimate(trainer.teacher, x_t, inputs)
        with torch.enable_grad(), span("ratio, forward"):
            logit: Tensor = self.head(x_t, denoised, self.taps.taken(), inputs.sigma, trainer.bridge.labels(inputs.c))
        return logit

    @torch.no_grad()
    def _measure_held_out(
        self, trainer: Trainer, stream: str, step: int, samples: TeacherSamples, inputs: StepInputs
    ) -> None:
        """Measures the loss on held-out samples; overfitting raises it above the loss on the training samples."""
        held_out = num_held_out(len(samples))
        source = stream_generator(trainer.options.seed, f"{stream}/held out", step)
        numbers = len(samples) - 1 - torch.randint(held_out, [trainer.options.batch], generator=source)
        numbers = numbers[distributed.share(len(numbers))][: len(inputs.z)]
        logit = self._logit(trainer, *self._take(samples, numbers, inputs))
        trainer.statistics.add("Ratio/held_out_loss", functional.softplus(-logit))


def num_held_out(count: int) -> int:
    """Number of samples to hold out of `count`, at least one."""
    return max(round(count * HELD_OUT), 1)


def make_ratio(
    trainer: Trainer,
    teacher_sha256: str | None,
    make_optimizer: Callable[[RatioNetwork], Optimizer],
    learning_rate: Callable[[Progress], float],
) -> NoRatio:
    """Builds the ratio that the objective and the options require.

    Args:
        trainer: Trainer whose teacher, bridge and options are set.
        teacher_sha256: SHA-256 of the teacher's file; None for a teacher without a file.
        make_optimizer: Function that makes the optimizer of a head.
        learning_rate: Function from the position of the run to the learning rate.
    """
    options, objective = trainer.options, trainer.objective
    if not (objective.needs_ratio or options.gan_weight):
        return NoRatio()

    def samples() -> TeacherSamples:
        request = SampleRequest(options.ratio_samples, options.seed, trainer.generator.network.c_dim)
        return teacher_samples(
            trainer.teacher,
            trainer.bridge,
            request,
            trainer.device,
            teacher_sha256=teacher_sha256,
            batch=options.batch_gpu or -(-options.batch // distributed.world_size()),
            refresh=options.ratio_refresh,
        )

    return Ratio(
        trainer.teacher,
        trainer.device,
        objective_differentiates=objective.needs_ratio and objective.through_networks,
        gan_weight=options.gan_weight,
        make_trained=lambda network: TrainedNetwork("ratio", network, make_optimizer(network), learning_rate),
        get_samples=samples,
        seed=options.seed,
    )
