"""Diagnosis of files that are not network pickles: the kind of file, and the remedy."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from refine.pickles.errors import DamagedFileError, PickleError
from refine.pickles.scan import LEGACY_START
from refine.pickles.state_dict import explain_names

HEAD_BYTES = 1 << 20  # names of globals and of state dict entries stand near the start
MAX_MEMBERS = 200_000  # of a ZIP archive
TAIL_BYTES = 4096

Kind = Literal["pickle", "torch-zip", "torch-legacy"]

_TF_ERA = (
    "is a pickle of the TensorFlow StyleGAN, which only TensorFlow can open: convert it with legacy.py of "
    "stylegan2-ada-pytorch or stylegan3 and use the result"
)
_ROSINALITY = (
    "is a checkpoint of rosinality/stylegan2-pytorch (state dicts with 'g_ema'), not a StyleGAN pickle: bring its "
    "weights into a StyleGAN2 pickle of the same architecture with `python -m refine export --format=pkl --like=PKL`, "
    "or use the .pkl that it was made from"
)
_STATE = (
    "is a training state of Refine: continue its run with --resume, begin another with --init, or give the "
    "network-snapshot-*.pkl next to it"
)
_CHECKPOINT = (
    "is a PyTorch checkpoint (torch.save) without a network that brings its source: it holds tensors, or objects by "
    "reference to a class; use the .pkl that its repository writes"
)
_OWN_SNAPSHOT = b'"refine_options"'  # in the header of snapshots of networks without a pickle
_OWN_NETWORK = (
    "is a snapshot of a network of your own, weights without a network around them: begin a run with it by --init next "
    "to --gan=FILE.py:FUNCTION, or in Python give the weights to the network with refine.load_weights(network, path)"
)
_STARTS = {
    b"\x89PNG": "is a PNG image, not a network pickle: give a .pkl",
    b"\xff\xd8\xff": "is a JPEG image, not a network pickle: give a .pkl",
    b"\x89HDF": "is an HDF5 file, not a network pickle: give a .pkl",
    b"\x1f\x8b": "is a gzip archive, not a network pickle: unpack it",
    b"7z\xbc\xaf": "is a 7z archive, not a network pickle: unpack it",
    b"\xfd7zXZ": "is an xz archive, not a network pickle: unpack it",
    b"Rar!": "is a RAR archive, not a network pickle: unpack it",
    b"BZh": "is a bzip2 archive, not a network pickle: unpack it",
    b"\x28\xb5\x2f\xfd": "is a Zstandard archive, not a network pickle: unpack it",
    b"\x93NUMPY": "is a NumPy array, not a network pickle: give a .pkl",
    b"%PDF": "is a PDF document, not a network pickle: give a .pkl",
}


def kind_of(path: Path, size: int) -> Kind:
    """The kind of a file that may hold a network, judged by its first bytes.

    Args:
        path: File to examine.
        size: Length of the file in bytes.

    Raises:
        PickleError: The file is of another kind; the message names the kind and the remedy.
        DamagedFileError: The file is not one that anybody would have meant, such as a web page.
    """
    if path.is_dir():
        raise PickleError("is a folder; give the .pkl file in it")
    if size == 0:
        raise DamagedFileError("is empty: the download or the copy failed; download or copy it again")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    text = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        raise DamagedFileError(
            "is a web page saved under this name, such as a login, quota or confirmation page: "
            "open the link in a browser, or get the direct link of the file"
        )
    if text.startswith((b"<?xml", b"<error")):
        raise DamagedFileError("is an XML message saved under this name, such as a server's error: download it again")
    if _is_json(head, size):
        raise DamagedFileError("is a JSON message saved under this name, such as a server's error: download it again")
    if head.startswith(b"version https://git-lfs"):
        raise DamagedFileError("is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _kind_of_zip(path)
    if head.startswith(LEGACY_START):
        return "torch-legacy"
    if _is_safetensors(head, size):
        if _OWN_SNAPSHOT in head:
            raise PickleError(_OWN_NETWORK)
        raise PickleError(
            explain_names(_safetensors_names(head))
            or "is a safetensors file, weights without a network around them: bring them into a StyleGAN pickle of the "
            "same architecture with `python -m refine export --format=pkl --like=PKL`"
        )
    for start, what in _STARTS.items():
        if head.startswith(start):
            raise PickleError(what)
    if head.startswith((b"\xef\xbf\xbd\x04", b"\xef\xbf\xbd\x03", b"\xc2\x80\x04", b"\xc2\x80\x03")):
        raise DamagedFileError("was copied as text, which changed its bytes: download or copy it again as binary")
    if not head.strip(b"\0"):
        raise DamagedFileError("begins with zeros: the download or the copy was interrupted; download or copy it again")
    if head[:1] != b"\x80":
        raise PickleError(f"is not a pickle (it starts with {head[:8]!r}); give a .pkl of StyleGAN2 or EDM")
    return "pickle"


def explain_failure(path: Path, size: int) -> None:
    """Raises an error that names the cause, if a pickle that cannot be read shows one.

    Args:
        path: File that begins as a pickle.
        size: Length of the file in bytes.

    Raises:
        PickleError: The file is a pickle of a known wrong kind.
        DamagedFileError: The file was cut off or changed in transfer.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
    if b"dnnlib.tflib" in head or b"tfutil\nNetwork" in head:
        raise PickleError(_TF_ERA)
    num_lines = head.count(b"\n")
    if num_lines >= 16 and head.count(b"\r\n") == num_lines:
        raise DamagedFileError(
            "was copied in text mode, which put a carriage return before every line feed: download or copy it again "
            "as binary"
        )
    if len(tail) == TAIL_BYTES and not tail.strip(b"\0"):
        raise DamagedFileError("ends in zeros: the download or the copy was interrupted; download or copy it again")


