"""StyleGAN2 generator and discriminator in the layout of stylegan2-ada-pytorch: float32, 'skip' and 'resnet'.

Part of Refine, Apache-2.0. Karras et al., arXiv 1912.04958 and 2006.06676. Weights have unit variance and are scaled
by 1 / sqrt(fan_in) when they are used (arXiv 1710.10196).
"""

import math

import torch
from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, upfirdn2d

FILTER = [1, 3, 3, 1]  # taps of all resampling


def unit_mean_square(x):
    """Scale x [N, features] so that the mean square of each row is 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    """[N, in_features] -> [N, out_features], with bias and activation."""

    def __init__(self, in_features, out_features, activation="linear", lr_multiplier=1, bias_init=0):
        super().__init__()
        self.activation = activation
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = torch.nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init)))

    def forward(self, x):
        """[N, in_features] -> [N, out_features]."""
        x = x @ (self.weight * self.weight_gain).t()
        return bias_act.bias_act(x, self.bias * self.bias_gain, act=self.activation)


@persistence.persistent_class
class Conv2dLayer(torch.nn.Module):
    """Convolution that keeps the resolution or halves it, with optional bias, and activation."""

    def __init__(self, in_channels, out_channels, kernel_size, bias=True, activation="linear", down=1):
        super().__init__()
        self.activation, self.down = activation, down
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x, gain=1):
        """[N, in_channels, H, W] -> [N, out_channels, H / down, W / down], times gain."""
        x = conv2d_resample.conv2d_resample(
            x, self.weight * self.weight_gain, f=self.resample_filter, down=self.down, padding=self.padding
        )
        act_gain = bias_act.activation_funcs[self.activation].def_gain * gain
        return bias_act.bias_act(x, self.bias, act=self.activation, gain=act_gain)


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    """Latents z and labels c to w, repeated num_ws times; with z_dim=0, c alone; with num_ws=None, once."""

    def __init__(
        self, z_dim, c_dim, w_dim, num_ws, num_layers=8, activation="lrelu", lr_multiplier=0.01, w_avg_beta=0.995
    ):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        if c_dim:
            self.embed = FullyConnectedLayer(c_dim, w_dim)
        for i in range(num_layers):
            layer = FullyConnectedLayer(widths[i], widths[i + 1], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{i}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, skip_w_avg_update=False, **unused):
        """From z [N, z_dim] and c [N, c_dim] to [N, num_ws, w_dim]; in training mode `w_avg` follows."""
        parts = []
        if self.z_dim:
            misc.assert_shape(z, [None, self.z_dim])
            parts.append(unit_mean_square(z.to(torch.float32)))
        if self.c_dim:
            misc.assert_shape(c, [None, self.c_dim])
            parts.append(unit_mean_square(self.embed(c.to(torch.float32))))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.num_ws is None:
            return x
        if self.training and not skip_w_avg_update:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        cut = self.num_ws if truncation_cutoff is None else truncation_cutoff
        truncated = x if truncation_psi == 1 else self.w_avg.lerp(x, truncation_psi)
        return torch.stack([truncated] * cut + [x] * (self.num_ws - cut), dim=1)


def modulated_conv2d(x, weight, styles, up=1, padding=0, resample_filter=None, demodulate=True):
    """Convolve each image with its own weight * styles, normalised by demodulation (arXiv 1912.04958, eq. 1 and 3).

    The styles scale the images before, the norms after: the same as scaling the weights, without one per sample.
    """
    x = x * styles[:, :, None, None]
    x = conv2d_resample.conv2d_resample(x, weight, f=resample_filter, up=up, padding=padding, flip_weight=(up == 1))
    if demodulate:
        norms = styles.square() @ weight.square().sum(dim=[2, 3]).t()  # [N, out_channels]
        x = x * (norms + 1e-8).rsqrt()[:, :, None, None]
    return x


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    """Modulated convolution, noise, bias and activation."""

    def __init__(self, in_channels, out_channels, w_dim, resolution, up=1):
        super().__init__()
        self.resolution, self.up = resolution, up
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, w, noise_mode="random"):
        """[N, in_channels, H, W] -> [N, out_channels, resolution, resolution] in the style w [N, w_dim]."""
        x = modulated_conv2d(x, self.weight, self.affine(w), self.up, 1, self.resample_filter)
        if noise_mode == "random":
            size = [x.shape[0], 1, self.resolution, self.resolution]
            x = x + torch.randn(size, device=x.device) * self.noise_strength
        elif noise_mode == "const":
            x = x + self.noise_const * self.noise_strength
        return bias_act.bias_act(x, self.bias, act="lrelu")


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    """Features to colours: 1x1 modulated convolution without demodulation."""

    def __init__(self, in_channels, out_channels, w_dim):
        super().__init__()
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, w):
        """[N, in_channels, H, W] -> [N, out_channels, H, W] in the style w [N, w_dim]."""
        x = modulated_conv2d(x, self.weight, self.affine(w) * self.weight_gain, demodulate=False)
        return bias_act.bias_act(x, self.bias)


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    """One resolution: two layers (one, after a learned constant, in the first block) and their image, added up."""

    def __init__(self, in_channels, out_channels, w_dim, resolution, img_channels):
        super().__init__()
        self.in_channels, self.resolution = in_channels, resolution
        self.num_conv, self.num_torgb = (2 if in_channels else 1), 1
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))
        if in_channels:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, up=2)
        else:
            self.const = torch.nn.Parameter(torch.randn(out_channels, resolution, resolution))
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution)
        self.torgb = ToRGBLayer(out_channels, img_channels, w_dim)

    def forward(self, x, img, ws, noise_mode="random"):
        """Features and image of half the resolution (None at first), ws [N, num_conv + 1, w_dim] -> the same here."""
        if self.in_channels:
            x = self.conv0(x, ws[:, 0], noise_mode)
        else:
            x = self.const.expand(ws.shape[0], -1, -1, -1)
        x = self.conv1(x, ws[:, self.num_conv - 1], noise_mode)
        y = self.torgb(x, ws[:, self.num_conv])
        if img is not None:
            y = y + upfirdn2d.upsample2d(img, self.resample_filter)
        return x, y


def block_channels(channel_base, channel_max, resolution):
    """Feature channels of a block."""
    return min(channel_base // resolution, channel_max)


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    """w to images: blocks b4, b8, ... up to the image's resolution."""

    def __init__(self, w_dim, img_resolution, img_channels, channel_base=32768, channel_max=512):
        super().__init__()
        self.w_dim, self.img_resolution, self.img_channels = w_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(2, img_resolution.bit_length())]
        self.num_ws = 2 * len(self.block_resolutions)  # one for each layer, one for the last image
        in_channels = 0
        for res in self.block_resolutions:
            out_channels = block_channels(channel_base, channel_max, res)
            setattr(self, f"b{res}", SynthesisBlock(in_channels, out_channels, w_dim, res, img_channels))
            in_channels = out_channels

    def forward(self, ws, noise_mode="random", **unused):
        """From ws [N, num_ws, w_dim] to [N, img_channels, img_resolution, img_resolution]."""
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        x, img, first = None, None, 0
        for res in self.block_resolutions:
            block = getattr(self, f"b{res}")
            x, img = block(x, img, ws[:, first : first + block.num_conv + 1], noise_mode)
            first += block.num_conv  # an image shares its w with the next block's first layer
        return img


