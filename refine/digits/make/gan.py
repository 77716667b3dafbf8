"""Generator to be refined: a class-conditional StyleGAN2, stopped long before it is good.

Losses: non-saturating (arXiv 1406.2661) with the R1 penalty (arXiv 1801.04406), every 16th step only and 16 times as
strong (arXiv 1912.04958, appendix B).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus
from tqdm import tqdm

from refine.digits.digits import NUM_CLASSES, RESOLUTION, Images
from refine.digits.sources.stylegan2 import Discriminator, Generator


@dataclass(frozen=True)
class GanOptions:
    """Training of the GAN.

    Attributes:
        kimg: Length, in thousands of real images.
        batch: Images per step.
        lr: Adam learning rate of both networks, with betas (0, 0.99).
        r1_gamma: Weight of the penalty, E[gamma / 2 |grad D|^2].
        r1_interval: Steps between two penalties.
        ema_halflife_kimg: Half-life of the generator's averaged weights.
        z_dim: Width of z and w.
        channels: Channels of all layers.
        mapping_layers: Fully connected layers from z to w.
        c_dim: Width of the labels; 0 for unconditional networks.
    """

    kimg: float = 8
    batch: int = 64
    lr: float = 2e-3
    r1_gamma: float = 0.5
    r1_interval: int = 16
    ema_halflife_kimg: float = 2
    z_dim: int = 64
    channels: int = 64
    mapping_layers: int = 4
    c_dim: int = NUM_CLASSES


@dataclass(frozen=True)
class Gan:
    """Networks of a StyleGAN pickle."""

    G: Generator
    D: Discriminator
    G_ema: Generator


def make_networks(options: GanOptions) -> Gan:
    """Untrained networks."""
    shape = {"img_resolution": RESOLUTION, "img_channels": 1}
    width = {"channel_base": options.channels * RESOLUTION, "channel_max": options.channels}
    G = Generator(
        z_dim=options.z_dim,
        c_dim=options.c_dim,
        w_dim=options.z_dim,
        **shape,
        mapping_kwargs={"num_layers": options.mapping_layers},
        synthesis_kwargs=width,
    )
    D = Discriminator(c_dim=options.c_dim, **shape, **width, mapping_kwargs={"num_layers": options.mapping_layers})
    return Gan(G, D, copy.deepcopy(G).eval().requires_grad_(False))


def train_gan(images: Images, options: GanOptions) -> Gan:
    """Networks trained on the images."""
    gan = make_networks(options)
    G, D, G_ema = gan.G.train(), gan.D.train(), gan.G_ema
    G_optimizer = torch.optim.Adam(G.parameters(), lr=options.lr, betas=(0.0, 0.99))
    D_optimizer = torch.optim.Adam(D.parameters(), lr=options.lr, betas=(0.0, 0.99))
    x0, labels = images.x0, images.one_hot[:, : options.c_dim]
    beta = 0.5 ** (options.batch / (options.ema_halflife_kimg * 1000))

    def latents() -> tuple[Tensor, Tensor]:
        return torch.randn(options.batch, options.z_dim), random_labels(options.batch, options.c_dim)

    steps = max(1, round(options.kimg * 1000 / options.batch))
    progress = tqdm(range(steps), desc="GAN", unit="step")
    for step in progress:
        z, c = latents()
        G_loss = softplus(-D(G(z, c), c)).mean()
        update(G_optimizer, G_loss)

        z, c = latents()
        with torch.no_grad():
            fakes = G(z, c)
        index = torch.randint(len(images), [options.batch])
        is_penalized = step % options.r1_interval == 0
        reals = x0[index].requires_grad_(is_penalized)
        real_logits = D(reals, labels[index])
        D_loss = softplus(D(fakes, c)).mean() + softplus(-real_logits).mean()
        if is_penalized:
            (gradient,) = torch.autograd.grad(real_logits.sum(), reals, create_graph=True)
            penalty = gradient.square().sum(dim=[1, 2, 3]).mean()
            D_loss = D_loss + options.r1_interval * options.r1_gamma / 2 * penalty
        update(D_optimizer, D_loss)

        with torch.no_grad():
            for average, live in zip(G_ema.parameters(), G.parameters(), strict=True):
                average.lerp_(live, 1 - beta)
            for kept, current in zip(G_ema.buffers(), G.buffers(), strict=True):
                kept.copy_(current)
        if step % 20 == 0:
            progress.set_postfix(G=f"{G_loss.item():.2f}", D=f"{D_loss.item():.2f}")
    for network in (G, D):
        network.eval().requires_grad_(False)
    return gan


def random_labels(batch: int, c_dim: int = NUM_CLASSES) -> Tensor:
    """One-hot labels [batch, c_dim], every class equally likely; [batch, 0] where there are none."""
    if c_dim == 0:
        return torch.zeros(batch, 0)
    return one_hot(torch.randint(c_dim, [batch]), c_dim).float()


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()