def explain_globals(names: Iterable[tuple[str, str]]) -> None:
    """Raises PickleError if the globals that a pickle names belong to a known wrong kind."""
    for module, _ in names:
        if module.startswith(("dnnlib.tflib", "tfutil", "tensorflow")):
            raise PickleError(_TF_ERA)


def explain_checkpoint(head: bytes) -> str:
    """The sentence for a file of `torch.save` that holds no network with its source.

    Args:
        head: Beginning of the pickle in it.
    """
    if b"progress" in head and b"generator" in head and (b"digests" in head or b"hashes" in head):
        return _STATE
    if b"g_ema" in head:
        return _ROSINALITY
    return explain_names([head.decode("latin-1")]) or _CHECKPOINT


@contextmanager
def zip_errors() -> Iterator[None]:
    """Turns what `zipfile` says of a damaged archive into one sentence.

    Raises:
        DamagedFileError: The archive cannot be read.
    """
    try:
        yield
    except PickleError:
        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, KeyError, RuntimeError) as error:
        raise DamagedFileError(
            f"is a damaged ZIP archive, or cut off ({error!s:.200}): download or copy it again"
        ) from error


def _kind_of_zip(path: Path) -> Kind:
    with zip_errors(), zipfile.ZipFile(path) as archive:
        names = [member.filename for member in archive.infolist()[:MAX_MEMBERS]]
    if any(name.endswith("data.pkl") for name in names):
        if any("/code/" in name or name.endswith("constants.pkl") for name in names):
            raise PickleError("is a TorchScript module, such as a feature detector, not a network pickle: give a .pkl")
        return "torch-zip"
    if any(name.endswith(".npy") for name in names):
        raise PickleError("is a NumPy archive, such as reference statistics, not a network pickle: give a .pkl")
    if any(name.lower().endswith((".png", ".jpg", ".jpeg", "dataset.json")) for name in names):
        raise PickleError("is a data set of images, not a network pickle: give a .pkl")
    raise PickleError("is a ZIP archive, not a network pickle: unpack it")


def _is_json(head: bytes, size: int) -> bool:
    if head.lstrip()[:1] not in (b"{", b"[") or size > len(head):
        return False
    try:
        return isinstance(json.loads(head), (dict, list))
    except (ValueError, RecursionError):
        return False


def _safetensors_names(head: bytes) -> list[str]:
    """Names in the header of a safetensors file, as far as they are at hand."""
    header = head[8 : 8 + int.from_bytes(head[:8], "little")]
    try:
        return list(json.loads(header))
    except (ValueError, RecursionError):
        return [header.decode("latin-1")]


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
