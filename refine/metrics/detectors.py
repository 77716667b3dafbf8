"""The networks that turn images into features: TorchScript modules, called as the StyleGAN suite calls its own.

    detector(images uint8 [N, 3, H, W], return_features=True)        -> features [N, D]
    detector(images uint8 [N, 3, H, W], no_output_bias=True)         -> class probabilities [N, K], for the IS
    vgg(images float [N, 3, H, W] in 0..255, resize_images=False, return_lpips=True) -> [N, L], for path lengths

TorchScript runs in an interpreter of its own that knows tensors and no Python. Still, a module from the internet whose
digest is not that of a known official one is loaded on request only.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import pickles, zoo
from refine.errors import UserError
from refine.metrics.batch_size import is_out_of_memory

log = logging.getLogger("refine")

INCEPTION, VGG = "inception-2015-12-05.pt", "vgg16.pt"  # names in the zoo
ENVIRONMENT = {INCEPTION: "REFINE_DETECTOR", VGG: "REFINE_VGG"}


@dataclass(frozen=True)
class Detector:
    """A loaded detector.

    Attributes:
        name: of its file, or in the zoo.
        sha256: of its file.
        official: whether that is the digest of a known official detector.
        path: where the file lies.
        device: where it runs.
        module: the TorchScript module.
    """

    name: str
    sha256: str
    official: bool
    path: Path
    device: torch.device
    module: Any = field(repr=False, compare=False)

    def features(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> float32 features [N, D], on the detector's device.

        Raises:
            UserError: the module is not called this way, or does not return this.
        """
        return self._call("return_features=True", images, return_features=True)

    def probabilities(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> probabilities of classes [N, K].

        Raises:
            UserError: as for `features`.
        """
        return self._call("no_output_bias=True", images, no_output_bias=True)

    def lpips(self, images: Tensor) -> Tensor:
        """Float images [N, 3, H, W] in 0..255 -> vectors whose squared distance is the perceptual one.

        Raises:
            UserError: as for `features`.
        """
        how = "resize_images=False and return_lpips=True"
        return self._call(how, images, resize_images=False, return_lpips=True)

    def provenance(self) -> dict[str, Any]:
        """What a row says about it."""
        known = {} if self.official else {"note": "not a known official detector"}
        return {"name": self.name, "sha256": self.sha256, **known}

    def _call(self, how: str, images: Tensor, **arguments: Any) -> Tensor:
        try:
            with torch.no_grad(), exact_convolutions():
                result = self.module(images.to(self.device), **arguments)
        except Exception as error:  # TorchScript raises RuntimeError, and a few others
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"The detector {self.path} cannot be called with {how} on images {list(images.shape)} "
                f"({_last_line(error)}): give one that is called as the StyleGAN suite calls its own."
            ) from error
        if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(images):
            shape = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise UserError(
                f"The detector {self.path} returns {shape} for {len(images)} images with {how}, where a row for each "
                "is expected: give another detector."
            )
        return result.to(torch.float32)


def choose(given: str | None, default: str) -> str:
    """What the user gave, else the environment variable's, else the official one."""
    return given or os.environ.get(ENVIRONMENT[default]) or default


def load_detector(spec: str, device: torch.device | str = "cpu", *, trust: bool = False) -> Detector:
    """Loads a detector.

    Args:
        spec: path, http(s) URL or zoo name.
        device: where it is to run.
        trust: load it from the internet although its digest is not known.

    Raises:
        UserError: it cannot be had, is not to be trusted, or is no TorchScript module.
    """
    resolved = zoo.resolve(spec)
    sha256 = pickles.file_sha256(resolved.path)
    official = sha256 in _official_digests()
    if resolved.url and not official and not trust:
        raise UserError(
            f"The detector {resolved.url} has the sha256 {sha256}, which is none that Refine knows: --trust-detector "
            "loads it all the same, or give a file of your own."
        )
    with open(resolved.path, "rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        raise UserError(
            f"The detector {resolved.path} is a pickle, and Refine loads TorchScript: give {INCEPTION}, which "
            "holds the same network."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a deprecation of TorchScript is nothing that a user can mend
            module = torch.jit.load(str(resolved.path), map_location="cpu").eval().to(device)
    except Exception as error:  # RuntimeError, ValueError and others, depending on what is broken
        raise UserError(
            f"The detector {resolved.path} is no TorchScript module, or damaged ({_last_line(error)}): get it anew."
        ) from error
    name = resolved.entry.name if resolved.entry else Path(resolved.url or resolved.path).name
    return Detector(name, sha256, official, resolved.path, torch.device(device), module)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Float32 on a GPU means float32 here, not its 10-bit relative."""
    settings: Any = (torch.backends.cudnn, torch.backends.cuda.matmul)
    previous = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = False
    try:
        yield
    finally:
        for setting, value in zip(settings, previous, strict=True):
            setting.allow_tf32 = value


def _official_digests() -> set[str]:
    return {entry.sha256 for entry in zoo.ENTRIES if entry.kind == "detector" and entry.sha256}


def _last_line(error: BaseException) -> str:
    """The telling line of a TorchScript error: the first of a short message, the last of a traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    return line.rstrip(".")[:200]
