"""Density ratio of teacher and generator without data, learned by a head on features of the frozen teacher.

The head is trained to distinguish noisy samples of the teacher from noisy images of the generator (binary
cross-entropy, at the noise levels of the generator's update), so that its logit estimates ln p_T(x_t) / q(x_t).
Published methods with such a ratio use data for p (f-distill, arXiv 2502.15681; DMD2, arXiv 2405.14867). The quantity
that they need is the teacher's density, so samples of the teacher are the right choice and no data is needed.

At every noise level, the expectation of the ratio over the generator's images is 1. A running mean of the head's ratio,
in bins of ln sigma, is divided out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.contracts import Denoiser
from refine.objectives import Scores
from refine.runtime import distributed
from refine.runtime.random import stream_generator, stream_seed
from refine.runtime.spans import span
from refine.training.inputs import StepInputs, micro_batches
from refine.training.optimizer import Optimizer
from refine.training.statistics import RunningMeans
from refine.training.teacher_samples import SampleRequest, TeacherSamples, teacher_samples
from refine.training.trained import Progress, TrainedNetwork

if TYPE_CHECKING:
    from refine.training.trainer import Trainer

NUM_FEATURES = 3  # resolutions of the teacher that the head uses, the lowest ones
WIDTH, HIDDEN = 64, 128  # channels of a feature map, and width of the vector that each map is reduced to
SMALLEST_MAP = 4  # height and width in pixels of a map that is flattened
NUM_BINS = 10  # bins, even in ln sigma between these ends; levels beyond belong to the outer bins
BIN_ENDS = (0.002, 80.0)
BIN_MEMORY = 1024  # half-life of a bin's running mean, in images
MAX_LOGIT = 10.0  # limit in the bins' means, so that a single image cannot dominate
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


# -- the head ---------------------------------------------------------------------------------------------


class FeatureTaps:
    """Activations of a denoiser's encoder: the last at each of its lowest resolutions.

    Args:
        denoiser: Denoiser; without known blocks it has no features.
        device: Device of the denoiser.

    Attributes:
        shapes: Channels and resolution of each feature.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._taken: list[Tensor | None] = []
        self._watching = False
        for block, shape in _encoder_ends(denoiser, device)[-NUM_FEATURES:]:
            block.register_forward_hook(self._keeper(len(self.shapes)))
            self.shapes.append(shape)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Context that keeps the features of one pass inside it, with their graph if they have one."""
        self._taken = [None] * len(self.shapes)
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def taken(self) -> list[Tensor]:
        """Features of the watched pass, [N, C, r, r] each; a second call finds none."""
        taken, self._taken = self._taken, []
        assert all(feature is not None for feature in taken), "the pass of the denoiser did not come by its blocks"
        return [feature for feature in taken if feature is not None]

    def _keeper(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if self._watching:
                self._taken[index] = output

        return keep


@torch.no_grad()
def _encoder_ends(denoiser: Denoiser, device: torch.device) -> list[tuple[nn.Module, tuple[int, int]]]:
    """Last block at each resolution of a denoiser's encoder, with channels and resolution."""
    seen: list[tuple[nn.Module, tuple[int, int]]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append((module, (output.shape[1], output.shape[2])))

    hooks = [block.register_forward_hook(note) for block in denoiser.blocks()]
    try:
        if hooks:
            dtype = next((p.dtype for p in denoiser.module.parameters()), torch.float32)
            size = denoiser.img_resolution
            denoiser(
                torch.zeros(1, denoiser.img_channels, size, size, device=device, dtype=dtype),
                torch.ones(1, device=device),
            )
    finally:
        for hook in hooks:
            hook.remove()
    ends: dict[int, tuple[nn.Module, tuple[int, int]]] = {}
    lowest = None
    for block, (channels, resolution) in seen:
        if lowest is not None and resolution > lowest:
            break
        lowest = resolution
        ends[resolution] = (block, (channels, resolution))
    return list(ends.values())


class RatioNetwork:
    """Network of the head, to be trained.

    Attributes:
        module: Module of the head.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def blocks(self) -> Sequence[nn.Module]:
        """No blocks, because the head is small."""
        return ()


class RatioHead(nn.Module):
    """Logit of teacher versus generator, from a noisy image, the teacher's estimate and its features.

    Every feature map is reduced to a vector; the vectors and the embeddings of noise level and labels are added. The
    last layer starts at zero, so the ratio starts at 1.

    Args:
        shapes: Channels and resolution of each feature.
        img_channels: Channels of an image.
        img_resolution: Height and width of an image in pixels.
        label_dim: Width of class labels; 0 for none.
    """

    bin_means: Tensor

    def __init__(
        self, shapes: Sequence[tuple[int, int]], img_channels: int, img_resolution: int, label_dim: int
    ) -> None:
        super().__init__()
        self.from_image = Reduce(3 * img_channels, img_resolution)
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(32, channels), channels) for channels, _ in shapes)
        self.from_features = nn.ModuleList(Reduce(*shape) for shape in shapes)
        self.from_sigma = nn.Linear(9, HIDDEN)
        self.from_labels = nn.Linear(label_dim, HIDDEN, bias=False) if label_dim else None
        self.hidden, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("bin_means", torch.ones(NUM_BINS))

    def forward(
        self, x_t: Tensor, denoised: Tensor, features: Sequence[Tensor], sigma: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Raw logit, [N].

        Args:
            x_t: Noisy images, [N, C, R, R].
            denoised: Denoised images D_T(x_t), [N, C, R, R].
            features: Features of the teacher's pass, [N, C_i, r_i, r_i] each.
            sigma: Noise levels > 0, [N].
            labels: Labels of the teacher, [N, label_dim]; None for an unconditional teacher.
        """
        dtype = self.out.weight.dtype
        level = sigma.to(dtype).reshape(-1, 1, 1, 1)
        with torch.autocast(x_t.device.type, enabled=False):
            image = [x_t / (1 + level**2).sqrt(), denoised, (x_t - denoised) / level]
            h = self.from_image(torch.cat([part.to(dtype) for part in image], dim=1))
            for norm, reduce, feature in zip(self.norms, self.from_features, features, strict=True):
                h = h + reduce(norm(feature.to(dtype)))
            h = h + self.from_sigma(_waves(sigma.to(dtype).log() / 4))
            if self.from_labels is not None and labels is not None:
                h = h + self.from_labels(labels.to(dtype))
            h = functional.silu(self.hidden(functional.silu(h)))
            return self.out(h)[:, 0]

    def calibrated(self, logit: Tensor, sigma: Tensor) -> Tensor:
        """Logit minus ln of the mean ratio in its bin, [N]."""
        return logit - self.bin_means.log()[self.log_bins(sigma)]

    def log_bins(self, sigma: Tensor) -> Tensor:
        """Index of the bin of each noise level, [N]."""
        low, high = (math.log(end) for end in BIN_ENDS)
        return ((sigma.log() - low) / (high - low) * NUM_BINS).long().clamp(0, NUM_BINS - 1)

    @torch.no_grad()
    def update_calibration(self, tally: BinTally) -> None:
        """Moves the bins' means toward those of an update over all processes, at a rate that grows with its images."""
        totals = tally.totals.to(self.bin_means.device, self.bin_means.dtype)
        distributed.all_reduce_sum_([totals])
        sums, counts = totals.unbind(1)
        rate = 1 - 0.5 ** (counts / BIN_MEMORY)
        self.bin_means.lerp_(torch.where(counts > 0, sums / counts.clamp(min=1), self.bin_means), rate)


class BinTally:
    """Sums of ratios on generated images, by bin of ln sigma.

    Args:
        bins: Function from noise levels to indices of bins.
    """

    def __init__(self, bins: Callable[[Tensor], Tensor]) -> None:
        self.bins = bins
        self.totals = torch.zeros(NUM_BINS, 2)  # sum, count

    def add(self, logit: Tensor, sigma: Tensor) -> None:
        """Adds a micro-batch of logits [N] at noise levels [N]; logits that are not finite are left out."""
        finite = logit.isfinite()
        ratio = torch.where(finite, logit.clamp(-MAX_LOGIT, MAX_LOGIT).exp(), 0)
        rows = torch.stack([ratio, finite.to(ratio.dtype)], dim=1)
        self.totals = self.totals.to(rows).index_add(0, self.bins(sigma), rows)


class Reduce(nn.Module):
    """Reduction of a feature map [N, C, r, r] to a vector [N, HIDDEN]: strided convolutions, then a linear layer.

    Args:
        channels: Channels of the map.
        resolution: Height and width of the map in pixels.
    """

    def __init__(self, channels: int, resolution: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, WIDTH, 1), nn.SiLU()]
        while resolution > SMALLEST_MAP:
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), nn.SiLU()]
            resolution = (resolution + 1) // 2
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH * resolution**2, HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        """Vector of each map, [N, HIDDEN]."""
        return self.layers(x)


def _waves(x: Tensor) -> Tensor:
    """Fourier features [N] -> [N, 9]: x itself, and sines and cosines of its multiples."""
    angles = x[:, None] * torch.arange(4, dtype=x.dtype, device=x.device).exp2()
    return torch.cat([x[:, None], angles.sin(), angles.cos()], dim=1)
