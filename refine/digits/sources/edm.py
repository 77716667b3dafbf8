"""The EDM denoiser around a DDPM++ U-Net, and its loss, in the layout of the edm repository, in float32.

Part of Refine, Apache-2.0. Karras et al., arXiv 2206.00364; DDPM++: Song et al., arXiv 2011.13456.
"""

import math

import torch
from torch.nn import functional
from torch_utils import misc, persistence


def xavier_uniform(shape, fan_in, fan_out, gain):
    """A parameter, uniform with variance gain^2 * 2 / (fan_in + fan_out)."""
    bound = gain * math.sqrt(6 / (fan_in + fan_out))
    return torch.nn.Parameter((torch.rand(shape) * 2 - 1) * bound)


@persistence.persistent_class
class Linear(torch.nn.Module):
    """[N, in_features] -> [N, out_features]."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.weight = xavier_uniform([out_features, in_features], in_features, out_features, 1)
        self.bias = torch.nn.Parameter(torch.zeros(out_features))

    def forward(self, x):
        """[N, in_features] -> [N, out_features]."""
        return functional.linear(x, self.weight, self.bias)


@persistence.persistent_class
class Conv2d(torch.nn.Module):
    """Convolution, after halving or doubling the resolution with a box filter where `down` or `up` is set."""

    def __init__(self, in_channels, out_channels, kernel, up=False, down=False, gain=1):
        super().__init__()
        self.up, self.down, self.padding = up, down, kernel // 2
        fans = in_channels * kernel**2, out_channels * kernel**2
        self.weight = xavier_uniform([out_channels, in_channels, kernel, kernel], *fans, gain)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels))
        if up or down:
            self.register_buffer("resample_filter", torch.full([1, 1, 2, 2], 0.25))

    def forward(self, x):
        """[N, in_channels, H, W] -> [N, out_channels, H', W']."""
        if self.up:
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
        if self.down:
            x = functional.avg_pool2d(x, 2)
        return functional.conv2d(x, self.weight, self.bias, padding=self.padding)


@persistence.persistent_class
class GroupNorm(torch.nn.Module):
    """Normalisation over groups of at least four channels, 32 groups at most."""

    def __init__(self, channels, eps=1e-6):
        super().__init__()
        self.num_groups, self.eps = min(32, channels // 4), eps
        self.weight = torch.nn.Parameter(torch.ones(channels))
        self.bias = torch.nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        """[N, C, H, W] -> [N, C, H, W]."""
        return functional.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@persistence.persistent_class
class PositionalEmbedding(torch.nn.Module):
    """[N] -> [N, channels]: cosines, then sines, at frequencies from 1 down to 1 / 10000."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, x):
        """[N] -> [N, channels]."""
        index = torch.arange(self.channels // 2, dtype=torch.float32, device=x.device)
        angles = x[:, None] * 10000 ** (-index / (self.channels // 2 - 1))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


@persistence.persistent_class
class UNetBlock(torch.nn.Module):
    """Residual block, shifted by the embedding of the noise level; with self-attention (one head) on request."""

    def __init__(self, in_channels, out_channels, emb_channels, dropout, up=False, down=False, attention=False):
        super().__init__()
        self.dropout, self.attention = dropout, attention
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up, down)
        self.affine = Linear(emb_channels, out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, gain=1e-5)
        self.skip = None
        if in_channels != out_channels or up or down:
            self.skip = Conv2d(in_channels, out_channels, 1, up, down)
        if attention:
            self.norm2 = GroupNorm(out_channels)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, gain=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, 1, gain=1e-5)

    def forward(self, x, emb):
        """From x [N, in_channels, H, W] and emb [N, emb_channels] to [N, out_channels, H', W']."""
        h = self.conv0(functional.silu(self.norm0(x)))
        h = functional.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(functional.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        if self.attention:
            n, channels, height, width = x.shape
            # The output channels of qkv are [channel, (query, key, value)].
            q, k, v = self.qkv(self.norm2(x)).reshape(n, channels, 3, height * width).unbind(2)
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(channels), dim=2)
            h = self.proj((v @ weights.transpose(1, 2)).reshape(n, channels, height, width))
            x = (x + h) * math.sqrt(0.5)
        return x


@persistence.persistent_class
class SongUNet(torch.nn.Module):
    """DDPM++."""

    def __init__(
        self,
        img_resolution,
        in_channels,
        out_channels,
        label_dim=0,
        model_channels=128,
        channel_mult=(1, 2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        dropout=0.1,
    ):
        super().__init__()
        self.label_dim, self.num_blocks = label_dim, num_blocks
        self.resolutions = [img_resolution >> level for level in range(len(channel_mult))]
        emb_channels = 4 * model_channels
        self.map_noise = PositionalEmbedding(model_channels)
        if label_dim:
            self.map_label = Linear(label_dim, model_channels)
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        def block(cin, cout, **options):
            return UNetBlock(cin, cout, emb_channels, dropout, **options)

        self.enc, self.dec = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        widths = [model_channels * mult for mult in channel_mult]
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = Conv2d(in_channels, model_channels, 3)
        channels, skips = model_channels, [model_channels]
        for res, width in zip(self.resolutions, widths):
            if res != img_resolution:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, down=True)
                skips.append(channels)
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = block(channels, width, attention=res in attn_resolutions)
                channels = width
                skips.append(channels)
        for res, width in zip(self.resolutions[::-1], widths[::-1]):
            if res == self.resolutions[-1]:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, up=True)
            for i in range(num_blocks + 1):
                attention = res in attn_resolutions and i == num_blocks
                self.dec[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), width, attention=attention)
                channels = width
        self.dec[f"{img_resolution}x{img_resolution}_aux_norm"] = GroupNorm(channels)
        self.dec[f"{img_resolution}x{img_resolution}_aux_conv"] = Conv2d(channels, out_channels, 3, gain=1e-5)

    def forward(self, x, noise_labels, class_labels):
        """From x [N, in_channels, R, R], noise_labels [N], class_labels [N, label_dim] to [N, out_channels, R, R]."""
        cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)
        if self.label_dim:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        emb = functional.silu(self.map_layer1(functional.silu(self.map_layer0(emb))))
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("_conv") else layer(x, emb)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            if "_aux_" not in name:
                x = layer(x, emb)
            else:
                x = functional.silu(layer(x)) if name.endswith("_norm") else layer(x)
        return x


