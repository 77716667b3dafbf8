"""One-step generator made of a denoiser: x0 = D(sigma_init z, sigma_init, labels), with z an image of noise.

Distillation starts from the teacher's own network, whose estimate at one high noise level is a blurred image, and
trains it until a single evaluation draws what the teacher's sampler draws. The form is that of Diff-Instruct, DMD, SiD
and SIM; they differ in sigma_init: 2.5 in SiD (arXiv 2404.04057) and SIM, 1 in the released code of Diff-Instruct
(arXiv 2305.18455), 80 in DMD2 (arXiv 2405.14867) and f-distill.

The pickle stays that of a denoiser, with the moving average under `ema`, so that the code of EDM and SiD opens it. What
that code does not look at is added: the live weights under `net`, and `one_step`, a dict with sigma_init and objective.
SiD's own files are `{'ema': network}` and do not tell sigma_init.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from refine import pickles
from refine.contracts import Denoiser, GeneratorOutput
from refine.diffusion.denoiser import usable_sigmas
from refine.errors import OptionError, UserError
from refine.networks.preconditioned import as_denoiser
from refine.pickles import NetworkPickle, PersistentObject, PickleError
from refine.pickles.records import to_python

DEFAULT_SIGMA_INIT = 2.5
AVERAGE, LIVE = "ema", "net"  # entries of the moving average, where EDM's code looks for it, and of the live weights
ABOUT = "one_step"  # entry with sigma_init and objective


class OneStep(nn.Module):
    """A denoiser called as a generator, G(z, c); its tensors have the denoiser's own names.

    Args:
        denoiser: Network of the EDM family, D(x, sigma, labels).
        sigma_init: Noise level of the one evaluation; a network with discrete levels takes the nearest.

    Attributes:
        z_shape: Shape of one latent, (C, R, R).
        c_dim: Width of class labels; 0 for an unconditional network.
        img_channels: Channels of an image.
        img_resolution: Height and width of an image in pixels.
        sigma_init: Noise level of the one evaluation.

    Raises:
        OptionError: The denoiser does not know the noise level.
    """

    def __init__(self, denoiser: nn.Module, sigma_init: float) -> None:
        super().__init__()
        contract = as_denoiser(denoiser)
        self.denoiser = denoiser
        self.sigma_init: float = known_sigma(contract, sigma_init)
        self.c_dim, self.img_channels = contract.label_dim, contract.img_channels
        self.img_resolution = contract.img_resolution
        self.z_shape: tuple[int, ...] = (self.img_channels, self.img_resolution, self.img_resolution)

    def forward(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        noise_mode: str = "const",
        force_fp32: bool = False,
    ) -> Tensor:
        """Images [N, C, R, R], nominally in [-1, 1].

        Args:
            z: Latents [N, C, R, R], normally distributed.
            c: Labels [N, c_dim]; None for zeros.
            truncation_psi: 1: there is no truncation.
            noise_mode: Ignored: there are no noise inputs.
            force_fp32: Compute in float32 also where the network was made for float16.

        Raises:
            UserError: Truncation is asked for.
        """
        if truncation_psi != 1:
            raise UserError(f"A one-step generator has no truncation, and psi {truncation_psi:g} was asked for: use 1.")
        sigma = torch.full([z.shape[0]], self.sigma_init, device=z.device, dtype=z.dtype)
        given: dict[str, Any] = {"force_fp32": True} if force_fp32 else {}
        images: Tensor = self.denoiser(self.sigma_init * z, sigma, c if self.c_dim else None, **given)
        return images

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The denoiser's state dict."""
        return self.denoiser.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state dict of the denoiser."""
        return self.denoiser.load_state_dict(state_dict, strict, assign)


class OneStepGenerator:
    """A one-step generator behind the contract of a generator; see `contracts.Generator`.

    Args:
        module: The network.

    Attributes:
        is_unet: True: it is computed in the precision of teacher and fake score, and trained with dropout.
    """

    is_unet = True

    def __init__(self, module: OneStep) -> None:
        self.module: nn.Module = module
        self.z_shape, self.c_dim = module.z_shape, module.c_dim
        self.img_channels, self.img_resolution = module.img_channels, module.img_resolution

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Images; see `contracts.Generator`."""
        return GeneratorOutput(self.module(z, c, truncation_psi, noise_mode, force_fp32), None)

    def resolution_of(self, parameter: str) -> int | None:
        """None: every block of a U-Net works for the whole image."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the U-Net."""
        module: Any = self.module
        return as_denoiser(module.denoiser).blocks()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: the network keeps no statistics of itself."""


def known_sigma(denoiser: Denoiser, sigma_init: float) -> float:
    """The noise level that a denoiser knows nearest to `sigma_init`.

    Raises:
        OptionError: The level is outside the denoiser's range.
    """
    low, high = usable_sigmas(denoiser)
    if not low <= sigma_init <= high:
        raise OptionError(
            f"{{sigma_init={sigma_init:g}}} is outside the noise levels that this network knows, {low:.4g} to "
            f"{high:.4g}: use 2.5, or another level in this range."
        )
    rounded = float(denoiser.round_sigma(torch.tensor(sigma_init, dtype=torch.float64)))
    return sigma_init if math.isclose(rounded, sigma_init, rel_tol=1e-6) else rounded


def recorded(pickle: NetworkPickle) -> dict[str, Any] | None:
    """What a pickle tells of a one-step generator: sigma_init and objective; None for other pickles.

    Raises:
        PickleError: The entry is damaged.
    """
    if ABOUT not in pickle:
        return None
    about = to_python(pickle[ABOUT])
    sigma = about.get("sigma_init") if isinstance(about, dict) else None
    if not isinstance(sigma, int | float) or isinstance(sigma, bool) or not 0 < sigma < math.inf:
        raise PickleError(f"{pickle.path}: its entry {ABOUT!r} has no sigma_init above 0; download or copy it again")
    return dict(about)


def holds_one_step(pickle: NetworkPickle) -> bool:
    """True for a pickle of a one-step generator: one that tells its sigma_init, or a lone `ema`, as SiD writes it."""
    alone = set(pickle) == {AVERAGE} and isinstance(pickle[AVERAGE], PersistentObject)
    return ABOUT in pickle or alone


def described(pickle: NetworkPickle, sigma_init: float, objective: str | None = None) -> NetworkPickle:
    """A pickle that tells what a one-step generator is; everything else in it stays.

    Args:
        pickle: Pickle of the teacher, or of a one-step generator.
        sigma_init: Noise level of the one evaluation.
        objective: Objective of the distillation; None: as the pickle tells.
    """
    about = (recorded(pickle) or {}) | {"sigma_init": sigma_init} | ({"objective": objective} if objective else {})
    return replace(pickle, root={**pickle.root, ABOUT: about}, layout=None)


def write_snapshot(
    pickle: NetworkPickle,
    path: Path,
    live: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    sigma_init: float,
    objective: str | None = None,
) -> None:
    """Writes a one-step generator; everything else in the pickle stays as it was.

    Args:
        pickle: Pickle that the network came in.
        path: File to write.
        live: State dict of the live weights.
        average: State dict of the moving average.
        sigma_init: Noise level of the one evaluation.
        objective: Objective of the distillation.

    Raises:
        UserError: The file cannot be written.
    """
    whole = described(pickle, sigma_init, objective)
    networks = {key: whole.get(key) for key in (AVERAGE, LIVE)}
    record = next(value for value in networks.values() if isinstance(value, PersistentObject))
    networks = {key: value if isinstance(value, PersistentObject) else record for key, value in networks.items()}
    pickles.save(replace(whole, root={**networks, **whole.root, **networks}), path, {AVERAGE: average, LIVE: live})
