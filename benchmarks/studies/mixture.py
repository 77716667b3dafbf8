"""A picture of the refinement where everything can be seen: points in the plane, eight Gaussians to be learned.

    python -m benchmarks.studies.mixture

The teacher is the exact denoiser of a ring of eight Gaussians. The generator is a small network that starts as a blob,
the fake score another one that starts with no idea, and the real `Trainer` does the rest. Points pose as images
[N, 2, 1, 1]. Writes docs/mixture.png; needs matplotlib (`pip install -e ".[dev]"`).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import ROOT
from benchmarks.speed.steps import pair_of_modules
from refine.config import RunConfig, TrainingOptions
from refine.networks.preconditioned import as_denoiser
from refine.training.optimizer import Optimizer
from refine.training.trained import TrainedNetwork
from refine.training.trainer import Trainer

NUM_MODES, RADIUS, MODE_STD = 8, 1.0, 0.1
CONFIG = RunConfig(
    gan="an MLP",
    teacher="eight Gaussians",
    objective="ikl:weighting=score",
    sigma="lognormal:-1,0.7",
    fake_sigma="lognormal:-1.2,1.2",
    fake_steps=2,
    share_forward=True,
    batch=256,
    glr=2e-3,
    flr=2e-3,
    lr_decay="cosine",
    clip_grad=1.0,
    beta1=0.5,
    ema_halflife_kimg=10.0,
    kimg=400.0,
    warmup_kimg=50.0,
    device="cpu",
)


def modes() -> Tensor:
    """Centers of the Gaussians, [8, 2]."""
    angles = torch.arange(NUM_MODES) * (2 * math.pi / NUM_MODES)
    return RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)


def draw_data(count: int, generator: torch.Generator) -> Tensor:
    """Fresh samples of the mixture [N, 2]."""
    centers = modes()[torch.randint(NUM_MODES, [count], generator=generator)]
    return centers + MODE_STD * torch.randn(count, 2, generator=generator)


class MixtureDenoiser(nn.Module):
    """The exact denoiser of the mixture: each mode's own posterior mean, weighted by how likely the mode is."""

    img_resolution, img_channels, label_dim = 1, 2, 0
    sigma_min, sigma_max, sigma_data = 0.0, math.inf, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(modes())

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Any noise level will do."""
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *_: Tensor | None) -> Tensor:
        """E[x0 | x0 + sigma n = x] for x [N, 2, 1, 1] and sigma [N]."""
        points, variance = x.flatten(1), sigma.reshape(-1, 1) ** 2
        total = MODE_STD**2 + variance
        away = points[:, None] - self.modes  # [N, 8, 2]
        weights = (-away.square().sum(2) / (2 * total)).softmax(dim=1)
        means = self.modes + away * (MODE_STD**2 / total)[:, :, None]
        return (weights[:, :, None] * means).sum(1).reshape(x.shape)


def mlp(activation: type[nn.Module], *widths: int) -> nn.Sequential:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


class FakeScore(MixtureDenoiser):
    """A learned denoiser, preconditioned as in EDM."""

    def __init__(self) -> None:
        super().__init__()
        del self.modes
        self.net = mlp(nn.SiLU, 4, 128, 128, 128, 2)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None, *_: Tensor | None) -> Tensor:
        """As its base."""
        sd, level = self.sigma_data, sigma.reshape(-1, 1)
        variance = level**2 + sd**2
        c_noise = level.log() / 4
        raw = self.net(torch.cat([x.flatten(1) / variance.sqrt(), c_noise, (4 * c_noise).sin()], dim=1))
        return (sd**2 / variance * x.flatten(1) + level * sd / variance.sqrt() * raw).reshape(x.shape)


class LatentsThemselves(nn.Module):
    """A mapping network that has nothing to do: w = z."""

    def forward(self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0) -> Tensor:
        """[N, 2] to [N, 1, 2]."""
        return z[:, None]


class PointGenerator(nn.Module):
    """A point for each latent, as an image of one pixel and two channels."""

    z_dim, c_dim, w_dim, num_ws, img_resolution, img_channels = 2, 0, 2, 1, 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.mapping = LatentsThemselves()
        self.net = mlp(nn.ReLU, 2, 128, 128, 128, 2)  # kinks let it jump from mode to mode

    def synthesis(self, ws: Tensor, noise_mode: str = "random", force_fp32: bool = False) -> Tensor:
        """[N, 1, 2] -> [N, 2, 1, 1]."""
        return self.net(ws[:, 0]).reshape(-1, 2, 1, 1)


def make_trainer(config: RunConfig = CONFIG) -> Trainer:
    """Untrained networks, and the teacher, in the real trainer."""
    torch.manual_seed(config.seed)
    pair = pair_of_modules(PointGenerator(), MixtureDenoiser())
    trainer = Trainer(pair, config.section(TrainingOptions), torch.device("cpu"))
    # A fake score that does not begin as the teacher, which has eight parameters and would know the answer.
    network = as_denoiser(FakeScore())
    optimizer = Optimizer(network.module.parameters(), (config.beta1, config.beta2), config.clip_grad)
    trainer.fake_score = TrainedNetwork("fake_score", network, optimizer, trainer.fake_score.learning_rate)
    trainer.networks[1] = trainer.fake_score
    return trainer


def average_of(trainer: Trainer) -> PointGenerator:
    """The moving average of the generator."""
    assert trainer.generator.average is not None
    average = trainer.generator.average.network.module
    assert isinstance(average, PointGenerator)
    return average


def train(trainer: Trainer) -> None:
    """Warm-up and all steps."""
    config = trainer.options
    for _ in tqdm(range(round(config.warmup_kimg * 1000 / config.batch)), desc="warm-up", leave=False, disable=None):
        trainer.warm_up_step()
    for _ in tqdm(range(round(config.kimg * 1000 / config.batch)), desc="steps", leave=False, disable=None):
        trainer.step()


@torch.no_grad()
def draw_points(network: PointGenerator, count: int, generator: torch.Generator) -> Tensor:
    """Points [N, 2] of a generator."""
    return network.synthesis(network.mapping(torch.randn(count, 2, generator=generator))).flatten(1)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Székely & Rizzo 2013), unbiased: about 0, or below, for the same law."""

    def within(a: Tensor) -> float:
        return float(torch.cdist(a, a).double().sum()) / (len(a) * (len(a) - 1))

    return 2 * float(torch.cdist(x, y).double().mean()) - within(x) - within(y)


