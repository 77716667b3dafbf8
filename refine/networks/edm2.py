"""Denoisers of EDM2 (Karras et al., arXiv 2312.02696) for images in pixels, such as `edm2-img64-s`.

Every layer preserves the magnitude of activations (`edm2_layers`). In training the stored weights are normalized as
well, after each update (`EDM2Denoiser.normalize_weights`). Class, constructor argument and parameter names are those of
EDM2's pickles, whose tensors are float16.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refine.errors import UserError
from refine.networks.edm import Preconditioning, check_arguments
from refine.networks.edm2_layers import EDM2Block, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from refine.networks.edm_unet import MAX_BLOCKS_PER_LEVEL, MAX_TAPS


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
