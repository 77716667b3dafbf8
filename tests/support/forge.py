"""Parts from which tests make pickles: honest ones of networks that do not exist, and hostile ones."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import torch

from refine import pickles
from refine.pickles import writer
from refine.pickles.tree import submodules
from torch_utils.persistence import _reconstruct_persistent_obj


class Persistent:
    """Pickles to what NVIDIA's persistence writes for an object with this state."""

    def __init__(self, state: dict[str, Any], class_name: str = "M", module_src: str = "# nothing\n") -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": module_src,
            "class_name": class_name,
            "state": {"_parameters": {}, "_buffers": {}, "_modules": {}} | state,
        }

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


class Call:
    """Pickles to a call, as every gadget does."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def dumped(value, protocol=4) -> bytes:
    file = io.BytesIO()
    writer.dump(value, file, protocol)
    return file.getvalue()


def small_bases(fixture_path) -> list[bytes]:
    """Parts of golden pickles that load in a millisecond: a mapping network, one U-Net block, a protocol-3 file."""
    ada = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    edm = pickles.load(fixture_path("edm/s6_iddpm_adm_uncond16.pkl"))
    sg3 = pickles.load(fixture_path("sg3/s2_stylegan3t_uncond32.pkl"))
    unet = submodules(edm["ema"])["model"]
    parts = [
        ({"training_set_kwargs": ada["training_set_kwargs"], "G_ema": submodules(ada["G_ema"])["mapping"]}, 4),
        ({"G_ema": submodules(ada["G_ema"])["mapping"], "G": submodules(ada["G"])["mapping"]}, 3),
        ({"ema": submodules(unet)["map_layer0"], "loss_fn": edm["loss_fn"]}, 4),
        ({"G_ema": submodules(submodules(sg3["G_ema"])["synthesis"])["input"]}, 5),
    ]
    return [dumped(value, protocol) for value, protocol in parts]


def as_root(body: bytes) -> bytes:
    return b"\x80\x04" + body + pickle.STOP


def as_entry(body: bytes, base: bytes) -> bytes:
    """The gadget as a further entry of a good pickle: before its STOP stands the root dict."""
    return base[:-1] + text("extra") + body + pickle.SETITEM + pickle.STOP


def without_frames(data: bytes) -> bytes:
    """The same pickle in one piece, so that bytes can be added at its end."""
    out, last = [], None
    for opcode, _, position in pickletools.genops(data):
        if last is not None and last[0] != "FRAME":
            out.append(data[last[1] : position])
        last = (opcode.name, position)
    return b"".join(out) + data[last[1] :]


class Described:
    """A persistent object as its description, which pickles to the same; nothing of it runs."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


class _DescribingUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return Described if name == "_reconstruct_persistent_obj" else super().find_class(module, name)


def described(path: Any) -> dict[str, Any]:
    """A golden pickle with real tensors and described networks, so that it can be packed in other ways."""
    with open(path, "rb") as file:
        return _DescribingUnpickler(file).load()


def torch_file_of(record: Any, legacy: bool = False) -> bytes:
    """A file of torch.save with the network of a record as its object."""
    file = io.BytesIO()
    network = _DescribingUnpickler(io.BytesIO(dumped(record))).load()
    torch.save(network, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    """Members of a ZIP archive by name."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(members: dict[str, bytes] | list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A ZIP archive of members, of which two may have one name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return file.getvalue()
