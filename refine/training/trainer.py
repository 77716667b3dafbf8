"""The refinement: what one step does, and nothing about files.

A step draws latents, lets the generator draw images, fits the fake score to them by denoising, and moves the
generator along the difference of the two scores. Whatever is random comes from `streams`, so that a step depends on
the networks, the options and its number alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from refine.config import RunConfig
from refine.diffusion import augment
from refine.diffusion.noise_levels import parse_schedule
from refine.diffusion.sampler import usable_sigmas
from refine.errors import UserError
from refine.networks.stylegan2 import update_w_avg
from refine.objectives import OBJECTIVES, Scores, ikl
from refine.pair import high_frequency as detail
from refine.pair.bridge import Bridge
from refine.runtime import distributed
from refine.runtime.random import stream_seed
from refine.training.acceleration import checkpoint_blocks, compile_blocks
from refine.training.cuda_graphs import CudaGraphs, graph_forward
from refine.training.inputs import Draws, DrawShape, draw, micro_batches
from refine.training.optimizer import Optimizer, learning_rate
from refine.training.precision import autocast, choose_precision, prepare
from refine.training.statistics import Averages

DEFAULT_SIGMA_DATA = 0.5
MAX_NONFINITE_IN_A_ROW = 100  # updates; a loss scale that adapts needs some twenty


@dataclass
class Progress:
    """How far a run is; all that a resumed one has to know besides weights and optimisers.

    Attributes:
        step: generator updates done.
        cur_nimg: images that those updates saw.
        warmup_nimg: images that the fake score was fitted to before them.
        num_nonfinite: updates that were left out because a gradient was not finite.
    """

    step: int = 0
    cur_nimg: int = 0
    warmup_nimg: int = 0
    num_nonfinite: int = 0


class Trainer:
    """Generator, moving average, teacher and fake score, and the steps that move them.

    Args:
        config: the options.
        generator: to be refined; parameters that require gradients are trained.
        generator_ema: a copy that becomes the moving average.
        teacher: frozen.
        fake: a copy of the teacher that follows the generator.
        bridge: from the generator's images and labels to the teacher's.
        device: where all of them live.
    """

    def __init__(
        self,
        config: RunConfig,
        generator: Any,
        generator_ema: Any,
        teacher: Any,
        fake: Any,
        bridge: Bridge,
        device: torch.device,
    ) -> None:
        self.config, self.bridge, self.device = config, bridge, device
        self.objective = OBJECTIVES[config.objective]
        self.precision = choose_precision(config.precision, device)
        prepare(self.precision, device)
        self.generator = generator
        self.generator_ema = generator_ema
        self.generator_start: Any = copy.deepcopy(generator).requires_grad_(False) if config.anchor else None
        self.teacher = teacher.requires_grad_(False)
        self.fake = fake.requires_grad_(True)
        for network in (self.teacher, self.fake):
            network.use_fp16 = False  # the precision is chosen here, not by the pickle
        if config.compile:  # before checkpoints, which run the compiled blocks again
            for network in (self.generator, self.teacher, self.fake):
                compile_blocks(network)
        if config.checkpoint:
            for network in (self.generator, self.fake):
                checkpoint_blocks(network)
        if config.cuda_graphs:
            graphs = CudaGraphs()
            for network in (self.teacher, self.fake):
                graph_forward(network, graphs)
        betas, scale_loss = (config.beta1, config.beta2), self.precision == "fp16"
        trained = [p for p in generator.parameters() if p.requires_grad]
        self.generator_optimizer = Optimizer(trained, betas, config.clip_grad, scale_loss)
        self.fake_optimizer = Optimizer(fake.parameters(), betas, config.clip_grad, scale_loss)
        self.trains_mapping = any(n.startswith("mapping.") and p.requires_grad for n, p in generator.named_parameters())
        self.progress = Progress()
        self.averages = Averages()
        self._nonfinite_in_a_row: dict[str, int] = {}
        self.sigma, self.fake_sigma = parse_schedule(config.sigma), parse_schedule(config.fake_sigma)
        self.draw_shape = DrawShape(
            batch=config.batch,
            z_dim=generator.z_dim,
            c_dim=generator.c_dim,
            img_channels=generator.img_channels,
            img_resolution=bridge.img_resolution,
            augment_p=config.fake_augment,
        )

    # -- phases ---------------------------------------------------------------------------------------

    def warm_up_step(self) -> None:
        """One update of the fake score on the generator as it is.

        At the start both scores are equal and the generator's gradient is zero: the fake score has to know the
        generator first.
        """
        step = self.progress.warmup_nimg // self.config.batch
        with distributed.phase(f"warm-up step {step}"):
            self._fake_update("warmup", step)
        self.progress.warmup_nimg += self.config.batch

    def step(self) -> None:
        """One update of the generator, and `fake_steps` of the fake score."""
        step = self.progress.step
        with distributed.phase(f"step {step}"):
            if self.objective.needs_fake:
                for index in range(self.config.fake_steps - self.config.one_batch):
                    self._fake_update(f"fake{index}", step)
            self._generator_update(step)
        self.progress.step += 1
        self.progress.cur_nimg += self.config.batch
        self._update_average()

    # -- updates --------------------------------------------------------------------------------------

    def _fake_update(self, stream: str, step: int) -> None:
        self.fake_optimizer.zero_grad()
        for draws, seeds in self._micro_batches(stream, step):
            with torch.no_grad():
                drawn = self._draw_images(draws, seeds)
            self._fake_backward(drawn.seen, draws, seeds)
        self._apply("fake", self.fake_optimizer, self._fake_lr())

    def _generator_update(self, step: int) -> None:
        """The generator's update and, with `share_forward`, one of the fake score on the same images.

        With `share_unet` the fake score's estimate, from which it learns, also moves the generator.
        """
        config = self.config
        fit_fake = config.one_batch and self.objective.needs_fake
        self.generator_optimizer.zero_grad()
        self.fake_optimizer.zero_grad()
        w_sums = []
        for draws, seeds in self._micro_batches("generator", step):
            drawn = self._draw_images(draws, seeds)
            w_sums.append(drawn.w.detach().sum(0))
            # The graph of that pass is gone before anything else is computed.
            estimate = self._fake_backward(drawn.seen, draws, seeds) if config.share_unet else None
            scores = self._scores(drawn.seen, draws, seeds, estimate)
            loss = self.objective.generator_loss(scores, config.weighting).sum()
            if config.anchor:
                loss = loss + config.anchor * self._anchor_loss(drawn.images, draws, seeds).sum()
            self.generator_optimizer.backward(loss / config.batch)
            if fit_fake and estimate is None:  # after the generator's backward pass: one graph at a time in memory
                self._fake_backward(drawn.seen, draws, seeds)
        if fit_fake:
            self._apply("fake", self.fake_optimizer, self._fake_lr())
        self._apply("generator", self.generator_optimizer, self._generator_lr())
        if self.trains_mapping:
            w_sum = torch.stack(w_sums).sum(0)
            distributed.sum_in_place([w_sum])
            update_w_avg(self.generator.mapping, w_sum / config.batch)

    def _draw_images(self, draws: Draws, seeds: Seeds) -> Drawn:
        ws = self.generator.mapping(draws.z, draws.c)
        images = self._synthesize(self.generator, ws, seeds)
        return Drawn(images, self.bridge.images(images), ws[:, 0])

    def _synthesize(self, generator: Any, ws: Tensor, seeds: Seeds) -> Tensor:
        seeds.seed_torch("noise")  # the generator's own noise comes from PyTorch's default generator
        return generator.synthesis(ws, noise_mode=self.config.noise_mode, force_fp32=self.precision != "fp16")

    def _fake_backward(self, images: Tensor, draws: Draws, seeds: Seeds) -> Tensor:
        """Adds the gradient of the fake score's loss, and returns what it made of the images with noise."""
        x0, labels, augment_labels = images.detach(), self.bridge.labels(draws.c), None
        if self.config.fake_augment:
            x0 = augment.transform(x0, draws.augmentation)
            augment_labels = augment.labels(draws.augmentation)
        sigma = draws.fake_sigma
        x_t = x0 + sigma.reshape(-1, 1, 1, 1) * draws.fake_noise
        _set_training(self.fake, self.config.fake_dropout)
        seeds.seed_torch("dropout")
        with autocast(self.precision, self.device):
            denoised = self.fake(x_t, sigma, labels, augment_labels)
        _set_training(self.fake, False)
        loss = ikl.fake_score_loss(denoised, x0, sigma, getattr(self.teacher, "sigma_data", DEFAULT_SIGMA_DATA))
        self.fake_optimizer.backward(loss.sum() / self.config.batch)
        self.averages.add_by_band("Loss/fake", loss.detach(), sigma)
        return denoised.detach()

    def _scores(self, images: Tensor, draws: Draws, seeds: Seeds, fake: Tensor | None) -> Scores:
        """What both denoisers make of the images with noise; `fake` is the fake score's part, where it is known."""
        sigma, labels = draws.sigma, self.bridge.labels(draws.c)
        dropout, purpose = self.config.paired_dropout, "paired dropout"
        if fake is not None:  # the teacher follows the pass that was shared: same noise, same masks
            dropout, purpose = self.config.fake_dropout, "dropout"

        def denoise(network: Any, x_t: Tensor) -> Tensor:
            _set_training(network, dropout)
            seeds.seed_torch(purpose)  # the same masks in both
            with autocast(self.precision, self.device):
                denoised = network(x_t, sigma, labels)
            _set_training(network, False)
            return denoised

        # What passes through the fake score on its way to the generator is not for the fake score's own update.
        if self.objective.through_networks:
            self.fake.requires_grad_(False)
        with torch.set_grad_enabled(self.objective.through_networks):
            x_t = images + sigma.reshape(-1, 1, 1, 1) * draws.noise
            teacher = denoise(self.teacher, x_t)
            if fake is None:
                fake = denoise(self.fake, x_t) if self.objective.needs_fake else teacher
        if self.objective.through_networks:
            self.fake.requires_grad_(True)
        if self.objective.needs_fake:
            gap = (teacher - fake).detach().square().mean(dim=[1, 2, 3]).sqrt()
            self.averages.add_by_band("Score/gap", gap, sigma)
        return Scores(images, sigma, teacher, fake)

    def _anchor_loss(self, images: Tensor, draws: Draws, seeds: Seeds) -> Tensor:
        with torch.no_grad():
            start_images = self._synthesize(self.generator_start, self.generator_start.mapping(draws.z, draws.c), seeds)
        loss = detail.anchor_loss(images, start_images, self.bridge)
        self.averages.add("Loss/anchor", loss.detach())
        return loss

    def _apply(self, name: str, optimizer: Optimizer, lr: float) -> None:
        norm = optimizer.step(lr)
        if norm is not None:
            self._nonfinite_in_a_row[name] = 0
            self.averages.add(f"Gradient/{name}_norm", norm)
            return
        self.progress.num_nonfinite += 1
        self._nonfinite_in_a_row[name] = self._nonfinite_in_a_row.get(name, 0) + 1
        if self._nonfinite_in_a_row[name] > MAX_NONFINITE_IN_A_ROW:
            raise UserError(
                f"The last {MAX_NONFINITE_IN_A_ROW} gradients of the {name} were not finite: begin a new run with "
                "--precision=fp32, or with lower --glr and --flr, from the newest state (--init)."
            )

    def _generator_lr(self) -> float:
        return learning_rate(
            self.config.glr,
            self.progress.cur_nimg,
            rampup_nimg=self.config.lr_rampup_kimg * 1000,
            decay=self.config.lr_decay,
            total_nimg=self.config.kimg * 1000,
        )

    def _fake_lr(self) -> float:
        """Counted from the start of the warm-up, and without decay: the fake score follows to the end."""
        seen = self.progress.warmup_nimg + self.progress.cur_nimg
        return learning_rate(self.config.flr, seen, rampup_nimg=self.config.lr_rampup_kimg * 1000)

    @torch.no_grad()
    def _update_average(self) -> None:
        """The moving average of weights; buffers are copied."""
        halflife = self.config.ema_halflife_kimg * 1000
        if self.config.ema_rampup is not None:
            halflife = min(halflife, self.progress.cur_nimg * self.config.ema_rampup)
        beta = 0.5 ** (self.config.batch / max(halflife, 1e-8))
        averages, lives = (list(network.parameters()) for network in (self.generator_ema, self.generator))
        torch._foreach_lerp_(averages, lives, 1 - beta)
        averages, lives = (list(network.buffers()) for network in (self.generator_ema, self.generator))
        if averages:
            torch._foreach_copy_(averages, lives)

    # -- what a step draws ----------------------------------------------------------------------------

    def _micro_batches(self, stream: str, step: int) -> Iterator[tuple[Draws, Seeds]]:
        """The part of this process of what an update draws, in parts of `batch_gpu` images."""
        progress = min(self.progress.cur_nimg / (self.config.kimg * 1000), 1.0)
        moves_generator = stream == "generator"
        shares_noise = moves_generator and self.config.share_unet
        fits_fake = self.objective.needs_fake and (self.config.one_batch or not moves_generator)
        draws = draw(
            self.draw_shape,
            self.sigma.at(progress) if moves_generator else None,
            self.fake_sigma.at(progress) if fits_fake and not shares_noise else None,
            self.config.seed,
            stream,
            step,
        ).part(distributed.share(self.config.batch))
        for index, part in enumerate(micro_batches(len(draws.z), self.config.batch_gpu)):
            known = draws.part(part).to(self.device)
            known = replace(known, sigma=self._known_sigma(known.sigma), fake_sigma=self._known_sigma(known.fake_sigma))
            if shares_noise:
                known = replace(known, fake_sigma=known.sigma, fake_noise=known.noise)
            yield known, Seeds(self.config.seed, stream, step, index)

    def _known_sigma(self, sigma: Tensor) -> Tensor:
        """Noise levels that the teacher knows."""
        if sigma.numel() == 0:
            return sigma
        return self.teacher.round_sigma(sigma.to(torch.float32).clamp(*usable_sigmas(self.teacher)))


def _set_training(network: Any, mode: bool) -> None:
    """Has dropout on or off; walking through all of a network's modules takes milliseconds, so only where need be."""
    if network.training != mode:
        network.train(mode)


class Drawn(NamedTuple):
    """What the generator made of a micro-batch's latents.

    Attributes:
        images: as drawn [N, C, H, H].
        seen: as the teacher sees them [N, C, R, R].
        w: [N, w_dim].
    """

    images: Tensor
    seen: Tensor
    w: Tensor


@dataclass(frozen=True)
class Seeds:
    """Where a micro-batch takes the numbers from that PyTorch's default generator has to give.

    They differ by process and micro-batch, unlike all that is drawn for the global batch. Using them leaves the
    default generator in another state than before.
    """

    seed: int
    stream: str
    step: int
    index: int

    def seed_torch(self, purpose: str) -> None:
        """Seeds PyTorch's default generator for one purpose; the same purpose again gives the same numbers."""
        torch.manual_seed(stream_seed(self.seed, f"{self.stream}/{purpose}", self.step, distributed.rank(), self.index))