@persistence.persistent_class
class EDMPrecond(torch.nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), an estimate of E[x0 | x0 + sigma n = x]."""

    def __init__(
        self,
        img_resolution,
        img_channels,
        label_dim=0,
        use_fp16=False,
        sigma_min=0,
        sigma_max=float("inf"),
        sigma_data=0.5,
        model_type="SongUNet",
        **model_kwargs,
    ):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = img_resolution, img_channels, label_dim
        self.use_fp16 = False
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        assert model_type == "SongUNet"
        self.model = SongUNet(img_resolution, img_channels, img_channels, label_dim=label_dim, **model_kwargs)

    def forward(self, x, sigma, class_labels=None, force_fp32=False, **unused):
        """From x [N, C, R, R], sigma [N] or a number, class_labels [N, label_dim] to [N, C, R, R]."""
        x = x.to(torch.float32)
        misc.assert_shape(x, [None, self.img_channels, self.img_resolution, self.img_resolution])
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1, 1, 1, 1)
        if self.label_dim and class_labels is None:
            class_labels = torch.zeros([1, self.label_dim], device=x.device)
        if self.label_dim:
            class_labels = class_labels.to(torch.float32).reshape(-1, self.label_dim)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        c_in = 1 / variance.sqrt()
        return c_skip * x + c_out * self.model(c_in * x, sigma.flatten().log() / 4, class_labels)

    def round_sigma(self, sigma):
        """Sigma itself: this network knows all noise levels."""
        return torch.as_tensor(sigma)


@persistence.persistent_class
class EDMLoss:
    """lambda(sigma) (D(x0 + sigma n; sigma) - x0)^2 with ln sigma ~ N(P_mean, P_std^2)."""

    def __init__(self, P_mean=-1.2, P_std=1.2, sigma_data=0.5):
        self.P_mean, self.P_std, self.sigma_data = P_mean, P_std, sigma_data

    def __call__(self, net, images, labels=None, augment_pipe=None):
        """Weighted squared errors [N, C, R, R] for images [N, C, R, R] and labels [N, label_dim]."""
        x0 = images if augment_pipe is None else augment_pipe(images)[0]
        sigma = (self.P_mean + self.P_std * torch.randn(x0.shape[0], device=x0.device)).exp().reshape(-1, 1, 1, 1)
        error = net(x0 + sigma * torch.randn_like(x0), sigma, labels) - x0
        return error.square() * (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
