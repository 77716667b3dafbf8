"""The two U-Nets of the EDM family: SongUNet (DDPM++ and NCSN++) and DhariwalUNet (ADM).

Architectures: Song et al., arXiv 2011.13456 (DDPM++, NCSN++) and Dhariwal & Nichol, arXiv 2105.05233 (ADM),
in the settings of Karras et al., arXiv 2206.00364, appendix F. Names are those of EDM checkpoints.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from refine.errors import UserError
from refine.networks.edm_layers import (
    BlockOptions,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    PositionalEmbedding,
    Resample,
    UNetBlock,
)
from refine.networks.initial import normal

# Only to stop a damaged or malicious file from asking for endless construction; published networks have 1 to 4
# blocks and 2 or 4 taps.
MAX_BLOCKS_PER_LEVEL = 64
MAX_TAPS = 32


class _UNet(nn.Module):
    """Base of both U-Nets: encoder and decoder over halving resolutions, with a skip from every layer."""

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(
        self,
        img_resolution: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        dropout: float,
        label_dropout: float,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        for name, value in (("dropout", dropout), ("label_dropout", label_dropout)):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value} is not a probability.")
        if not 0 <= num_blocks <= MAX_BLOCKS_PER_LEVEL:
            raise UserError(f"num_blocks={num_blocks} is not between 0 and {MAX_BLOCKS_PER_LEVEL}.")
        if levels < 1 or img_resolution < 1 or img_resolution % 2 ** (levels - 1):
            raise UserError(f"img_resolution={img_resolution} cannot be halved {levels - 1} times (channel_mult).")
        self.resolutions = [img_resolution >> level for level in range(levels)]
        self.num_blocks = num_blocks
        self.label_dropout = label_dropout

    def _add_levels(
        self,
        in_channels: int,
        stem_channels: int,
        level_channels: Sequence[int],
        attn_resolutions: Sequence[int],
        options: BlockOptions,
        attention_in_every_decoder_block: bool,
    ) -> dict[int, int]:
        """Adds encoder and decoder; returns the channels at the encoder's entry to every lower resolution."""
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        entry_channels: dict[int, int] = {}
        channels = stem_channels
        skips = []
        for level, (res, out) in enumerate(zip(self.resolutions, level_channels, strict=True)):
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(in_channels, channels, 3)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, options, "down")
                entry_channels[res] = channels
            skips.append(channels)
            for i in range(self.num_blocks):
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{i}"] = UNetBlock(channels, out, options, attention=attention)
                channels = out
                skips.append(channels)

        for res, out in zip(reversed(self.resolutions), reversed(level_channels), strict=True):
            if res == self.resolutions[-1]:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, options, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, options)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, options, "up")
            for i in range(self.num_blocks + 1):
                attention = res in attn_resolutions and (attention_in_every_decoder_block or i == self.num_blocks)
                self.dec[f"{res}x{res}_block{i}"] = UNetBlock(channels + skips.pop(), out, options, attention=attention)
                channels = out
        return entry_channels

    def _join_image(self, res: int, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Hook of NCSN++: adds the downsampled image to h, which has just reached resolution res."""
        return h, image

    def _encode_decode(self, image: Tensor, emb: Tensor) -> dict[int, Tensor]:
        """Last activations of the decoder at every resolution, for an image [N, C, R, R]."""
        h = self.enc[f"{self.resolutions[0]}x{self.resolutions[0]}_conv"](image)
        skips = [h]
        for res in self.resolutions:
            if res != self.resolutions[0]:
                h, image = self._join_image(res, self.enc[f"{res}x{res}_down"](h, emb), image)
                skips.append(h)
            for i in range(self.num_blocks):
                h = self.enc[f"{res}x{res}_block{i}"](h, emb)
                skips.append(h)

        decoded = {}
        for res in reversed(self.resolutions):
            if res == self.resolutions[-1]:
                h = self.dec[f"{res}x{res}_in0"](h, emb)
                h = self.dec[f"{res}x{res}_in1"](h, emb)
            else:
                h = self.dec[f"{res}x{res}_up"](h, emb)
            for i in range(self.num_blocks + 1):
                h = self.dec[f"{res}x{res}_block{i}"](torch.cat([h, skips.pop()], dim=1), emb)
            decoded[res] = h
        return decoded


def _drop_labels(class_labels: Tensor, batch: int, probability: float) -> Tensor:
    """Zeroes the labels of each of `batch` samples with the given probability (classifier-free guidance)."""
    keep = torch.rand([batch, 1], device=class_labels.device) >= probability
    return class_labels * keep.to(class_labels.dtype)


class SongUNet(_UNet):
    """DDPM++ and NCSN++ (arXiv 2011.13456), initialized as published (Xavier uniform).

    Args:
        img_resolution: Height and width of the image.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        label_dim: Width of the class labels; 0 for an unconditional network.
        augment_dim: Width of the augmentation labels; 0 for none.
        model_channels: Channels at the highest resolution before `channel_mult`.
        channel_mult: Factor of the channels at every resolution, from high to low.
        channel_mult_emb: Width of the embedding, in model_channels.
        num_blocks: Residual blocks per resolution.
        attn_resolutions: Resolutions with self-attention.
        dropout: Probability of dropping an activation; see `BlockOptions`.
        label_dropout: Probability of hiding a class label in training.
        embedding_type: Noise-level embedding, "positional" (DDPM++) or "fourier" (NCSN++).
        channel_mult_noise: Width of the noise level's sinusoids, in model_channels: 1 (DDPM++) or 2 (NCSN++).
        encoder_type: "standard" (DDPM++); "residual" (NCSN++) and "skip" add downsampled images.
        decoder_type: "standard"; "skip" sums the outputs of all resolutions.
        resample_filter: Taps of the resampling filter: [1, 1] (DDPM++) or [1, 3, 3, 1] (NCSN++).

    Raises:
        UserError: An argument has a value that no network of this kind can have.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__(img_resolution, channel_mult, num_blocks, dropout, label_dropout)
        _require_one_of("embedding_type", embedding_type, ("positional", "fourier"))
        _require_one_of("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _require_one_of("decoder_type", decoder_type, ("standard", "skip"))
        _require_even_filter(resample_filter, is_used=len(channel_mult) > 1)
        self.label_dim = label_dim
        self.encoder_type = encoder_type
        self.decoder_type = decoder_type
        noise_channels = model_channels * channel_mult_noise
        emb_channels = model_channels * channel_mult_emb
        options = BlockOptions(
            emb_channels=emb_channels,
            num_heads=1,
            dropout=dropout,
            norm_eps=1e-6,
            skip_scale=math.sqrt(0.5),
            adaptive_scale=False,
            resample_filter=tuple(resample_filter),
            resample_proj=True,
        )

        self.map_noise: nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.map_label = nn.Linear(label_dim, noise_channels) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, noise_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(noise_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)

        level_channels = [model_channels * mult for mult in channel_mult]
        entry_channels = self._add_levels(in_channels, model_channels, level_channels, attn_resolutions, options, False)
        image_channels = in_channels
        for res, channels in entry_channels.items():
            name, taps = f"{res}x{res}", resample_filter
            if encoder_type == "skip":
                self.enc[f"{name}_aux_down"] = Resample(taps, "down")
                self.enc[f"{name}_aux_skip"] = Conv2d(in_channels, channels, 1)
            elif encoder_type == "residual":
                self.enc[f"{name}_aux_residual"] = Conv2d(
                    image_channels, channels, 3, "down", taps, convolve_first=True
                )
                image_channels = channels
        for res, channels in zip(self.resolutions, level_channels, strict=True):
            name = f"{res}x{res}"
            if decoder_type == "skip" or res == img_resolution:
                self.dec[f"{name}_aux_norm"] = GroupNorm(channels, options.norm_eps)
                self.dec[f"{name}_aux_conv"] = Conv2d(channels, out_channels, 3)
            if decoder_type == "skip" and res != self.resolutions[-1]:
                self.dec[f"{name}_aux_up"] = Resample(resample_filter, "up")
        self._initialize()

    def _initialize(self) -> None:
        gains = {"conv1": 1e-5, "proj": 1e-5, "aux_conv": 1e-5, "qkv": math.sqrt(0.2)}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                leaf = "aux_conv" if name.endswith("_aux_conv") else name.rpartition(".")[2]
                nn.init.xavier_uniform_(module.weight, gains.get(leaf, 1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Maps x [N, C, R, R], noise_labels and labels [N or 1, ...] to [N, out_channels, R, R]."""
        cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)  # these networks were trained with the sines first
        if self.map_label is not None:
            assert class_labels is not None
            if self.training and self.label_dropout:
                class_labels = _drop_labels(class_labels, x.shape[0], self.label_dropout)
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = functional.silu(self.map_layer0(emb))
        emb = functional.silu(self.map_layer1(emb))

        output = None
        for res, h in self._encode_decode(x, emb).items():  # from low to high resolution
            name = f"{res}x{res}"
            if self.decoder_type == "skip" or res == self.resolutions[0]:
                norm = self.dec[f"{name}_aux_norm"]
                assert isinstance(norm, GroupNorm)
                image = self.dec[f"{name}_aux_conv"](norm.silu(h))
                output = image if output is None else image + self.dec[f"{name}_aux_up"](output)
        assert output is not None
        return output

    def _join_image(self, res: int, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        name = f"{res}x{res}"
        if self.encoder_type == "skip":
            image = self.enc[f"{name}_aux_down"](image)
            return h + self.enc[f"{name}_aux_skip"](image), image
        if self.encoder_type == "residual":
            h = (h + self.enc[f"{name}_aux_residual"](image)) * math.sqrt(0.5)
            return h, h
        return h, image


def adm_blocks(emb_channels: int, dropout: float) -> BlockOptions:
    """Options of ADM's blocks as Karras et al. use them."""
    return BlockOptions(
        emb_channels=emb_channels,
        num_heads=None,
        dropout=dropout,
        norm_eps=1e-5,
        skip_scale=1,
        adaptive_scale=True,
        resample_filter=(1, 1),
        resample_proj=False,
    )


class DhariwalUNet(_UNet):
    """ADM (arXiv 2105.05233), initialized as published (PyTorch's defaults; last layers of branches zero).

    Args and errors: as SongUNet. Self-attention exists only where a level has at least 64 channels.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0,
    ) -> None:
        super().__init__(img_resolution, channel_mult, num_blocks, dropout, label_dropout)
        options = adm_blocks(model_channels * channel_mult_emb, dropout)
        level_channels = [model_channels * mult for mult in channel_mult]
        self._assemble(
            in_channels, out_channels, label_dim, augment_dim, model_channels, level_channels, attn_resolutions, options
        )

    def _assemble(
        self,
        in_channels: int,
        out_channels: int,
        label_dim: int,
        augment_dim: int,
        model_channels: int,
        level_channels: Sequence[int],
        attn_resolutions: Sequence[int],
        options: BlockOptions,
    ) -> None:
        """Adds all layers."""
        emb_channels = options.emb_channels
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = nn.Linear(label_dim, emb_channels, bias=False) if label_dim else None
        self._add_levels(in_channels, level_channels[0], level_channels, attn_resolutions, options, True)
        self.out_norm = GroupNorm(level_channels[0], options.norm_eps, options.norm_groups)
        self.out_conv = Conv2d(level_channels[0], out_channels, 3)
        self._initialize()

    def _initialize(self) -> None:
        for name, module in self.named_modules():
            if name.rpartition(".")[2] in ("conv1", "proj", "out_conv", "map_augment"):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)
        if self.map_label is not None:
            self.map_label.weight = nn.Parameter(normal(*self.map_label.weight.shape))

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Maps x [N, C, R, R], noise_labels and labels [N or 1, ...] to [N, out_channels, R, R]."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(functional.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            assert class_labels is not None
            if self.training and self.label_dropout:
                class_labels = _drop_labels(class_labels, x.shape[0], self.label_dropout)
            emb = emb + self.map_label(class_labels)
        h = self._encode_decode(x, functional.silu(emb))[self.resolutions[0]]
        return self.out_conv(self.out_norm.silu(h))


def _require_even_filter(taps: Sequence[float], is_used: bool) -> None:
    """Requires an even number of taps: an odd number shifts the image by half a pixel and loses a row."""
    found = reprlib.repr(taps)
    if len(taps) > MAX_TAPS:
        raise UserError(f"resample_filter={found} has more than {MAX_TAPS} taps.")
    if is_used and (len(taps) % 2 or not taps or sum(taps) == 0):
        raise UserError(f"resample_filter={found} must be an even number of taps that do not sum to 0.")


def _require_one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={reprlib.repr(value)} is unknown; known are {', '.join(choices)}.")
