"""The released recipe of Diff-Instruct for a StyleGAN2 generator, written out plainly: what Refine is measured against.

Eager PyTorch and nothing else, in float32 unless a context around it says otherwise. The fake score is fitted to one
batch of images, then the generator is moved by another (two forward passes of the generator); the moving average is a
loop over tensors; Adam is PyTorch's default. Each operation is written in the fastest way found in plain PyTorch, so
that a ratio to this step is no larger than one to the published code:

- Modulated convolutions scale images before and after one convolution for the whole batch. Weights scaled for each
  sample and one grouped convolution are the same by value, but take two to three times as long to train with on a CPU,
  since every sample's weights are written, normalized and differentiated; demodulation needs their squared sums only.
- Filters are depthwise convolutions; those behind a transposed convolution see no zeros.
- Attention is two products with a softmax between, dropout PyTorch's own.
- What an update does not move requires no gradients.

Modules of Refine's networks only hold the parameters here, none of their code runs.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

P_MEAN, P_STD, SIGMA_DATA = -1.2, 1.2, 0.5


class Baseline:
    """Both updates of one step.

    Args:
        generator: StyleGAN2 of the `skip` architecture.
        teacher: EDMPrecond around a DDPM++ network.
        batch: Images of each update.
        lr: of both networks.
        halflife_nimg: of the moving average, in images.
        log_sigma: Mean and standard deviation of the logarithm of the noise levels.
    """

    def __init__(
        self,
        generator: Any,
        teacher: Any,
        batch: int,
        lr: float = 1e-5,
        halflife_nimg: float = 5e5,
        log_sigma: tuple[float, float] = (P_MEAN, P_STD),
    ) -> None:
        self.generator, self.generator_ema = generator.requires_grad_(True), copy.deepcopy(generator)
        self.teacher, self.fake = teacher.requires_grad_(False), copy.deepcopy(teacher).requires_grad_(True)
        self.batch, self.beta, self.log_sigma = batch, 0.5 ** (batch / halflife_nimg), log_sigma
        self.device = next(teacher.parameters()).device
        self.generator_optimizer = torch.optim.Adam(self.generator.parameters(), lr=lr, betas=(0.0, 0.999))
        self.fake_optimizer = torch.optim.Adam(self.fake.parameters(), lr=lr, betas=(0.0, 0.999))

    def draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, labels, noise levels and noise."""
        generator, (mean, std) = self.generator, self.log_sigma
        classes, resolution = max(generator.c_dim, 1), self.teacher.img_resolution
        with self.device:
            z = torch.randn(self.batch, generator.z_dim)
            c = torch.eye(classes)[torch.randint(classes, [self.batch])]
            noise = torch.randn(self.batch, generator.img_channels, resolution, resolution)
            return z, c, (torch.randn(self.batch, 1, 1, 1) * std + mean).exp(), noise

    def seen(self, z: Tensor, c: Tensor) -> Tensor:
        """The generator's images in the teacher's size: means over squares of pixels where it draws more pixels."""
        x0 = generate(self.generator, z, c)
        factor = x0.shape[2] // self.teacher.img_resolution
        return x0 if factor == 1 else functional.avg_pool2d(x0, factor)

    def step(self) -> tuple[Tensor, Tensor]:
        """One update of the fake score, one of the generator, one of the moving average: the loss and the gap."""
        loss, gap = self.fit_fake(), self.move_generator()
        with torch.no_grad():
            for average, live in zip(self.generator_ema.parameters(), self.generator.parameters(), strict=True):
                average.copy_(live.lerp(average, self.beta))
        return loss, gap

    def fit_fake(self) -> Tensor:
        """An update of the fake score; its loss."""
        z, c, sigma, noise = self.draw()
        with torch.no_grad():
            x0 = self.seen(z, c)
        self.fake_optimizer.zero_grad()
        denoised = denoise(self.fake, x0 + sigma * noise, sigma, c, dropout=True)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight * (denoised - x0) ** 2).sum().mul(1 / self.batch)
        loss.backward()
        _apply(self.fake_optimizer)
        return loss.detach()

    def move_generator(self) -> Tensor:
        """An update of the generator; how far both estimates are from each other, the mean over images."""
        z, c, sigma, noise = self.draw()
        self.generator_optimizer.zero_grad()
        x0 = self.seen(z, c)
        with torch.no_grad():
            x_t = x0 + sigma * noise
            gradient = denoise(self.fake, x_t, sigma, c) - denoise(self.teacher, x_t, sigma, c)
        (gradient * x0).sum().mul(1 / self.batch).backward()
        _apply(self.generator_optimizer)
        return gradient.square().mean(dim=[1, 2, 3]).sqrt().mean()


