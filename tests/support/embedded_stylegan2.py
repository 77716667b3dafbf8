"""StyleGAN2 as a source that travels in a pickle: what the classes of a golden pickle compute, on `torch_utils.ops`.

The golden pickles have no source of their own any more. An import hook gives them this one, and then plain
`pickle.load` makes networks that can be trained. Nothing here is constructed, so there are no constructors: every
attribute comes out of the pickle.
"""

import math

import torch

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d


def unit(x):
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def modulated(x, weight, styles, noise=None, demodulate=True, **resampling):
    """ArXiv 1912.04958, section 2.2, with styles on the images instead of on the weights."""
    y = conv2d_resample.conv2d_resample(x * styles[:, :, None, None], weight, **resampling)
    if demodulate:
        norm = ((weight[None] * styles[:, None, :, None, None]).square().sum(dim=[2, 3, 4]) + 1e-8).sqrt()
        y = y / norm[:, :, None, None]
    return y if noise is None else fma.fma(y, torch.ones_like(y), noise)


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    def forward(self, x):
        return bias_act.bias_act(
            x @ (self.weight * self.weight_gain).t(), self.bias * self.bias_gain, act=self.activation
        )


@persistence.persistent_class
class Conv2dLayer(torch.nn.Module):
    def forward(self, x, gain=1):
        weight = self.weight * self.weight_gain
        x = conv2d_resample.conv2d_resample(
            x=x,
            w=weight,
            f=self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    def forward(self, z, c, truncation_psi=1):
        parts = [unit(z)] if self.z_dim else []
        parts += [unit(self.embed(c))] if self.c_dim else []
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.num_ws is None:
            return x
        return self.w_avg.lerp(x[:, None].repeat(1, self.num_ws, 1), truncation_psi)


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    @misc.profiled_function
    def forward(self, x, w, noise_mode, gain=1):
        noise = {
            "none": lambda: None,
            "const": lambda: self.noise_const * self.noise_strength,
            "random": lambda: torch.randn(len(x), 1, *self.noise_const.shape) * self.noise_strength,
        }[noise_mode]()
        x = modulated(
            x,
            self.weight,
            self.affine(w),
            noise,
            f=self.resample_filter,
            up=self.up,
            padding=self.padding,
            flip_weight=self.up == 1,
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, self.bias, act=self.activation, gain=self.act_gain * gain, clamp=clamp)


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    def forward(self, x, w):
        x = modulated(x, self.weight, self.affine(w) * self.weight_gain, demodulate=False)
        return bias_act.bias_act(x, self.bias, clamp=self.conv_clamp)


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    def forward(self, x, img, ws, noise_mode):
        is_resnet = self.architecture == "resnet"
        if x is None:
            x = self.conv1(self.const.expand(len(ws), -1, -1, -1), ws[:, 0], noise_mode)
        elif is_resnet:
            shortcut = self.skip(x, gain=math.sqrt(0.5))
            x = self.conv0(x, ws[:, 0], noise_mode)
            x = shortcut + self.conv1(x, ws[:, 1], noise_mode, gain=math.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x, ws[:, 0], noise_mode), ws[:, 1], noise_mode)
        if img is not None:
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.num_torgb:
            rgb = self.torgb(x, ws[:, self.num_conv])
            img = rgb if img is None else img + rgb
        return x, img


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    def forward(self, ws, noise_mode="random", force_fp32=False):
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        x, img, first = None, None, 0
        for resolution in self.block_resolutions:
            block = getattr(self, f"b{resolution}")
            x, img = block(x, img, ws[:, first : first + block.num_conv + block.num_torgb], noise_mode)
            first += block.num_conv
        return img


@persistence.persistent_class
class Generator(torch.nn.Module):
    def forward(self, z, c, truncation_psi=1, noise_mode="random"):
        return self.synthesis(self.mapping(z, c, truncation_psi=truncation_psi), noise_mode=noise_mode)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    def forward(self, x, img):
        if "fromrgb" in self._modules:
            seen = self.fromrgb(img)
            x = seen if x is None else x + seen
        if self.architecture == "resnet":
            shortcut = self.skip(x, gain=math.sqrt(0.5))
            return shortcut + self.conv1(self.conv0(x), gain=math.sqrt(0.5)), None
        img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        return self.conv1(self.conv0(x)), img


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """arXiv 1710.10196, section 3: how much the samples of a group differ, as a further channel."""

    def forward(self, x):
        size = min(self.group_size, len(x))
        groups = x.unflatten(0, (size, -1)).unflatten(2, (self.num_channels, -1))  # [size, groups, F, C / F, H, W]
        spread = (groups.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])  # [groups, F]
        return torch.cat([x, spread.repeat(size, 1)[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    def forward(self, x, img, cmap):
        if "fromrgb" in self._modules:
            x = x + self.fromrgb(img)
        x = self.out(self.fc(self.conv(self.mbstd(x)).flatten(1)))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    def forward(self, img, c):
        x = None
        for resolution in self.block_resolutions:
            x, img = getattr(self, f"b{resolution}")(x, img)
        return self.b4(x, img, self.mapping(None, c) if self.c_dim else None)


@persistence.persistent_class
class AugmentPipe(torch.nn.Module):
    pass
