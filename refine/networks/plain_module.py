"""Adapter from any module or function that draws images to the contract of a generator."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from refine.contracts import Generator, GeneratorOutput
from refine.errors import UserError

_OPTIONS = ("noise_mode", "truncation_psi", "force_fp32")


class PlainModule:
    """A generator that is called as it is, `G(z, c)` or `G(z)`; see `contracts.Generator`.

    Whichever of `noise_mode`, `truncation_psi` and `force_fp32` it takes are passed on. Its attributes are `z_dim` or
    `z_shape`, and if there are any, `c_dim` (else 0), `img_channels` and `img_resolution` (else found by drawing).

    Args:
        function: The module or function, from z [N, *z_shape] and one-hot labels c [N, c_dim] to images [N, C, R, R] in
            [-1, 1].

    Raises:
        UserError: The attributes are missing, or the images are not of this shape.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.module: nn.Module = function if isinstance(function, nn.Module) else nn.Module()
        self.z_shape = _z_shape(function)
        self.c_dim = int(getattr(function, "c_dim", 0))
        self._takes_labels, self._taken = _parameters(function)
        self.takes_noise_mode = "noise_mode" in self._taken
        if self.c_dim and not self._takes_labels:
            raise UserError(f"The generator has c_dim {self.c_dim} and takes no labels: let it take z and c.")
        channels, resolution = (getattr(function, name, None) for name in ("img_channels", "img_resolution"))
        if channels is None or resolution is None:
            channels, resolution = self._drawn_size()
        self.img_channels, self.img_resolution = int(channels), int(resolution)

    def __call__(
        self,
        z: Tensor,
        c: Tensor,
        noise_mode: str = "random",
        truncation_psi: float = 1.0,
        force_fp32: bool = False,
    ) -> GeneratorOutput:
        """Images; see `contracts.Generator`.

        Raises:
            UserError: Truncation is asked for, and the generator has none.
        """
        if truncation_psi != 1 and "truncation_psi" not in self._taken:
            raise UserError(f"The generator takes no truncation_psi, and {truncation_psi} was asked for: use 1.")
        given: dict[str, Any] = {"noise_mode": noise_mode, "truncation_psi": truncation_psi}
        if force_fp32:  # else left out, because a network that takes **kwargs need not know it
            given["force_fp32"] = True
        options = {name: value for name, value in given.items() if name in self._taken}
        images = self.function(*((z, c) if self._takes_labels else (z,)), **options)
        return GeneratorOutput(getattr(images, "images", images), None)

    def resolution_of(self, parameter: str) -> int | None:
        """None: the resolution of a layer is not known."""
        return None

    def blocks(self) -> Sequence[nn.Module]:
        """Nothing: blocks are not known."""
        return ()

    def after_step(self, w_mean: Tensor | None) -> None:
        """Nothing: it keeps no statistics of itself."""

    def _drawn_size(self) -> tuple[int, int]:
        parameter = next(self.module.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
        z, c = torch.zeros(1, *self.z_shape, device=device), torch.zeros(1, self.c_dim, device=device)
        with torch.no_grad(), _in_evaluation(self.module):
            images = self(z, c).images
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[2] != images.shape[3]:
            shape = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"The generator returns {shape} for one latent: return images [N, C, R, R] in [-1, 1].")
        return images.shape[1], images.shape[2]


@contextmanager
def _in_evaluation(network: nn.Module) -> Iterator[None]:
    """Context of evaluation mode, in which one image says nothing about a batch; after it all modes are as before."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def as_contract(generator: Any) -> Generator:
    """A generator behind the contract: itself if it is, else a module or function called as it is.

    Raises:
        UserError: As for `PlainModule`.
    """
    if hasattr(generator, "module") and hasattr(generator, "z_shape"):
        return generator
    return PlainModule(generator)


def _z_shape(function: Any) -> tuple[int, ...]:
    if (shape := getattr(function, "z_shape", None)) is not None:
        return tuple(int(n) for n in shape)
    z_dim = getattr(function, "z_dim", None)
    if not isinstance(z_dim, int):
        raise UserError(
            "The generator does not tell the width of its latents: set an attribute z_dim, as in G.z_dim = 512."
        )
    return (z_dim,)


def _parameters(function: Callable[..., Any]) -> tuple[bool, tuple[str, ...]]:
    """True if a function takes labels, and the options that it takes."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = inspect.signature(called).parameters
    except (ValueError, TypeError):  # a builtin
        return True, ()
    kinds = [parameter.kind for name, parameter in parameters.items() if name not in _OPTIONS]
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    positional = sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds
    )
    takes_labels = positional > 1 or inspect.Parameter.VAR_POSITIONAL in kinds
    return takes_labels, tuple(name for name in _OPTIONS if takes_any or name in parameters)