def _apply(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
    optimizer.step()


# --- generator


def generate(generator: Any, z: Tensor, c: Tensor, noise_mode: str = "random") -> Tensor:
    """Latents [N, z_dim] and labels [N, c_dim] to images [N, C, R, R]."""
    mapping, synthesis = generator.mapping, generator.synthesis
    x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
    if generator.c_dim:
        y = _fully_connected(mapping.embed, c, "linear", 1.0)
        x = torch.cat([x, y * (y.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()], dim=1)
    for i in range(mapping.num_layers):
        x = _fully_connected(mapping.get_submodule(f"fc{i}"), x, "lrelu", 0.01)
    w = x
    x = img = None
    for resolution in synthesis.block_resolutions:
        block = synthesis.get_submodule(f"b{resolution}")
        if x is None:
            x = block.const[None].repeat(len(w), 1, 1, 1)
        else:
            x = _synthesis_layer(block.conv0, x, w, noise_mode, up=2)
        x = _synthesis_layer(block.conv1, x, w, noise_mode, up=1)
        if img is not None:
            img = _upsample(img, block.resample_filter)
        styles = _fully_connected(block.torgb.affine, w, "linear", 1.0) / math.sqrt(x.shape[1])
        y = _modulated_conv2d(x, block.torgb.weight, styles, demodulate=False)
        y = _bias_act(y, block.torgb.bias, clamp=block.torgb.conv_clamp)
        img = y if img is None else img + y
    assert img is not None
    return img


def _fully_connected(layer: Any, x: Tensor, act: str, lr_multiplier: float) -> Tensor:
    weight = layer.weight * (lr_multiplier / math.sqrt(layer.weight.shape[1]))
    return _bias_act(x @ weight.t(), layer.bias * lr_multiplier, act)


def _synthesis_layer(layer: Any, x: Tensor, w: Tensor, noise_mode: str, up: int) -> Tensor:
    styles = _fully_connected(layer.affine, w, "linear", 1.0)
    x = _modulated_conv2d(x, layer.weight, styles, up=up, resample_filter=layer.resample_filter)
    if noise_mode == "random":
        x = x + torch.randn(len(x), 1, *x.shape[2:], device=x.device) * layer.noise_strength
    elif noise_mode == "const":
        x = x + layer.noise_const * layer.noise_strength
    return _bias_act(x, layer.bias, "lrelu", layer.conv_clamp)


def _modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    up: int = 1,
    demodulate: bool = True,
    resample_filter: Tensor | None = None,
) -> Tensor:
    """Convolve sample n by weight * styles[n], divided by its norm over inputs and taps if `demodulate`."""
    x = x * styles[:, :, None, None]
    if up == 1:
        x = functional.conv2d(x, weight, padding=weight.shape[2] // 2)
    else:
        x = functional.conv_transpose2d(x, weight.transpose(0, 1), stride=up)
        x = _filter(functional.pad(x, [1, 1, 1, 1]), resample_filter, up**2)
    if not demodulate:
        return x
    squares = styles.square() @ weight.square().sum(dim=[2, 3]).t()  # of each sample's weights, [N, out_channels]
    return x * (squares + 1e-8).rsqrt()[:, :, None, None]


def _filter(x: Tensor, f: Tensor | None, gain: float) -> Tensor:
    """Every channel by the same symmetric taps [H, W], without padding."""
    assert f is not None
    return functional.conv2d(x, (f * gain).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])


def _upsample(x: Tensor, f: Tensor) -> Tensor:
    """Twice the size, by taps [4, 4] of sum 1 and gain 4: each channel's transposed convolution."""
    channels = x.shape[1]
    return functional.conv_transpose2d(x, (f * 4).expand(channels, 1, -1, -1), stride=2, padding=1, groups=channels)


def _bias_act(x: Tensor, b: Tensor, act: str = "linear", clamp: float | None = None) -> Tensor:
    x = x + b.reshape([1, -1] + [1] * (x.ndim - 2))
    if act == "lrelu":
        x = functional.leaky_relu(x, 0.2) * math.sqrt(2)
    return x if clamp is None else x.clamp(-clamp, clamp)


# --- U-Net


def denoise(denoiser: Any, x: Tensor, sigma: Tensor, labels: Tensor, dropout: bool = False) -> Tensor:
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), sigma [N, 1, 1, 1]; labels are one-hot."""
    variance = sigma**2 + SIGMA_DATA**2
    raw = _unet(denoiser.model, x / variance.sqrt(), sigma.log().flatten() / 4, labels, dropout)
    return SIGMA_DATA**2 / variance * x + sigma * SIGMA_DATA / variance.sqrt() * raw


def _unet(unet: Any, x: Tensor, noise_labels: Tensor, labels: Tensor, dropout: bool) -> Tensor:
    half = unet.map_layer0.in_features // 2
    frequencies = (1 / 10000) ** (torch.arange(half, device=x.device) / (half - 1))
    angles = noise_labels.outer(frequencies)
    emb = torch.cat([angles.sin(), angles.cos()], dim=1)
    if unet.label_dim:
        emb = emb + functional.linear(labels * math.sqrt(unet.label_dim), unet.map_label.weight, unet.map_label.bias)
    for layer in (unet.map_layer0, unet.map_layer1):
        emb = functional.silu(functional.linear(emb, layer.weight, layer.bias))

    skips = []
    for name, block in unet.enc.items():
        x = _conv2d(block, x) if name.endswith("_conv") else _block(block, name, x, emb, dropout)
        skips.append(x)
    for name, block in unet.dec.items():
        if "_aux_" in name:
            continue
        if "_block" in name:
            x = torch.cat([x, skips.pop()], dim=1)
        x = _block(block, name, x, emb, dropout)
    name = f"{x.shape[2]}x{x.shape[3]}_aux_"
    return _conv2d(unet.dec[name + "conv"], functional.silu(_group_norm(unet.dec[name + "norm"], x)))


def _block(block: Any, name: str, x: Tensor, emb: Tensor, dropout: bool) -> Tensor:
    resampling = name.rpartition("_")[2]
    h = _conv2d(block.conv0, functional.silu(_group_norm(block.norm0, x)), resampling)
    h = h + functional.linear(emb, block.affine.weight, block.affine.bias)[:, :, None, None]
    h = functional.dropout(functional.silu(_group_norm(block.norm1, h)), block.dropout, dropout)
    h = _conv2d(block.conv1, h)
    h = (h + (x if block.skip is None else _conv2d(block.skip, x, resampling))) * math.sqrt(0.5)
    if not block.num_heads:
        return h
    n, channels, height, width = h.shape
    qkv = _conv2d(block.qkv, _group_norm(block.norm2, h)).reshape(n, channels, 3, height * width)
    query, key, value = qkv.unbind(2)
    weights = torch.einsum("ncq,nck->nqk", query, key / math.sqrt(channels)).softmax(dim=2)
    a = torch.einsum("nqk,nck->ncq", weights, value).reshape(h.shape)
    return (h + _conv2d(block.proj, a)) * math.sqrt(0.5)


def _conv2d(layer: Any, x: Tensor, resampling: str = "") -> Tensor:
    channels = x.shape[1]
    if resampling == "up":
        x = functional.conv_transpose2d(x, x.new_ones(channels, 1, 2, 2), stride=2, groups=channels)
    elif resampling == "down":
        x = functional.conv2d(x, x.new_full([channels, 1, 2, 2], 0.25), stride=2, groups=channels)
    return functional.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2)


def _group_norm(layer: Any, x: Tensor) -> Tensor:
    groups = min(32, x.shape[1] // 4)
    return functional.group_norm(x, groups, layer.weight, layer.bias, eps=1e-6)