@dataclass(frozen=True)
class Fit:
    """Quality of points.

    Attributes:
        distance: Energy distance to fresh samples.
        shares: of all points, those within three standard deviations of each mode [8]; 0.124 each would be right.
        spread: Standard deviation of points about their mode, along each axis: 0.097 would be right; 0 without points.
    """

    distance: float
    shares: Tensor
    spread: float


def measure(points: Tensor, generator: torch.Generator) -> Fit:
    """Compares points [N, 2] with the mixture."""
    away, mode = torch.cdist(points, modes()).min(1)
    near = away < 3 * MODE_STD
    shares = torch.bincount(mode[near], minlength=NUM_MODES) / len(points)
    spread = float((away[near].square().mean() / 2).sqrt()) if near.any() else 0.0
    return Fit(energy_distance(points, draw_data(len(points), generator)), shares, spread)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.set_num_threads(1)
    rng, count = torch.Generator().manual_seed(1), 4000
    trainer, start = make_trainer(), time.process_time()
    before = draw_points(average_of(trainer), count, rng)
    train(trainer)
    seconds = time.process_time() - start
    after = draw_points(average_of(trainer), count, rng)
    fits = [measure(points, rng) for points in (before, after)]
    for name, fit in zip(("before", "after"), fits, strict=True):
        shares = " ".join(f"{share:.3f}" for share in fit.shares.tolist())
        print(f"{name:<7} energy distance {fit.distance:.4f}  spread {fit.spread:.3f}  shares {shares}")
    print(f"{trainer.progress.step} steps, {seconds:.0f} s of one core")

    panels = (
        ("Generator before", before, f"energy distance {fits[0].distance:.3f}"),
        ("Generator after", after, f"energy distance {fits[1].distance:.4f}"),
        ("Samples of the teacher's distribution", draw_data(count, rng), f"standard deviation {MODE_STD:g}"),
    )
    figure, axes = pyplot.subplots(1, 3, figsize=(10.5, 3.9), layout="constrained", sharex=True, sharey=True)
    for axis, (title, points, note) in zip(axes, panels, strict=True):
        axis.scatter(*points.t(), s=3, alpha=0.35, linewidths=0, color="#2458a6")
        axis.scatter(*modes().t(), s=30, marker="+", color="#c23b22", linewidths=1)
        axis.set(title=f"{title}\n{note}", xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])
    path = ROOT / "docs" / "mixture.png"
    figure.savefig(path, dpi=110, bbox_inches="tight")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
