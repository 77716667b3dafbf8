"""Detectors: networks that turn images into features, TorchScript modules called as the StyleGAN suite calls its own.

    detector(images uint8 [N, 3, H, W], return_features=True)        -> features [N, D]
    detector(images uint8 [N, 3, H, W], no_output_bias=True)         -> class probabilities [N, K], for the IS
    vgg(images float [N, 3, H, W] in 0..255, resize_images=False, return_lpips=True) -> [N, L], for path lengths

DINOv2 and CLIP come as weights, of which `vision_transformers` makes modules that are called like the first.

TorchScript runs in an interpreter of its own that knows tensors and no Python. Still, a module from the internet whose
digest is not that of a known official one is loaded on request only.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import zoo
from refine.errors import OptionError, UserError, literal
from refine.files.digest import file_sha256
from refine.files.reading import reading
from refine.metrics.batch_size import is_out_of_memory
from refine.metrics.spatial import spatial_features, spatial_weight
from refine.runtime.tf32 import exact_convolutions

log = logging.getLogger("refine")

OFFICIAL = {  # role -> name in the zoo
    "inception": "inception-2015-12-05.pt",
    "vgg": "vgg16.pt",
    "dinov2": "dinov2_vitl14_pretrain.pth",
    "clip": "ViT-L-14-336px.pt",
}
ENVIRONMENT = {
    "inception": "REFINE_DETECTOR",
    "vgg": "REFINE_VGG",
    "dinov2": "REFINE_DINOV2",
    "clip": "REFINE_CLIP",
}


ROLES = tuple(OFFICIAL)
WEIGHTS = ("dinov2", "clip")  # roles whose networks are built from weights


@dataclass(frozen=True)
class DetectorChoices:
    """Path, URL or zoo name of the detector for each role, a key of `OFFICIAL`.

    Attributes:
        own: The user's own choices, by role; roles that are missing have the official detector.
    """

    own: Mapping[str, str]

    @classmethod
    def of_options(cls, detector: str | None, vgg: str | None) -> DetectorChoices:
        """Choices of the two options, else of the environment variables.

        Args:
            detector: A detector in place of Inception, `ROLE=FILE` for another role, or several of both with commas.
            vgg: A detector in place of VGG.

        Raises:
            UserError: A role has two detectors.
        """
        given: dict[str, str | None] = {}
        choices = [] if detector is None else re.split(rf",(?=(?:{'|'.join(ROLES)})=)", detector)
        choices += [] if vgg is None else [f"vgg={vgg}"]
        for choice in choices:
            role, equals, spec = choice.partition("=")
            role, spec = (role, spec) if equals and role in ROLES else ("inception", choice)
            if given.get(role):
                raise OptionError(
                    f"{literal(given[role])} and {literal(spec)} are two detectors as {role}: give one of them."
                )
            given[role] = os.path.expanduser(spec)
        return cls.made(given)

    @classmethod
    def made(cls, given: Mapping[str, str | None]) -> DetectorChoices:
        """Choices given by the user, else by the environment variables."""
        found = {role: given.get(role) or os.environ.get(name) for role, name in ENVIRONMENT.items()}
        return cls({role: spec for role, spec in found.items() if spec})

    def __getitem__(self, role: str) -> str:
        return self.own.get(role, OFFICIAL[role])


@dataclass(frozen=True)
class Detector:
    """A loaded detector.

    Attributes:
        name: Name of its file, or in the zoo.
        sha256: SHA-256 of its file.
        official: Whether this is the digest of a known official detector.
        path: The file.
        device: Device that it runs on.
        module: The TorchScript module, or a `VisionTransformer`.
        role: Role that it was loaded for, a key of `OFFICIAL`.
    """

    name: str
    sha256: str
    official: bool
    path: Path
    device: torch.device
    module: Any = field(repr=False, compare=False)
    role: str = "inception"

    def features(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> float32 features [N, D], on the detector's device.

        Raises:
            UserError: The module is not called this way, or does not return this.
        """
        return self._call("return_features=True", images, return_features=True)

    def probabilities(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> probabilities of classes [N, K].

        Raises:
            UserError: As for `features`.
        """
        return self._call("no_output_bias=True", images, no_output_bias=True)

    def spatial(self, images: Tensor) -> Tensor:
        """Uint8 images [N, 3, H, W] -> spatial features [N, D] of the layer mixed_6/conv; see `spatial`.

        Raises:
            UserError: The detector has no such layer, or it cannot be seen at work.
        """
        weight = spatial_weight(self.module)
        if weight is None:
            raise UserError(
                f"The detector {self.path} has no layer mixed_6/conv, which the spatial FID takes its features from: "
                f"give {OFFICIAL['inception']}."
            )

        def call(x: Tensor) -> Tensor:
            return spatial_features(self.module, weight, x)

        return self._call("return_features=True", images, call)

    def lpips(self, images: Tensor) -> Tensor:
        """Float images [N, 3, H, W] in 0..255 -> vectors whose squared distance is the perceptual one.

        Raises:
            UserError: As for `features`.
        """
        how = "resize_images=False and return_lpips=True"
        return self._call(how, images, resize_images=False, return_lpips=True)

    def provenance(self) -> dict[str, Any]:
        """Its entry in a row's provenance."""
        known = {} if self.official else {"note": "not a known official detector"}
        return {"name": self.name, "sha256": self.sha256, **known}

    def _call(self, how: str, images: Tensor, call: Callable[[Tensor], Any] | None = None, **arguments: Any) -> Tensor:
        try:
            with torch.no_grad(), exact_convolutions():
                result = (call or self.module)(images.to(self.device), **arguments)
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


def load_detector(
    spec: str, device: torch.device | str = "cpu", *, trust: bool = False, role: str = "inception"
) -> Detector:
    """Loads a detector.

    Args:
        spec: Path, http(s) URL or zoo name.
        device: Device that it is to run on.
        trust: Load it from the internet although its digest is not known.
        role: Role, a key of `OFFICIAL`. For "dinov2" and "clip" the file may hold weights, as published or as
            transformers and timm save them.

    Raises:
        UserError: The file cannot be had or read, is not trusted, or is no TorchScript module or weights for the role.
    """
    resolved = zoo.resolve(spec)
    with reading(resolved.path):
        sha256 = file_sha256(resolved.path)
    official = sha256 in _official_digests()
    if resolved.url and not official and not trust:
        raise OptionError(
            f"The detector {literal(resolved.url)} has the unknown sha256 {sha256}: if you trust it, add "
            "{trust_detector}, or download the file and give its path."
        )
    name = resolved.entry.name if resolved.entry else Path(resolved.url or resolved.path).name
    made = partial(Detector, name, sha256, official, resolved.path, torch.device(device), role=role)
    with reading(resolved.path), open(resolved.path, "rb") as file:
        start = file.read(2)
    if role in WEIGHTS and not _is_torchscript(resolved.path):
        return made(_from_weights(role, resolved.path, device))
    if start[:1] == b"\x80":
        raise UserError(
            f"The detector {resolved.path} is a pickle, and Refine loads TorchScript: give {OFFICIAL['inception']}, "
            "which holds the same network."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a deprecation of TorchScript is nothing that a user can mend
            # An open file, because torch.jit cannot open paths outside the code page on Windows.
            with open(resolved.path, "rb") as file:
                module = torch.jit.load(file, map_location="cpu").eval().to(device)
    except Exception as error:  # RuntimeError, ValueError and others, depending on what is broken
        if is_out_of_memory(error):
            raise OptionError(
                f"Out of memory while loading the detector {literal(resolved.path)}: use {{device=cpu}}."
            ) from error
        raise UserError(f"The detector {resolved.path} {_what_it_is_instead(resolved.path, error)}") from error
    if role == "clip" and any(key.startswith("visual.") for key in module.state_dict()):
        return made(_from_weights(role, resolved.path, device, module.state_dict()))  # OpenAI's files are TorchScript
    return made(module)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _from_weights(
    role: str, path: Path, device: torch.device | str, weights: Mapping[str, Tensor] | None = None
) -> torch.nn.Module:
    """A network with the weights of a file, or with those given.

    Raises:
        UserError: The file holds no such weights, or they do not fit in memory.
    """
    from refine.metrics import vision_transformers

    try:
        tensors = vision_transformers.tensors_in(weights, path) if weights else vision_transformers.read_weights(path)
        return vision_transformers.build(role, tensors, path).to(device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OptionError(f"Out of memory while loading the detector {literal(path)}: use {{device=cpu}}.") from error


def _what_it_is_instead(path: Path, error: BaseException) -> str:
    """The end of a sentence about a file that PyTorch cannot load as TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        names = []
    if any("/code/" in name for name in names):
        return f"is a damaged TorchScript module ({_last_line(error)}): download it again."
    what = "a ZIP file without code" if names else "another kind of file, or cut off"
    return f"is not a TorchScript module but {what}: give another, or download it again."


def _official_digests() -> set[str]:
    return {entry.sha256 for entry in zoo.ENTRIES if entry.kind == "detector" and entry.sha256}


def _last_line(error: BaseException) -> str:
    """The informative line of a TorchScript error: the first of a short message, the last of a traceback."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1] if "Traceback" in str(error) else lines[0]
    return line.rstrip(".")[:200]
