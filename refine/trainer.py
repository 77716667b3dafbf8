"""The refinement: what one step does, and nothing about files.

A step draws latents, lets the generator draw images, fits the fake score to them by denoising, and moves the
generator along the difference of the two scores. Whatever is random comes from `streams`, so that a step depends on
the networks, the options and its number alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refine.bridge import Bridge
from refine.config import RunConfig
from refine.diffusion import Denoiser
from refine.noise_levels import parse_schedule
from refine.objectives import ikl
from refine.streams import stream_generator, stream_seed

SIGMA_BANDS = (0.0, 0.1, 0.4, 1.5, 6.0, math.inf)  # what is logged by noise level is averaged over these
DEFAULT_SIGMA_RANGE = (0.002, 80.0)  # where a network names no limits of its own


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


@dataclass
class Averages:
    """Means of what steps report, by name."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        """Adds the values of a tensor of any shape."""
        self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        self.counts[name] = self.counts.get(name, 0.0) + values.numel()

    def add_by_band(self, name: str, values: Tensor, sigma: Tensor) -> None:
        """Adds values [N] to `name` and to the band of noise levels that each belongs to."""
        self.add(name, values)
        bands = torch.bucketize(sigma, torch.tensor(SIGMA_BANDS[1:-1], device=sigma.device, dtype=sigma.dtype))
        for band in bands.unique().tolist():
            low, high = SIGMA_BANDS[band], SIGMA_BANDS[band + 1]
            self.add(f"{name}/sigma_{low:g}_{high:g}", values[bands == band])

    def means(self) -> dict[str, float]:
        """The mean of everything added, by name."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if self.counts[name]}


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
        generator: torch.nn.Module,
        generator_ema: torch.nn.Module,
        teacher: torch.nn.Module,
        fake: torch.nn.Module,
        bridge: Bridge,
        device: torch.device,
    ) -> None:
        self.config, self.bridge, self.device = config, bridge, device
        self.generator: Any = generator
        self.generator_ema: Any = generator_ema
        self.teacher: Denoiser = teacher  # type: ignore[assignment]
        self.fake: Any = fake.requires_grad_(True)
        self.generator_parameters = [p for p in generator.parameters() if p.requires_grad]
        self.fake_parameters = list(fake.parameters())
        betas = (config.beta1, config.beta2)
        self.generator_optimizer = torch.optim.Adam(self.generator_parameters, lr=config.glr, betas=betas, eps=1e-8)
        self.fake_optimizer = torch.optim.Adam(self.fake_parameters, lr=config.flr, betas=betas, eps=1e-8)
        self.progress = Progress()
        self.averages = Averages()
        self.sigma, self.fake_sigma = parse_schedule(config.sigma), parse_schedule(config.fake_sigma)

    # -- phases ---------------------------------------------------------------------------------------

    def warm_up_step(self) -> None:
        """One update of the fake score on the generator as it is.

        At the start both scores are equal and the generator's gradient is zero: the fake score has to know the
        generator first.
        """
        self._fake_update("warmup", self.progress.warmup_nimg // self.config.batch)
        self.progress.warmup_nimg += self.config.batch

    def step(self) -> None:
        """One update of the generator, and `fake_steps` of the fake score."""
        step = self.progress.step
        num_separate = self.config.fake_steps - self.config.share_forward
        for index in range(num_separate):
            self._fake_update(f"fake{index}", step)
        self._generator_update(step)
        self.progress.step += 1
        self.progress.cur_nimg += self.config.batch
        self._update_average()

    # -- updates --------------------------------------------------------------------------------------

    def _fake_update(self, stream: str, step: int) -> None:
        self._seed_default_generator(stream, step)
        self.fake_optimizer.zero_grad(set_to_none=True)
        for draws in self._micro_batches(stream, step):
            with torch.no_grad():
                images, labels, _ = self._draw_images(draws)
            self._fake_backward(images, labels, draws)
        self._apply(self.fake_optimizer, self.fake_parameters, "fake", None)

    def _generator_update(self, step: int) -> None:
        config = self.config
        self._seed_default_generator("generator", step)
        self.generator_optimizer.zero_grad(set_to_none=True)
        self.fake_optimizer.zero_grad(set_to_none=True)
        w_sum = torch.zeros(self.generator.w_dim, device=self.device)
        for draws in self._micro_batches("generator", step):
            images, labels, w = self._draw_images(draws)
            w_sum += w.detach().sum(0)
            if config.share_forward:
                self._fake_backward(images, labels, draws)
            gradient = self._generator_gradient(images.detach(), labels, draws)
            (ikl.generator_loss(images, gradient).sum() / config.batch).backward()
        if config.share_forward:
            self._apply(self.fake_optimizer, self.fake_parameters, "fake", None)
        ramp = config.lr_rampup_kimg * 1000
        for group in self.generator_optimizer.param_groups:
            group["lr"] = config.glr * min(self.progress.cur_nimg / ramp, 1.0) if ramp else config.glr
        self._apply(self.generator_optimizer, self.generator_parameters, "generator", config.clip_grad)
        if any(p.requires_grad for p in self.generator.mapping.parameters()):
            self.generator.mapping.update_w_avg((w_sum / config.batch)[None, None])

    def _draw_images(self, draws: Draws) -> tuple[Tensor, Tensor | None, Tensor]:
        """Images as the teacher sees them, its labels, and w [N, w_dim]."""
        ws = self.generator.mapping(draws.z, draws.c)
        images = self.bridge.images(self.generator.synthesis(ws, noise_mode=self.config.noise_mode))
        return images, self.bridge.labels(draws.c), ws[:, 0]

    def _fake_backward(self, images: Tensor, labels: Tensor | None, draws: Draws) -> None:
        x0 = images.detach()
        sigma = draws.fake_sigma
        self.fake.train(self.config.fake_dropout)
        denoised = self.fake(x0 + sigma.reshape(-1, 1, 1, 1) * draws.fake_noise, sigma, labels)
        loss = ikl.fake_score_loss(denoised, x0, sigma, self.teacher.sigma_data)
        self.fake.eval()
        (loss.sum() / self.config.batch).backward()
        self.averages.add_by_band("Loss/fake", loss.detach(), sigma)

    @torch.no_grad()
    def _generator_gradient(self, x0: Tensor, labels: Tensor | None, draws: Draws) -> Tensor:
        sigma = draws.sigma
        x_t = x0 + sigma.reshape(-1, 1, 1, 1) * draws.noise
        teacher, fake = self.teacher(x_t, sigma, labels), self.fake(x_t, sigma, labels)
        gap = (teacher - fake).square().mean(dim=[1, 2, 3]).sqrt()
        self.averages.add_by_band("Score/gap", gap, sigma)
        return ikl.generator_gradient(x0, teacher, fake, sigma, self.config.weighting)

    def _apply(
        self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], name: str, clip: float | None
    ) -> None:
        """One optimiser step, unless a gradient is not finite: then it is counted and left out."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not torch.isfinite(norm):
            self.progress.num_nonfinite += 1
            return
        self.averages.add(f"Gradient/{name}_norm", norm)
        if clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        """The moving average of weights; buffers are copied."""
        halflife = self.config.ema_halflife_kimg * 1000
        if self.config.ema_rampup is not None:
            halflife = min(halflife, self.progress.cur_nimg * self.config.ema_rampup)
        beta = 0.5 ** (self.config.batch / max(halflife, 1e-8))
        for average, live in zip(self.generator_ema.parameters(), self.generator.parameters(), strict=True):
            average.copy_(live.lerp(average, beta))
        for average, live in zip(self.generator_ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(live)

    # -- what a step draws ----------------------------------------------------------------------------

    def _micro_batches(self, stream: str, step: int) -> Iterator[Draws]:
        """What the step draws for its whole batch, in parts of `batch_gpu` images."""
        draws = self._draw(stream, step)
        size = self.config.batch_gpu or self.config.batch
        for start in range(0, self.config.batch, size):
            part = slice(start, start + size)
            yield Draws(*(getattr(draws, name)[part].to(self.device) for name in Draws.__dataclass_fields__))

    def _draw(self, stream: str, step: int) -> Draws:
        batch, seed = self.config.batch, self.config.seed
        pixels = [batch, self.generator.img_channels, self.bridge.img_resolution, self.bridge.img_resolution]

        def source(name: str) -> torch.Generator:
            return stream_generator(seed, f"{stream}/{name}", step)

        progress = min(self.progress.cur_nimg / (self.config.kimg * 1000), 1.0)
        sigmas = []
        for name, schedule in (("sigma", self.sigma), ("fake_sigma", self.fake_sigma)):
            u = torch.rand(batch, generator=source(name), dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
            sigmas.append(self._known_sigma(schedule.at(progress).quantile(u)))
        c = torch.zeros(batch, self.generator.c_dim)
        if self.generator.c_dim:
            classes = torch.randint(self.generator.c_dim, [batch, 1], generator=source("c"))
            c.scatter_(1, classes, 1.0)
        return Draws(
            z=torch.randn(batch, self.generator.z_dim, generator=source("z")),
            c=c,
            sigma=sigmas[0],
            noise=torch.randn(pixels, generator=source("noise")),
            fake_sigma=sigmas[1],
            fake_noise=torch.randn(pixels, generator=source("fake_noise")),
        )

    def _known_sigma(self, sigma: Tensor) -> Tensor:
        """Noise levels that the teacher knows."""
        low = max(self.teacher.sigma_min, DEFAULT_SIGMA_RANGE[0])
        high = min(self.teacher.sigma_max, DEFAULT_SIGMA_RANGE[1])
        return self.teacher.round_sigma(sigma.clamp(low, high).to(self.device)).to("cpu", torch.float32)

    def _seed_default_generator(self, stream: str, step: int) -> None:
        """Dropout and the generator's own noise use PyTorch's default generator: seeded anew for every update."""
        torch.manual_seed(stream_seed(self.config.seed, f"{stream}/default", step))


@dataclass(frozen=True)
class Draws:
    """What one (micro-)batch of N images draws.

    Attributes:
        z: latents [N, z_dim].
        c: one-hot labels [N, c_dim].
        sigma: noise levels of the generator's gradient [N].
        noise: [N, C, R, R] at the teacher's resolution.
        fake_sigma: noise levels at which the fake score is fitted [N].
        fake_noise: [N, C, R, R].
    """

    z: Tensor
    c: Tensor
    sigma: Tensor
    noise: Tensor
    fake_sigma: Tensor
    fake_noise: Tensor
