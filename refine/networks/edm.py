"""Denoisers of the EDM family: EDMPrecond, VPPrecond, VEPrecond and iDDPMPrecond around a U-Net.

A denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) estimates E[x0 | x0 + sigma n = x]. F is the raw
network; the coefficients are those of Karras et al., arXiv 2206.00364, table 1. Class, constructor argument
and buffer names are those of EDM pickles.
"""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from refine.errors import UserError
from refine.networks.edm_unet import DhariwalUNet, SongUNet

_UNETS: dict[str, type[SongUNet] | type[DhariwalUNet]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}

# Only to stop a damaged or malicious file from asking for endless construction; published networks have 1000.
MAX_TIMESTEPS = 10_000


class Preconditioning(NamedTuple):
    """Coefficients of D = c_skip x + c_out F(c_in x; c_noise), each of the shape of sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class PreconditionedDenoiser(nn.Module):
    """Base of the four denoisers; a subclass defines `preconditioning` and the range of sigma.

    Attributes:
        img_resolution: Height and width of the image.
        img_channels: Channels of the image.
        label_dim: Width of the class labels; 0 for an unconditional network.
        use_fp16: Whether the U-Net runs in half precision if x is on a CUDA device.
        sigma_min: Smallest supported noise level, may be 0.
        sigma_max: Largest supported noise level, may be infinite.
        sigma_data: Standard deviation of the data that the loss weighting assumes.
    """

    sigma_min: float
    sigma_max: float
    sigma_data: float = 0.5

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        use_fp16: bool,
        model_type: str,
        out_channels: int,
        model_kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.use_fp16 = use_fp16
        self.model = _unet_class(model_type)(
            img_resolution, img_channels, out_channels, label_dim=label_dim, **model_kwargs
        )

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Coefficients at noise level sigma (any shape, float32)."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest noise level that the network supports: sigma itself, except for iDDPM."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        force_fp32: bool = False,
    ) -> Tensor:
        """Denoises.

        Args:
            x: Noisy images [N, C, R, R] of any floating-point dtype; clean images lie in [-1, 1].
            sigma: Noise levels > 0: a number, 0-d, [N] or [N, 1, 1, 1].
            class_labels: One-hot or soft labels [N, label_dim]; None for zeros. Ignored by unconditional networks.
            augment_labels: Labels [N, augment_dim]; None for zeros. Ignored by networks without augmentation labels.
            force_fp32: Whether to compute in float32 even if `use_fp16` is set.

        Returns:
            Estimates of E[x0 | x0 + sigma n = x], [N, C, R, R], in the precision of the parameters (float32).

        Raises:
            ValueError: The class labels have another width than `label_dim`.
        """
        dtype = next(self.model.parameters()).dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, device=x.device).to(dtype).reshape(-1, 1, 1, 1)
        labels = self._labels(class_labels, x.device, dtype)
        if augment_labels is not None:
            augment_labels = augment_labels.to(dtype)
        half = self.use_fp16 and not force_fp32 and x.device.type == "cuda"

        c_skip, c_out, c_in, c_noise = self.preconditioning(sigma)
        model_input = (c_in * x).to(torch.float16 if half else dtype)
        raw = self.model(model_input, c_noise.flatten(), labels, augment_labels)
        # iDDPM networks also predict a variance, in further channels that no sampler here needs.
        return c_skip * x + c_out * raw[:, : self.img_channels].to(dtype)

    def _labels(self, class_labels: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return torch.zeros([1, self.label_dim], device=device, dtype=dtype)
        if class_labels.shape[-1] != self.label_dim:
            raise ValueError(
                f"class labels have width {class_labels.shape[-1]}, and the network needs {self.label_dim}"
            )
        return class_labels.to(dtype).reshape(-1, self.label_dim)


class EDMPrecond(PreconditionedDenoiser):
    """The preconditioning of the EDM paper: unit variance at input and output of F for data of sigma_data."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, img_channels, model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigma_data = sigma_data

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Table 1, column "ours"."""
        variance = sigma**2 + self.sigma_data**2
        return Preconditioning(
            c_skip=self.sigma_data**2 / variance,
            c_out=sigma * self.sigma_data / variance.sqrt(),
            c_in=1 / variance.sqrt(),
            c_noise=sigma.log() / 4,
        )


class VPPrecond(PreconditionedDenoiser):
    """Variance preserving (DDPM++): F predicts noise and is told the time t at which sigma(t) is reached.

    sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, t from epsilon_t to 1.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, img_channels, model_kwargs)
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.M = M
        self.sigma_min = self._sigma_of_time(epsilon_t)
        self.sigma_max = self._sigma_of_time(1)

    def _sigma_of_time(self, t: float) -> float:
        # In float32 like the numbers that VP checkpoints carry: sigma_min is 2^-10 there, not 0.00100005.
        time = torch.tensor(t, dtype=torch.float32, device="cpu")
        return float(((0.5 * self.beta_d * time**2 + self.beta_min * time).exp() - 1).sqrt())

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Table 1, column "VP"."""
        time = ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d
        return Preconditioning(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=(self.M - 1) * time,
        )


class VEPrecond(PreconditionedDenoiser):
    """Variance exploding (NCSN++): F predicts the negated noise from unscaled input."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        sigma_min: float = 0.02,
        sigma_max: float = 100,
        model_type: str = "SongUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, img_channels, model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Table 1, column "VE"."""
        one = torch.ones_like(sigma)
        return Preconditioning(c_skip=one, c_out=sigma, c_in=one, c_noise=(0.5 * sigma).log())


