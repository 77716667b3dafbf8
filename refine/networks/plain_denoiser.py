"""Adapter from any module or function that denoises images to the contract of a denoiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refine.contracts import Denoiser
from refine.errors import UserError
from refine.networks.preconditioned import DEFAULT_SIGMA_DATA, as_denoiser


class PlainDenoiser:
    """A denoiser that is called as it is, `D(x, sigma, labels)` or `D(x, sigma)`; see `contracts.Denoiser`.

    Its attributes are `img_resolution` and `img_channels`, and if there are any, `label_dim` and `augment_dim` (else
    0), `sigma_data` (else 0.5), `sigma_min` (else 0), `sigma_max` (else infinity) and `round_sigma`.

    Args:
        function: The module or function, from noisy images x [N, C, R, R], noise levels sigma [N] and one-hot labels
            [N, label_dim] to denoised images [N, C, R, R]. It takes labels if it has a third argument, and augmentation
            labels as `augment_labels`.

    Raises:
        UserError: Attributes are missing, or it has classes and takes no labels.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        missing = [name for name in ("img_resolution", "img_channels") if not hasattr(function, name)]
        if missing:
            raise UserError(
                f"The teacher does not tell its {' and '.join(missing)}: set the attribute"
                f"{'s' if len(missing) > 1 else ''}, as in D.{missing[0]} = 64."
            )
        self.function = function
        self.module: nn.Module = function if isinstance(function, nn.Module) else nn.Module()
        self.img_resolution, self.img_channels = int(function.img_resolution), int(function.img_channels)  # type: ignore[attr-defined]
        self.label_dim = int(getattr(function, "label_dim", 0))
        self.augment_dim = int(getattr(function, "augment_dim", 0))
        self.sigma_data = float(getattr(function, "sigma_data", DEFAULT_SIGMA_DATA))
        self.sigma_min = float(getattr(function, "sigma_min", 0.0))
        self.sigma_max = float(getattr(function, "sigma_max", math.inf))
        self._takes_labels = _takes_labels(function)
        if self.label_dim and not self._takes_labels:
            raise UserError(
                f"The teacher has label_dim {self.label_dim} and takes no labels: let it take x, sigma and labels."
            )

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoised images; see `contracts.Denoiser`."""
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1).expand(len(x))
        labels: tuple[Any, ...] = ()
        if self._takes_labels:
            if self.label_dim and class_labels is None:
                class_labels = torch.zeros(len(x), self.label_dim, device=x.device)
            labels = (class_labels if self.label_dim else None,)
        more = {} if augment_labels is None else {"augment_labels": augment_labels}
        denoised: Tensor = self.function(x, levels, *labels, **more)
        return denoised.float()

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """Nearest noise levels that the network knows: all, unless it has a `round_sigma` of its own."""
        rounded = getattr(self.function, "round_sigma", torch.as_tensor)(sigma)
        return torch.as_tensor(rounded)

    def blocks(self) -> Sequence[nn.Module]:
        """Nothing: blocks are not known."""
        return ()

    def try_out(self) -> None:
        """Denoises one image of zeros, to see that the network can be called as it will be.

        Raises:
            UserError: It returns no image of the same shape, or none that is finite.
        """
        parameter = next(self.module.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        x = torch.zeros(1, self.img_channels, self.img_resolution, self.img_resolution, device=device)
        try:
            with torch.no_grad():
                denoised = self(x, 1.0)
        except Exception as error:  # foreign code can fail in any way
            called = "D(x, sigma, labels)" if self._takes_labels else "D(x, sigma)"
            raise UserError(
                f"The teacher cannot be called as {called} with x {list(x.shape)} and sigma [1] "
                f"({type(error).__name__}: {error}): let it take these."
            ) from error
        if denoised.shape != x.shape or not denoised.isfinite().all():
            found = list(denoised.shape) if denoised.shape != x.shape else "values that are not finite"
            raise UserError(
                f"The teacher returns {found} for an image of zeros {list(x.shape)}: return denoised images of "
                "that shape."
            )


def as_denoiser_contract(denoiser: Any) -> Denoiser:
    """A denoiser behind the contract: itself if it is, else a module or function called as it is.

    Raises:
        UserError: As for `PlainDenoiser`.
    """
    if hasattr(denoiser, "module") and hasattr(denoiser, "round_sigma"):
        return denoiser
    if type(denoiser).__module__.startswith("refine.networks."):
        return as_denoiser(denoiser)
    plain = PlainDenoiser(denoiser)
    plain.try_out()
    return plain


def _takes_labels(function: Callable[..., Any]) -> bool:
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (ValueError, TypeError):  # a builtin
        return True
    kinds = [parameter.kind for parameter in parameters.values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, parameter in parameters.items() if parameter.kind in positional]
    return (len(names) > 2 and names[2] != "augment_labels") or inspect.Parameter.VAR_POSITIONAL in kinds
