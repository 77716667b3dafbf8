"""Teacher: a class-conditional diffusion model, trained as in Karras et al., arXiv 2206.00364."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass

import torch
from tqdm import tqdm

from refine.digits.digits import NUM_CLASSES, RESOLUTION, Images
from refine.digits.sources.edm import EDMLoss, EDMPrecond


@dataclass(frozen=True)
class TeacherOptions:
    """Training of the teacher.

    Attributes:
        kimg: Length, in thousands of images.
        batch: Images per step.
        lr: Adam learning rate: constant for the first half, then linearly to 0.
        ema_halflife_kimg: Half-life of the averaged weights.
        resolution: Height and width of the training images in pixels.
        model_channels, channel_mult, num_blocks, attn_resolutions, dropout: Arguments of the DDPM++ U-Net.
        label_dim: Width of the labels; 0 for an unconditional network.
    """

    kimg: float = 200
    batch: int = 64
    lr: float = 1e-3
    ema_halflife_kimg: float = 5
    resolution: int = RESOLUTION
    model_channels: int = 16
    channel_mult: tuple[int, ...] = (1, 2, 2)
    num_blocks: int = 1
    attn_resolutions: tuple[int, ...] = (8,)
    dropout: float = 0.1
    label_dim: int = NUM_CLASSES


def make_network(options: TeacherOptions) -> EDMPrecond:
    """The untrained denoiser."""
    unet = {key: value for key, value in asdict(options).items() if key in UNET_OPTIONS}
    unet = {key: list(value) if isinstance(value, tuple) else value for key, value in unet.items()}
    return EDMPrecond(img_resolution=options.resolution, img_channels=1, use_fp16=False, model_type="SongUNet", **unet)


UNET_OPTIONS = ("label_dim", "model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")


def train_teacher(images: Images, options: TeacherOptions) -> EDMPrecond:
    """The moving average of a denoiser trained on the images."""
    net = make_network(options).train()
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    loss_fn = EDMLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    x0, labels = images.x0, images.one_hot[:, : options.label_dim]
    steps = max(1, round(options.kimg * 1000 / options.batch))
    beta = 0.5 ** (options.batch / (options.ema_halflife_kimg * 1000))
    progress = tqdm(range(steps), desc="teacher", unit="step")
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, 2 * (1 - step / steps))
        index = torch.randint(len(images), [options.batch])
        loss = loss_fn(net, x0[index], labels[index]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for average, live in zip(ema.parameters(), net.parameters(), strict=True):
                average.lerp_(live, 1 - beta)
        if step % 100 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    return ema
