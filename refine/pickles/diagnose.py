"""The right sentence for the wrong file: what it is instead, and what to do."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from refine.pickles.errors import PickleError

_LEGACY_TORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6
_HEAD_BYTES = 1 << 20  # names of globals and of state dict entries stand near the start

_ROSINALITY = (
    "is a checkpoint of rosinality/stylegan2-pytorch (state dicts with 'g_ema'), not a StyleGAN pickle: "
    "convert it, or use the .pkl that it was made from"
)
_TF_ERA = (
    "is a pickle of the TensorFlow StyleGAN, which only TensorFlow can open: convert it with legacy.py of "
    "stylegan2-ada-pytorch or stylegan3 and use the result"
)
_STARTS = {
    b"\x89PNG": "is a PNG image, not a network pickle: give a .pkl",
    b"\xff\xd8\xff": "is a JPEG image, not a network pickle: give a .pkl",
    b"\x89HDF": "is an HDF5 file, not a network pickle: give a .pkl",
    b"\x1f\x8b": "is a gzip archive, not a network pickle: unpack it",
    b"7z\xbc\xaf": "is a 7z archive, not a network pickle: unpack it",
    b"\xfd7zXZ": "is an xz archive, not a network pickle: unpack it",
    b"Rar!": "is a RAR archive, not a network pickle: unpack it",
    b"\x93NUMPY": "is a NumPy array, not a network pickle: give a .pkl",
}


def explain_content(path: Path, size: int) -> None:
    """Raises PickleError with what the file is instead of a pickle, judged by its first bytes."""
    if path.is_dir():
        raise PickleError("is a folder; give the .pkl file in it")
    if size == 0:
        raise PickleError("is empty: the download or the copy failed; get it again")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    text = head[:1024].lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise PickleError(
            "is a web page saved under this name, probably a login, quota or confirmation page: "
            "open the link in a browser, or get the direct link of the file"
        )
    if head.startswith(b"version https://git-lfs"):
        raise PickleError("is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        raise PickleError(_explain_zip(path, head))
    if head.startswith(_LEGACY_TORCH_START):
        raise PickleError(_ROSINALITY if b"g_ema" in head else _torch_checkpoint())
    if _is_safetensors(head, size):
        raise PickleError("is a safetensors file: weights without a network pickle around them; give the .pkl")
    for start, what in _STARTS.items():
        if head.startswith(start):
            raise PickleError(what)
    if head[:1] != b"\x80":
        raise PickleError(f"is not a pickle (it starts with {head[:8]!r}); give a .pkl of StyleGAN2 or EDM")


def explain_failure(path: Path) -> None:
    """Raises PickleError where a pickle that Refine cannot read looks like one of a known wrong kind."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if b"dnnlib.tflib" in head or b"tfutil\nNetwork" in head:
        raise PickleError(_TF_ERA)


def explain_globals(names: Iterable[tuple[str, str]]) -> None:
    """Raises PickleError where the globals that a pickle names belong to a known wrong kind."""
    for module, _ in names:
        if module.startswith(("dnnlib.tflib", "tfutil", "tensorflow")):
            raise PickleError(_TF_ERA)


def _explain_zip(path: Path, head: bytes) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:100_000]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is a damaged ZIP archive, not a network pickle; download it again"
    if any(name.endswith("data.pkl") for name in names):
        if any("/code/" in name for name in names):
            return "is a TorchScript module (a feature detector?), not a network pickle: give a .pkl"
        return _ROSINALITY if b"g_ema" in head else _torch_checkpoint()
    if any(name.endswith(".npy") for name in names):
        return "is a NumPy archive (reference statistics?), not a network pickle: give a .pkl"
    if any(name.lower().endswith((".png", ".jpg", ".jpeg", "dataset.json")) for name in names):
        return "is a data set of images, not a network pickle: give a .pkl"
    return "is a ZIP archive, not a network pickle: unpack it"


def _torch_checkpoint() -> str:
    return (
        "is a PyTorch checkpoint (torch.save), not a network pickle: it holds weights without the network's "
        "description; use the .pkl that its repository writes"
    )


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= size - 8:
        return False
    if length > len(head) - 8:
        return b'"dtype"' in head and b'"data_offsets"' in head
    try:
        return isinstance(json.loads(head[8 : 8 + length]), dict)
    except (ValueError, RecursionError):
        return False
