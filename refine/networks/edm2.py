"""Denoisers of EDM2 (Karras et al., arXiv 2312.02696) for images in pixels, such as `edm2-img64-s`.

Every layer preserves the magnitude of activations: weights are normalized whenever they are used, sums and
concatenations are weighted, and no layer has a bias. In training the stored weights are normalized as well, after each
update (`EDM2Denoiser.normalize_weights`). Class, constructor argument and parameter names are those of EDM2's pickles;
their tensors are float16.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.errors import UserError
from refine.networks.edm import Preconditioning, check_arguments
from refine.networks.edm_layers import Resampling, dropout, filter_by_2, resampling_kernel
from refine.networks.edm_unet import MAX_BLOCKS_PER_LEVEL, MAX_TAPS
from refine.networks.initial import normal
from stylegan_ops.attention import attention

EPS = 1e-4
MEAN_SQUARE_OF_SILU = 0.596**2  # of silu(n) for standard normal n, whose inverse keeps the magnitude


def normalized(x: Tensor, dims: Sequence[int]) -> Tensor:
    """A tensor divided by its root mean square over some dimensions; the others keep a magnitude each.

    Args:
        x: Tensor of any shape.
        dims: Dimensions to average over.
    """
    count = math.prod(x.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(x, dim=list(dims), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x / (EPS + norm / math.sqrt(count)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU, scaled to keep the magnitude of normal numbers (eq. 81)."""
    return functional.silu(x) / math.sqrt(MEAN_SQUARE_OF_SILU)


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Sum of (1 - t) a and t b, scaled to keep the magnitude of independent numbers (eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b, weighted so that b has the share t of the influence on what follows (eq. 103).

    Args:
        a: [N, C_a, H, W].
        b: [N, C_b, H, W].
        t: Balance from 0 to 1.
    """
    num_a, num_b = a.shape[1], b.shape[1]
    scale = math.sqrt((num_a + num_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(num_a)), b * (scale * t / math.sqrt(num_b))], dim=1)


class MPConv(nn.Module):
    """Convolution, or for no kernel size a linear layer, with normalized weights and without bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Width of the kernel, odd; None for a linear layer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | None) -> None:
        super().__init__()
        kernel = () if kernel_size is None else (kernel_size, kernel_size)
        self.weight = nn.Parameter(normal(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """[N, in_channels, ...] -> [N, out_channels, ...], times gain."""
        weight = self.weight.float() if self.weight.dtype == torch.float16 else self.weight
        fan_in = self.weight[0].numel()
        weight = (normalized(weight, range(1, weight.ndim)) * (gain / math.sqrt(fan_in))).to(x.dtype)
        if weight.ndim == 2:
            return functional.linear(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[2] // 2)

    @torch.no_grad()
    def normalize_weight(self) -> None:
        """Forces the stored rows to the root mean square that `forward` gives them."""
        self.weight.copy_(normalized(self.weight.float(), range(1, self.weight.ndim)))


class MPFourier(nn.Module):
    """Cosines of a number at fixed random frequencies and phases, of magnitude 1 (eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", normal(channels, std=2 * math.pi))
        self.register_buffer("phases", normal(channels, std=2 * math.pi))

    def forward(self, x: Tensor) -> Tensor:
        """[N] -> [N, channels]."""
        return (x.outer(self.freqs.to(x.dtype)) + self.phases.to(x.dtype)).cos() * math.sqrt(2)


class EDM2Block(nn.Module):
    """Residual block of the encoder or decoder, with optional self-attention after it.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        emb_channels: Width of the embedding.
        is_encoder: Whether the skip convolution and a pixel normalization come first, or the skip convolution late.
        resampling: Change of resolution at the start.
        attention: Whether there is self-attention.
        resample_filter: Taps of the filter for resolution changes.
        channels_per_head: Channels of an attention head.
        dropout: Probability of dropping an activation before the last convolution, in training only.
        res_balance: Share of the residual branch.
        attn_balance: Share of the attention branch.
        clip_act: Largest activation; None for no limit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        is_encoder: bool,
        resampling: Resampling | None = None,
        attention: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        self.is_encoder, self.resampling, self.dropout = is_encoder, resampling, dropout
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self._taps = tuple(resample_filter)
        self._kernel: Tensor | None = None
        self.num_heads = out_channels // channels_per_head if attention else 0
        if attention and (not self.num_heads or out_channels % self.num_heads):
            raise UserError(f"{out_channels} channels cannot be shared by heads of {channels_per_head} channels.")
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if is_encoder else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels, None)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1) if self.num_heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if self.num_heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Maps x [N, in_channels, H, W], emb [N or 1, emb_channels] to [N, out_channels, H', W']."""
        x = self._resampled(x)
        if self.is_encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalized(x, [1])
        h = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        h = mp_silu(h * scale[:, :, None, None].to(h.dtype))
        if self.dropout:
            h = dropout(h, self.dropout, self.training)
        h = self.conv_res1(h)
        if not self.is_encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, h, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            n, channels, height, width = x.shape
            # Checkpoints order the output channels of qkv as [head, channel in head, (query, key, value)].
            qkv = self.attn_qkv(x).reshape(n, self.num_heads, channels // self.num_heads, 3, height * width)
            mixed = attention(normalized(qkv, [2])).reshape(n, channels, height, width)
            x = mp_sum(x, self.attn_proj(mixed), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resampling is None:
            return x
        if self._taps == (1, 1):
            is_down = self.resampling == "down"
            return functional.avg_pool2d(x, 2) if is_down else x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        if self._kernel is None or self._kernel.device != x.device:
            self._kernel = resampling_kernel(self._taps).to(x.device)
        return filter_by_2(x, self._kernel, self.resampling, (len(self._taps) - 1) // 2)


class EDM2UNet(nn.Module):
    """U-Net of EDM2.

    Args:
        img_resolution: Height and width of the image.
        img_channels: Channels of the image.
        label_dim: Width of the class labels; 0 for an unconditional network.
        model_channels: Channels at the highest resolution before `channel_mult`.
        channel_mult: Factor of the channels at every resolution, from high to low.
        channel_mult_noise: Width of the noise level's cosines, in model_channels; None for that of the first level.
        channel_mult_emb: Width of the embedding, in model_channels; None for that of the widest level.
        num_blocks: Residual blocks per resolution.
        attn_resolutions: Resolutions with self-attention.
        label_balance: Share of the class in the embedding.
        concat_balance: Share of the encoder's activations in the decoder.
        block_options: Further options of `EDM2Block`.

    Raises:
        UserError: An argument has a value that no network of this kind can have.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block_options: Any,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        if levels < 1 or img_resolution < 1 or img_resolution % 2 ** (levels - 1):
            raise UserError(f"img_resolution={img_resolution} cannot be halved {levels - 1} times (channel_mult).")
        if not 0 <= num_blocks <= MAX_BLOCKS_PER_LEVEL:
            raise UserError(f"num_blocks={num_blocks} is not between 0 and {MAX_BLOCKS_PER_LEVEL}.")
        self.label_dim, self.label_balance, self.concat_balance = label_dim, label_balance, concat_balance
        level_channels = [model_channels * mult for mult in channel_mult]
        noise_channels = level_channels[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb_channels = max(level_channels) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels, None)
        self.emb_label = MPConv(label_dim, emb_channels, None) if label_dim else None

        def block(before: int, after: int, is_encoder: bool, **options: Any) -> EDM2Block:
            return EDM2Block(before, after, emb_channels, is_encoder, **options, **block_options)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips, now = [], level_channels[0]
        for level, channels in enumerate(level_channels):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(img_channels + 1, now, 3)
            else:
                self.enc[f"{res}x{res}_down"] = block(now, now, True, resampling="down")
            skips.append(now)
            for index in range(num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = block(now, channels, True, attention=res in attn_resolutions)
                now = channels
                skips.append(now)
        for level, channels in reversed(list(enumerate(level_channels))):
            res = img_resolution >> level
            if level == levels - 1:
                self.dec[f"{res}x{res}_in0"] = block(now, now, False, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(now, now, False)
            else:
                self.dec[f"{res}x{res}_up"] = block(now, now, False, resampling="up")
            for index in range(num_blocks + 1):
                before = now + skips.pop()
                self.dec[f"{res}x{res}_block{index}"] = block(
                    before, channels, False, attention=res in attn_resolutions
                )
                now = channels
        self.out_conv = MPConv(now, img_channels, 3)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        """Maps x [N, C, R, R], noise_labels [N or 1] and labels [N or 1, label_dim] to [N, C, R, R]."""
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None:
            assert class_labels is not None
            labels = self.emb_label(class_labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, labels, self.label_balance)
        emb = mp_silu(emb)
        h = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for layer in self.enc.values():
            h = layer(h) if isinstance(layer, MPConv) else layer(h, emb)
            skips.append(h)
        for name, layer in self.dec.items():
            if "_block" in name:
                h = mp_cat(h, skips.pop(), self.concat_balance)
            h = layer(h, emb)
        return self.out_conv(h, gain=self.out_gain)


class EDM2Denoiser(nn.Module):
    """EDM's preconditioning around EDM2's U-Net, with an estimate of the loss by noise level.

    Args:
        img_resolution: Height and width of the image.
        img_channels: Channels of the image.
        label_dim: Width of the class labels; 0 for an unconditional network.
        use_fp16: Whether the U-Net runs in half precision if x is on a CUDA device.
        sigma_data: Standard deviation of the data.
        logvar_channels: Width of the noise level's cosines for `log_variance`.
        unet_options: Options of `EDM2UNet` and its blocks.
    """

    sigma_min = 0.0
    sigma_max = math.inf

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_options: Any,
    ) -> None:
        super().__init__()
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.label_dim, self.use_fp16, self.sigma_data = label_dim, use_fp16, sigma_data
        self.unet = EDM2UNet(img_resolution, img_channels, label_dim, **unet_options)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1, None)

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Coefficients at noise level sigma: those of EDM (arXiv 2206.00364, table 1, column "ours")."""
        variance = sigma**2 + self.sigma_data**2
        return Preconditioning(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.log() / 4,
        )

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Sigma itself: the network knows all noise levels."""
        return torch.as_tensor(sigma)

    def forward(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None, force_fp32: bool = False
    ) -> Tensor:
        """Denoises.

        Args:
            x: Noisy images [N, C, R, R] of any floating-point dtype; clean images lie in [-1, 1].
            sigma: Noise levels > 0: a number, 0-d, [N] or [N, 1, 1, 1].
            class_labels: One-hot or soft labels [N, label_dim]; None for zeros. Ignored by unconditional networks.
            force_fp32: Whether to compute in float32 even if `use_fp16` is set.

        Returns:
            Estimates of E[x0 | x0 + sigma n = x], [N, C, R, R], in the precision of the parameters (float32).

        Raises:
            ValueError: The class labels have another width than `label_dim`.
        """
        dtype = self._dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, device=x.device).to(dtype).reshape(-1, 1, 1, 1)
        labels = None
        if self.label_dim:
            labels = torch.zeros([1, self.label_dim], device=x.device) if class_labels is None else class_labels
            if labels.shape[-1] != self.label_dim:
                raise ValueError(f"class labels have width {labels.shape[-1]}, and the network needs {self.label_dim}")
            labels = labels.to(x.device, dtype).reshape(-1, self.label_dim)
        half = self.use_fp16 and not force_fp32 and x.device.type == "cuda"
        c_skip, c_out, c_in, c_noise = self.preconditioning(sigma)
        raw = self.unet((c_in * x).to(torch.float16 if half else dtype), c_noise.flatten(), labels)
        return c_skip * x + c_out * raw.to(dtype)

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Estimate u of the logarithm of the loss (eq. 21), by which it is weighted in training: loss / e^u + u.

        Args:
            sigma: Noise levels > 0, [N].

        Returns:
            [N].
        """
        c_noise = self.preconditioning(sigma.to(self._dtype).flatten()).c_noise
        return self.logvar_linear(self.logvar_fourier(c_noise)).flatten()

    @torch.no_grad()
    def normalize_weights(self) -> None:
        """Forces every stored weight to its norm, as EDM2 does before each training pass (section 2.3)."""
        for module in self.modules():
            if isinstance(module, MPConv):
                module.normalize_weight()

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self.unet.out_conv.weight.dtype
        return torch.float32 if dtype == torch.float16 else dtype


def denoiser_from_init_kwargs(init_kwargs: Mapping[str, Any]) -> EDM2Denoiser:
    """Builds a denoiser, randomly initialized, from the constructor arguments in an EDM2 pickle.

    Args:
        init_kwargs: Constructor arguments in the pickle.

    Raises:
        UserError: An argument is unknown or missing, or has an impossible value, or the network is for latents.
    """
    parameters: dict[str, inspect.Parameter] = {}
    for network in (EDM2Block, EDM2UNet, EDM2Denoiser):
        parameters |= inspect.signature(network).parameters
    hidden = {"unet_options", "block_options", "in_channels", "out_channels", "emb_channels", "is_encoder"}
    known = {name: each for name, each in parameters.items() if name not in hidden | {"resampling", "attention"}}
    check_arguments("Precond", "EDM2's U-Net", known, init_kwargs, ("img_resolution", "img_channels", "label_dim"))
    if init_kwargs["img_channels"] not in (1, 3):
        raise UserError(
            f"It is an EDM2 network for the {init_kwargs['img_channels']} channels of an autoencoder's code, such as "
            "edm2-img512: use one for pixels, such as edm2-img64-s-1073741-0.075."
        )
    taps = init_kwargs.get("resample_filter", (1, 1))
    if len(taps) > MAX_TAPS or len(taps) % 2 or not taps or sum(taps) == 0:
        raise UserError(f"resample_filter={taps} must be an even number of taps that do not sum to 0.")
    for name in ("label_balance", "concat_balance", "res_balance", "attn_balance", "dropout"):
        if not 0 <= init_kwargs.get(name, 0.5) <= 1:
            raise UserError(f"{name}={init_kwargs[name]} is not between 0 and 1.")
    if init_kwargs.get("channels_per_head", 64) == 0:
        raise UserError("channels_per_head=0 leaves no attention heads.")
    try:
        return EDM2Denoiser(**init_kwargs)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"Precond cannot be built from its constructor arguments: {reason}.") from error
