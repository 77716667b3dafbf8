"""Trainer: the refinement step, without files.

A step trains the fake score to denoise generated images, then moves the generator along the difference of the
teacher's and the fake score's scores. All random numbers come from `runtime.random`, so that a step depends only on
the networks, the options and its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refine.config import TrainingOptions
from refine.contracts import Denoiser, Generator
from refine.diffusion import augment
from refine.diffusion.denoiser import usable_sigmas
from refine.diffusion.guidance import Guided, parts_of
from refine.objectives import Scores, ikl
from refine.pair import high_frequency
from refine.pair.freeze import select_layers
from refine.pair.pair import Pair
from refine.runtime import distributed
from refine.runtime.decay import HalfLife
from refine.runtime.spans import span
from refine.training.acceleration import checkpoint_blocks, compile_blocks
from refine.training.backtrack import Backtrack, NoBacktrack
from refine.training.checks import check_options
from refine.training.cuda_graphs import CudaGraphs, graph_forward
from refine.training.divergence import add_divergence
from refine.training.frozen import frozen, frozen_copy, set_training
from refine.training.inputs import InputShape, StepInputs, draw, micro_batches
from refine.training.optimizer import Optimizer, learning_rate
from refine.training.precision import autocast, choose_precision, prepare
from refine.training.ratio import make_ratio
from refine.training.ratio_head import RatioNetwork
from refine.training.sharing import choose_sharing
from refine.training.statistics import RunningMeans
from refine.training.trained import EMA, Progress, TrainedNetwork


class View(NamedTuple):
    """Images of a micro-batch.

    Attributes:
        images: Images as generated, [N, C, H, H].
        x0: Images at the teacher's resolution, [N, C, R, R].
        w: Intermediate latents, [N, w_dim]; None for a generator without them.
    """

    images: Tensor
    x0: Tensor
    w: Tensor | None


class GeneratorLoss(NamedTuple):
    """Loss of the generator on a micro-batch.

    Attributes:
        view: Its images.
        loss: Scalar, summed over images; differentiable.
    """

    view: View
    loss: Tensor


class Trainer:
    """Generator, teacher and fake score, and the steps that move them.

    Args:
        pair: Networks to start from; they are copied.
        options: Training options.
        device: Device of all networks.

    Attributes:
        generator: Generator and its moving average.
        fake_score: Copy of the teacher that is trained on the generator's images; only if the objective needs one.
        ratio: Density ratio of teacher and generator; it does nothing if neither objective nor options need one.
        networks: All trained networks: the one list for states, memory and profiles.
        teacher: Frozen teacher.
        progress: Position of the run.
        statistics: Means of what steps report since the last status line.

    Raises:
        UserError: The options do not fit the pair.
    """

    def __init__(self, pair: Pair, options: TrainingOptions, device: torch.device) -> None:
        self.options, self.bridge, self.device = options, pair.bridge, device
        self.objective = options.objective
        self.precision = choose_precision(options.precision, device)
        self.progress, self.statistics = Progress(), RunningMeans()
        self.sigma, self.fake_sigma = options.sigma, options.fake_sigma
        self.sharing = choose_sharing(
            needs_fake=self.objective.needs_fake, share_forward=options.share_forward, share_unet=options.share_unet
        )
        prepare(self.precision, device)
        check_options(pair, options)
        self.teacher = frozen_copy(pair.teacher, device)
        self.generator_start: Generator | None = frozen_copy(pair.generator, device) if options.anchor else None
        generator, average = (frozen_copy(pair.generator, device) for _ in range(2))
        select_layers(generator, options.train_layers, self.bridge.img_resolution)
        self.generator = TrainedNetwork(
            "generator",
            generator,
            self._optimizer(generator),
            self._generator_rate,
            EMA(average, HalfLife(options.ema_halflife_kimg, options.ema_rampup)),
            [EMA(frozen_copy(pair.generator, device), decay) for decay in options.ema_more.each],
        )
        self.networks: list[TrainedNetwork[Any]] = [self.generator]
        if self.objective.needs_fake:
            fake_score = self._start_of_fake_score(pair.teacher)
            fake_score.module.requires_grad_(True)
            self.fake_score = TrainedNetwork("fake_score", fake_score, self._optimizer(fake_score), self._fake_rate)
            self.networks.append(self.fake_score)
        self.ratio = make_ratio(self, pair.teacher_key, self._head_optimizer, self._ratio_rate)
        self.networks += self.ratio.trained
        self.backtrack = NoBacktrack()
        if options.backtrack:
            self.backtrack = Backtrack(self._start_of_fake_score(pair.teacher), options.backtrack)
        self._accelerate()
        self.input_shape = InputShape(
            batch=options.batch,
            z_shape=generator.z_shape,
            c_dim=generator.c_dim,
            img_channels=generator.img_channels,
            img_resolution=self.bridge.img_resolution,
            augment_p=options.fake_augment,
        )

    @property
    def guide(self) -> Denoiser:
        """Denoiser that the generator follows: the teacher, or an intermediate teacher early in the run."""
        return self.backtrack.guide(self)

    @property
    def through_teacher(self) -> bool:
        """True if the generator's gradient passes through the teacher."""
        return self.objective.through_networks or self.ratio.differentiable

    @property
    def through_fake_score(self) -> bool:
        """True if the generator's gradient passes through the fake score."""
        return self.objective.through_networks and self.objective.needs_fake

    @property
    def needs_warm_up(self) -> bool:
        """True if other networks have to be trained on the generator's images before the generator changes."""
        return len(self.networks) > 1

    # -- steps ----------------------------------------------------------------------------------------

    def warm_up_step(self) -> None:
        """Updates the fake score and the density ratio once, and leaves the generator unchanged.

        At the start both scores are equal and the generator's gradient is zero, so the fake score has to be trained
        on the generator's images first.
        """
        step = self.progress.warmup_nimg // self.options.batch
        with distributed.phase(f"warm-up step {step}"):
            for _ in range(self.objective.needs_fake):
                self.fit_fake_score("warmup", step)
            self.ratio.fit(self, "warmup_ratio", step)
        self.progress.warmup_nimg += self.options.batch
        self.backtrack.record(self, self.options.batch)

    def step(self) -> None:
        """Updates the fake score and the density ratio, then the generator."""
        with distributed.phase(f"step {self.progress.step}"):
            for index in range(self.sharing.num_separate_updates(self.options.fake_steps)):
                self.fit_fake_score(f"fake{index}", self.progress.step)
            self.ratio.fit(self, "ratio", self.progress.step)
            self.move_generator()
        self.progress.advance(self.options.batch)
        self.generator.update_average(self.progress, self.options.batch)

    def fit_fake_score(self, stream: str, step: int) -> None:
        """Updates the fake score once, on images of its own.

        Args:
            stream: Name of the random stream of the update.
            step: Index of the step.
        """
        for inputs in self.inputs(stream, step):
            with torch.no_grad():
                view = self.view(inputs)
            self.fake_score_backward(view.x0, inputs)
        self.fake_score.apply(self.progress, self.statistics)

    def move_generator(self) -> None:
        """Updates the generator once, and whatever shares passes with this update."""
        w_sums = []
        for inputs in self.inputs("generator", self.progress.step):
            with frozen(self.passed_modules()):
                view, loss = self.generator_loss(inputs)
                self.generator.backward(loss / self.options.batch)
            self.sharing.after_backward(self, view.x0, inputs)
            w_sums += [] if view.w is None else [view.w.detach().sum(0)]
        self.sharing.finish(self)
        self.generator.apply(self.progress, self.statistics)
        self.generator.network.after_step(self._mean_over_processes(w_sums))

    def generator_loss(self, inputs: StepInputs) -> GeneratorLoss:
        """Images of a micro-batch and their loss."""
        view = self.view(inputs)
        scores = self.score(view.x0, inputs)
        loss = self.objective.loss(scores).sum() + self.anchor(view.images, inputs)
        return GeneratorLoss(view, loss + self.ratio.adversarial_loss(scores, self.statistics))

    # -- parts of a step ------------------------------------------------------------------------------

    def view(self, inputs: StepInputs) -> View:
        """Generated images, and the same images at the teacher's resolution; differentiable."""
        with span("generator, forward"):
            images, w = self._draw(self.generator.network, inputs)
            return View(images, self.bridge.images(images), w)

    def score(self, x0: Tensor, inputs: StepInputs) -> Scores:
        """Estimates from x_t = x0 + sigma n; differentiable in x0 if the objective or the ratio requires it.

        Args:
            x0: Generated images at the teacher's resolution, [N, C, R, R].
            inputs: Inputs of the micro-batch.
        """
        with torch.set_grad_enabled(self.through_teacher):
            x_t = self.noisy(x0, inputs)
        with self.ratio.watching():
            scores = self.sharing.scores(self, x0, x_t, inputs)
        if self.objective.needs_fake:
            gap = (scores.teacher - scores.fake).detach().square().mean(dim=[1, 2, 3]).sqrt()
            self.statistics.add_by_band("Score/gap", gap, inputs.sigma)
            if self.guide is self.teacher:  # not the divergence from an intermediate teacher
                add_divergence(self.statistics, scores, self.sigma.at(self.position()))
        return self.ratio.with_logit(self, scores, x_t, inputs)

    def noisy(self, x0: Tensor, inputs: StepInputs) -> Tensor:
        """Noisy images x_t = x0 + sigma n at the noise levels of the generator's gradient, [N, C, R, R]."""
        return x0 + inputs.sigma.reshape(-1, 1, 1, 1) * inputs.noise

    def estimate(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        inputs: StepInputs,
        purpose: str = "paired dropout",
    ) -> Tensor:
        """Denoised images D(x_t) for the generator's gradient, [N, C, R, R].

        Args:
            denoiser: Teacher or fake score.
            x_t: Noisy images, [N, C, R, R].
            inputs: Noise levels, labels and seeds.
            purpose: Purpose of the seeds; the same purpose gives the same dropout masks in both networks.
        """
        through = self.through_fake_score if self._is_fake_score(denoiser) else self.through_teacher
        dropout = self.sharing.teacher_dropout(self.options)
        with torch.set_grad_enabled(through):
            return self._denoise(denoiser, x_t, inputs.sigma, inputs, None, dropout, purpose)

    def fake_score_backward(self, x0: Tensor, inputs: StepInputs) -> Tensor:
        """Accumulates the gradient of the fake score's denoising loss.

        Args:
            x0: Generated images at the teacher's resolution, [N, C, R, R]; they receive no gradient.
            inputs: Inputs of the micro-batch.

        Returns:
            Estimates D_F(x_t) of the fake score, detached, [N, C, R, R].
        """
        x0, augment_labels = x0.detach(), None
        if self.options.fake_augment:
            x0 = augment.transform(x0, inputs.augmentation)
            augment_labels = augment.labels(inputs.augmentation)
        sigma = inputs.fake_sigma
        x_t = x0 + sigma.reshape(-1, 1, 1, 1) * inputs.fake_noise
        network = self.fake_score.network
        with torch.enable_grad():
            denoised = self._denoise(network, x_t, sigma, inputs, augment_labels, self.options.fake_dropout, "dropout")
            loss = ikl.fake_score_loss(denoised, x0, sigma, self.teacher.sigma_data)
            self.fake_score.backward(self._balanced(loss, sigma, x0[0].numel()).sum() / self.options.batch)
        self.statistics.add_by_band("Loss/fake", loss.detach(), sigma)
        return denoised.detach()

    def _balanced(self, loss: Tensor, sigma: Tensor, num_values: int) -> Tensor:
        """Loss [N] of the fake score, balanced over noise levels if the network estimates it (EDM2, eq. 21)."""
        module: Any = self.fake_score.module
        if not hasattr(module, "log_variance"):
            return loss
        log_variance = module.log_variance(sigma)
        return loss / log_variance.exp() + num_values * log_variance

    def anchor(self, images: Tensor, inputs: StepInputs) -> Tensor | float:
        """Penalty on changes of the detail that the teacher cannot see, summed over images; 0 without `--anchor`."""
        if self.generator_start is None:
            return 0.0
        with torch.no_grad():
            start_images, _ = self._draw(self.generator_start, inputs)
        loss = high_frequency.anchor_loss(images, start_images, self.bridge)
        self.statistics.add("Loss/anchor", loss.detach())
        return self.options.anchor * loss.sum()

    def inputs(self, stream: str, step: int) -> Iterator[StepInputs]:
        """Inputs of an update for this process, in micro-batches of `batch_gpu` images.

        Args:
            stream: Name of the random stream of the update.
            step: Index of the step.
        """
        options, progress = self.options, self.position()
        moves_generator, fits_ratio = stream == "generator", stream in ("ratio", "warmup_ratio")
        shares_noise = moves_generator and self.sharing.shares_noise
        fits_fake = not (moves_generator or fits_ratio) or (
            moves_generator and self.sharing.shares_images and not shares_noise
        )
        whole = draw(
            self.input_shape,
            self.sigma.at(progress) if moves_generator or fits_ratio else None,
            self.fake_sigma.at(progress) if fits_fake else None,
            options.seed,
            stream,
            step,
        ).part(distributed.share(options.batch))
        for index, which in enumerate(micro_batches(len(whole.z), options.batch_gpu)):
            part = whole.part(which, index).to(self.device)
            part = replace(part, sigma=self._known(part.sigma), fake_sigma=self._known(part.fake_sigma))
            if shares_noise:
                part = replace(part, fake_sigma=part.sigma, fake_noise=part.noise)
            yield part

    def position(self) -> float:
        """Position of the run, from 0 (start) to 1 (end)."""
        return min(self.progress.cur_nimg / (self.options.kimg * 1000), 1.0)

    def passed_modules(self) -> list[torch.nn.Module]:
        """Trained networks that the generator's gradient passes through."""
        fake_score = [self.fake_score] if self.through_fake_score else []
        return [trained.module for trained in (*fake_score, *(self.ratio.trained if self.ratio.differentiable else ()))]

    # -- details --------------------------------------------------------------------------------------

    def _draw(self, generator: Generator, inputs: StepInputs) -> Any:
        inputs.seeds.seed_torch("noise")  # PyTorch's default generator draws the noise inputs, or dropout masks
        if not is_unet(generator):
            force_fp32 = self.precision != "fp16"
            return generator(inputs.z, inputs.c, noise_mode=self.options.noise_mode, force_fp32=force_fp32)
        set_training(generator.module, self.options.gan_dropout)
        with autocast(self.precision, self.device):
            drawn = generator(inputs.z, inputs.c)
        set_training(generator.module, False)
        return drawn

    def _denoise(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        sigma: Tensor,
        inputs: StepInputs,
        augment_labels: Tensor | None,
        dropout: bool,
        purpose: str,
    ) -> Tensor:
        name = self.fake_score.title if self._is_fake_score(denoiser) else "teacher"
        set_training(denoiser.module, dropout)
        inputs.seeds.seed_torch(purpose)
        with span(f"{name}, forward"), autocast(self.precision, self.device):
            denoised = denoiser(x_t, sigma, self.bridge.labels(inputs.c), augment_labels)
        set_training(denoiser.module, False)
        return denoised

    def _is_fake_score(self, denoiser: Denoiser) -> bool:
        return self.objective.needs_fake and denoiser is self.fake_score.network

    def _known(self, sigma: Tensor) -> Tensor:
        """Nearest noise levels that the teacher supports."""
        if sigma.numel() == 0:
            return sigma
        return self.teacher.round_sigma(sigma.to(torch.float32).clamp(*usable_sigmas(self.teacher)))

    def _mean_over_processes(self, w_sums: list[Tensor]) -> Tensor | None:
        if not w_sums:
            return None
        w_sum = torch.stack(w_sums).sum(0)
        distributed.all_reduce_sum_([w_sum])
        return w_sum / self.options.batch

    def _start_of_fake_score(self, teacher: Denoiser) -> Denoiser:
        """Frozen copy of the teacher; without its guide, or on request with the same guide as the teacher."""
        copied = frozen_copy(parts_of(teacher)[0], self.device)
        if self.options.guide_fake and isinstance(self.teacher, Guided):
            return Guided(copied, self.teacher.guide, self.teacher.weight)
        return copied

    def frozen_denoisers(self) -> list[Denoiser]:
        """Denoisers that are not trained: the teacher first, its guide, intermediate teachers; without guided ones."""
        return [*parts_of(self.teacher), *(parts_of(network)[0] for network in self.backtrack.networks)]

    def _accelerate(self) -> None:
        frozen_ones = self.frozen_denoisers()
        fake_score = [parts_of(self.fake_score.network)[0]] if self.objective.needs_fake else []
        denoisers: list[Any] = [*frozen_ones, *fake_score]
        trained = [network.network for network in self.networks]
        for denoiser in denoisers:
            denoiser.module.use_fp16 = False  # the precision is chosen here, not by the pickle
        if is_unet(self.generator.network):
            module: Any = self.generator.module
            module.denoiser.use_fp16 = False
        if self.options.compile:  # before checkpointing, which then recomputes the compiled blocks
            for network in [*frozen_ones, *trained]:
                compile_blocks(network.blocks())
        if self.options.checkpoint:
            for network in [*trained, *(frozen_ones if self.through_teacher else [])]:
                checkpoint_blocks(network.blocks())
        if self.options.cuda_graphs:
            graphs = CudaGraphs()
            # A replayed graph would hide the teacher's features from the ratio.
            for denoiser in denoisers[1:] if self.ratio.trained else denoisers:
                graph_forward(denoiser.module, graphs)

    def _optimizer(self, network: Generator | Denoiser) -> Optimizer:
        options = self.options
        trained = [p for p in network.module.parameters() if p.requires_grad]
        return Optimizer(
            trained, (options.beta1, options.beta2), options.clip_grad, scale_loss=self.precision == "fp16"
        )

    def _head_optimizer(self, head: RatioNetwork) -> Optimizer:
        """Optimizer of the ratio's head, without loss scaling, because the head computes in float32."""
        return Optimizer(head.module.parameters(), (self.options.beta1, self.options.beta2), self.options.clip_grad)

    def _generator_rate(self, progress: Progress) -> float:
        options = self.options
        return learning_rate(
            options.glr,
            progress.cur_nimg,
            rampup_nimg=options.lr_rampup_kimg * 1000,
            decay=options.lr_decay,
            total_nimg=options.kimg * 1000,
        )

    def _fake_rate(self, progress: Progress) -> float:
        """Learning rate of the fake score: ramp-up from the start of the warm-up, and no decay."""
        seen = progress.warmup_nimg + progress.cur_nimg
        return learning_rate(self.options.flr, seen, rampup_nimg=self.options.lr_rampup_kimg * 1000)

    def _ratio_rate(self, progress: Progress) -> float:
        """Learning rate of the ratio: ramp-up from the start of the warm-up, and no decay."""
        seen = progress.warmup_nimg + progress.cur_nimg
        return learning_rate(self.options.rlr, seen, rampup_nimg=self.options.lr_rampup_kimg * 1000)


def is_unet(generator: Generator) -> bool:
    """True for a one-step generator: a U-Net with dropout, computed in the precision of teacher and fake score."""
    return bool(getattr(generator, "is_unet", False))