@persistence.persistent_class
class Generator(torch.nn.Module):
    """Latents and labels to images in [-1, 1], not clamped."""

    def __init__(self, z_dim, c_dim, w_dim, img_resolution, img_channels, mapping_kwargs=None, synthesis_kwargs=None):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim = z_dim, c_dim, w_dim
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **(synthesis_kwargs or {}))
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, **(mapping_kwargs or {}))

    def forward(self, z, c, truncation_psi=1, truncation_cutoff=None, **synthesis_kwargs):
        """From z [N, z_dim] and c [N, c_dim] to [N, img_channels, img_resolution, img_resolution]."""
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    """Two convolutions and a shortcut, to half the resolution; the first block also reads the image."""

    def __init__(self, in_channels, mid_channels, out_channels, img_channels):
        super().__init__()
        self.in_channels = in_channels
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(FILTER))  # unused: the layers have theirs
        if not in_channels:
            self.fromrgb = Conv2dLayer(img_channels, mid_channels, 1, activation="lrelu")
        self.conv0 = Conv2dLayer(mid_channels, mid_channels, 3, activation="lrelu")
        self.conv1 = Conv2dLayer(mid_channels, out_channels, 3, activation="lrelu", down=2)
        self.skip = Conv2dLayer(mid_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x, img):
        """[N, in_channels, R, R] (or the image) -> [N, out_channels, R / 2, R / 2]."""
        x = x if self.in_channels else self.fromrgb(img)
        shortcut = self.skip(x, gain=math.sqrt(0.5))
        return shortcut + self.conv1(self.conv0(x), gain=math.sqrt(0.5))


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """Adds a channel with the standard deviation over groups of samples, mean over pixels (arXiv 1710.10196)."""

    def __init__(self, group_size):
        super().__init__()
        self.group_size = group_size

    def forward(self, x):
        """[N, C, H, W] -> [N, C + 1, H, W]; sample n is in group n % (N / group_size)."""
        n, _, height, width = x.shape
        size = min(self.group_size, n)
        groups = x.reshape(size, n // size, -1)
        std = ((groups - groups.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean(dim=1)  # [N / size]
        return torch.cat([x, std.repeat(size).reshape(n, 1, 1, 1).expand(n, 1, height, width)], dim=1)


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    """Features at 4x4 to a logit, by projection on the label (arXiv 1802.05637)."""

    def __init__(self, in_channels, cmap_dim, mbstd_group_size=4):
        super().__init__()
        self.cmap_dim = cmap_dim
        self.mbstd = MinibatchStdLayer(mbstd_group_size)
        self.conv = Conv2dLayer(in_channels + 1, in_channels, 3, activation="lrelu")
        self.fc = FullyConnectedLayer(in_channels * 16, in_channels, activation="lrelu")
        self.out = FullyConnectedLayer(in_channels, cmap_dim or 1)

    def forward(self, x, cmap):
        """[N, in_channels, 4, 4], cmap [N, cmap_dim] -> [N, 1]."""
        x = self.out(self.fc(self.conv(self.mbstd(x)).flatten(1)))
        return x if cmap is None else (x * cmap).sum(dim=1, keepdim=True) / math.sqrt(self.cmap_dim)


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """Images and labels to logits."""

    def __init__(
        self,
        c_dim,
        img_resolution,
        img_channels,
        channel_base=32768,
        channel_max=512,
        mapping_kwargs=None,
        epilogue_kwargs=None,
    ):
        super().__init__()
        self.c_dim, self.img_resolution, self.img_channels = c_dim, img_resolution, img_channels
        self.block_resolutions = [2**i for i in range(3, img_resolution.bit_length())][::-1]
        in_channels = 0
        for res in self.block_resolutions:
            mid = block_channels(channel_base, channel_max, res)
            out = block_channels(channel_base, channel_max, res // 2)
            setattr(self, f"b{res}", DiscriminatorBlock(in_channels, mid, out, img_channels))
            in_channels = out
        cmap_dim = in_channels if c_dim else 0
        if c_dim:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, **(mapping_kwargs or {}))
        self.b4 = DiscriminatorEpilogue(in_channels, cmap_dim, **(epilogue_kwargs or {}))

    def forward(self, img, c, **unused):
        """From img [N, img_channels, R, R] and c [N, c_dim] to [N, 1]."""
        x = None
        for res in self.block_resolutions:
            x = getattr(self, f"b{res}")(x, img)
        return self.b4(x, self.mapping(None, c) if self.c_dim else None)