class iDDPMPrecond(PreconditionedDenoiser):  # noqa: N801 (the name in the checkpoints)
    """Improved DDPM (ADM): F predicts noise (and a variance) at M discrete noise levels u_0 > ... > u_M = 0.

    The levels (arXiv 2206.00364, table 1, iDDPM time steps) come from a cosine schedule:
    u_{j-1}^2 + 1 = (u_j^2 + 1) / max(a_{j-1} / a_j, C_1), a_j = sin^2(pi/2 j / (M (C_2 + 1))).
    """

    u: Tensor

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        model_type: str = "DhariwalUNet",
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, model_type, 2 * img_channels, model_kwargs)
        if not 1 <= M <= MAX_TIMESTEPS:
            raise UserError(f"M={M} timesteps are not between 1 and {MAX_TIMESTEPS}.")
        self.M = M
        levels = _iddpm_levels(M, C_1, C_2)
        self.register_buffer("u", torch.empty(M + 1).copy_(levels))
        self.sigma_min = float(levels[M - 1])
        self.sigma_max = float(levels[0])

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest of the levels u_0 ... u_M, in the dtype of sigma."""
        sigma = torch.as_tensor(sigma)
        return self.u.to(sigma.device)[self._nearest_level(sigma)].to(sigma.dtype)

    def _nearest_level(self, sigma: Tensor) -> Tensor:
        return (sigma.to(self.u.dtype)[..., None] - self.u.to(sigma.device)).abs().argmin(dim=-1)

    def preconditioning(self, sigma: Tensor) -> Preconditioning:
        """Table 1, column "iDDPM"."""
        return Preconditioning(
            c_skip=torch.ones_like(sigma),
            c_out=-sigma,
            c_in=1 / (sigma**2 + 1).sqrt(),
            c_noise=(self.M - 1 - self._nearest_level(sigma)).to(sigma.dtype),
        )


def _iddpm_levels(M: int, C_1: float, C_2: float) -> Tensor:
    # In float32 on the CPU: this gives the levels in checkpoints bit for bit; float64 differs by up to 4e-5.
    a = (0.5 * math.pi * torch.arange(M + 1, device="cpu") / M / (C_2 + 1)).sin() ** 2
    u = torch.zeros(M + 1, device="cpu")
    for j in range(M, 0, -1):
        u[j - 1] = ((u[j] ** 2 + 1) / (a[j - 1] / a[j]).clamp(min=C_1) - 1).sqrt()
    return u


def _unet_class(model_type: str) -> type[SongUNet] | type[DhariwalUNet]:
    if not isinstance(model_type, str) or model_type not in _UNETS:
        raise UserError(f"model_type={reprlib.repr(model_type)} is unknown; known are {', '.join(_UNETS)}.")
    return _UNETS[model_type]


PRECONDITIONERS: dict[str, type[EDMPrecond | VPPrecond | VEPrecond | iDDPMPrecond]] = {
    "EDMPrecond": EDMPrecond,
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": iDDPMPrecond,
}


MAX_WIDTH = 2**20  # of anything that is counted: pixels, channels, classes
MAX_ENTRIES = 32  # levels, resolutions or taps


def _is_plausible(value: Any, annotation: str) -> bool:
    """True if a value from a file has the annotated type and a size that no constructor has trouble with."""
    if annotation.endswith(" | None"):
        return value is None or _is_plausible(value, annotation.removesuffix(" | None"))
    if annotation.startswith("Sequence["):
        inner = annotation.removeprefix("Sequence[").removesuffix("]")
        is_list = isinstance(value, list | tuple) and len(value) <= MAX_ENTRIES
        return is_list and all(_is_plausible(item, inner) for item in value)
    if annotation == "int":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WIDTH
    if annotation == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return isinstance(value, {"bool": bool | int, "str": str}[annotation])


def denoiser_from_init_kwargs(class_name: str, init_kwargs: Mapping[str, Any]) -> PreconditionedDenoiser:
    """Builds a denoiser, randomly initialized, from the constructor arguments in an EDM pickle.

    Under `torch.device("meta")` no weights are allocated; `load_state_dict(..., strict=True, assign=True)`
    then completes the network.

    Args:
        class_name: Key of `PRECONDITIONERS`.
        init_kwargs: Constructor arguments in the pickle.

    Raises:
        UserError: The class or an argument is unknown or missing, or an argument has an impossible value.
    """
    if class_name not in PRECONDITIONERS:
        raise UserError(f"{class_name} is not a denoiser that Refine knows; known are {', '.join(PRECONDITIONERS)}.")
    denoiser = PRECONDITIONERS[class_name]
    own = inspect.signature(denoiser).parameters
    unet = _unet_class(init_kwargs.get("model_type", own["model_type"].default))
    parameters = {**inspect.signature(unet).parameters, **own}
    known = {n: each for n, each in parameters.items() if n not in ("model_kwargs", "in_channels", "out_channels")}
    check_arguments(class_name, unet.__name__, known, init_kwargs, ("img_resolution", "img_channels"))
    try:
        return denoiser(**init_kwargs)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as err:
        reason = str(err).partition("\n")[0]
        raise UserError(f"{class_name} cannot be built from its constructor arguments: {reason}.") from err


def check_arguments(
    class_name: str,
    unet: str,
    known: Mapping[str, inspect.Parameter],
    init_kwargs: Mapping[str, Any],
    needed: Sequence[str],
) -> None:
    """Checks the constructor arguments of a pickle against the constructor.

    Args:
        class_name: Name of the class, for messages.
        unet: Name of its U-Net, for messages.
        known: Parameters of the constructors.
        init_kwargs: Constructor arguments in the pickle.
        needed: Arguments that must be among them.

    Raises:
        UserError: An argument is unknown or missing, or has an impossible value.
    """
    for name, value in init_kwargs.items():
        if name not in known:
            raise UserError(
                f"{class_name} with {unet} has no constructor argument {name!r}"
                f" (value {reprlib.repr(value)}): the file is of another version of the network than Refine knows."
            )
    for name in needed:
        if name not in init_kwargs:
            raise UserError(f"The constructor arguments of {class_name} lack {name!r}.")
    for name, value in init_kwargs.items():
        if not _is_plausible(value, str(known[name].annotation)):
            raise UserError(f"The constructor argument {name}={reprlib.repr(value)} of {class_name} is not plausible.")
        if name in ("img_channels", "model_channels") and value == 0:
            raise UserError(f"{class_name} has {name}=0: there is nothing to denoise.")
