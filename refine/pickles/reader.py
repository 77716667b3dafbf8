"""Reads a network pickle into records, executing nothing.

Three gates: the kind of file (`wrong_file`), the scan of its opcodes (`scan`), and `pickle.Unpickler` with an
allow-list of globals, each of which becomes an inert class (`records`).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from refine.pickles import records
from refine.pickles.diagnose import explain_content, explain_failure, explain_globals
from refine.pickles.errors import PickleError
from refine.pickles.records import Inert, InertType
from refine.pickles.scan import PickleScan, scan_pickle
from refine.pickles.tree import walk

# Every global that occurs in the snapshots of stylegan2-ada-pytorch, stylegan3, edm and their forks, and the
# record that each becomes. NumPy is spelled numpy.core up to version 1, numpy._core since 2.
ALLOWED_GLOBALS: dict[tuple[str, str], type[Inert]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): records.PersistentObject,
    ("dnnlib.util", "EasyDict"): records.InertDict,
    ("collections", "OrderedDict"): records.InertDict,
    ("builtins", "set"): records.Values,  # protocol 3 has no opcode for sets
    ("torch._utils", "_rebuild_parameter"): records.Parameter,
    ("torch._utils", "_rebuild_tensor_v2"): records.Tensor,
    ("torch.storage", "_load_from_bytes"): records.Storage,
    ("torch", "Size"): records.Values,
    ("torch", "device"): records.Values,
    ("numpy", "dtype"): records.NumpyDtype,
    ("numpy", "ndarray"): records.Name,
    **{
        (f"{core}.{name}", function): record
        for core in ("numpy.core", "numpy._core")
        for name, function, record in (
            ("multiarray", "scalar", records.NumpyScalar),
            ("multiarray", "_reconstruct", records.NumpyArray),
            ("numeric", "_frombuffer", records.NumpyBuffer),
        )
    },
}


def allowed_record(module: str, name: str) -> type[Inert] | None:
    """The record that a global becomes; None where it is not allowed.

    Beside the list, modules of PyTorch itself: unlike a call, making one bare and filling it runs nothing.
    """
    if module.startswith("torch.nn.modules.") and "." not in name:
        return records.PlainModule
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return records.Name
    return ALLOWED_GLOBALS.get((module, name))


@dataclass(frozen=True)
class NetworkPickle(Mapping[str, Any]):
    """A network pickle in memory: a read-only mapping of its top-level entries to records.

    Attributes:
        root: the top-level dict, as inert values.
        protocol: pickle protocol of the file.
        path: where it was read from.
        trusted: whether the caller allowed its embedded source to be run.
        foreign_globals: names that it uses beyond the allowed ones; always empty unless it is trusted.
    """

    root: dict[str, Any]
    protocol: int
    path: Path
    trusted: bool = False
    foreign_globals: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.root[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def persistent_objects(self) -> Iterator[records.PersistentObject]:
        """Every persistent object in the pickle, each once."""
        return (value for value in walk(self.root) if isinstance(value, records.PersistentObject))


class _InertUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, trust: bool) -> None:
        super().__init__(file, fix_imports=False)
        self.trust = trust
        self.types: dict[tuple[str, str], InertType] = {}

    def find_class(self, module: str, name: str) -> Any:
        base = allowed_record(module, name) or (records.Foreign if self.trust else None)
        if base is None:
            raise PickleError(
                f"names the global {module}.{name}, which no network of a repository that Refine knows needs; "
                "only if you know and trust its author, open it with --trust-pickle"
            )
        if (module, name) not in self.types:
            # The two strings are kept as objects: the pickle may refer to them again.
            names = {"global_module": module, "global_name": name}
            self.types[module, name] = InertType(name, (base,), names)
        return self.types[module, name]


def load(path: str | Path, *, trust: bool = False) -> NetworkPickle:
    """Reads a network pickle. Nothing inside it is imported or executed, whatever `trust` says.

    Args:
        path: a local file.
        trust: also accept globals that are not on the allow-list, as inert records, and permit
            `networks.rebuild` to run embedded source for architectures that Refine does not know.

    Raises:
        PickleError: it is another kind of file, is damaged, or asks for what no network pickle needs.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        explain_content(path, size)
        with path.open("rb") as file:
            scan = _scan(path, file, size)
            if scan.end != size:
                raise PickleError(
                    f"has {size - scan.end} bytes after the end of its pickle: something was added; download it again"
                )
            explain_globals(scan.globals)
            file.seek(0)
            root = _InertUnpickler(file, trust).load()
            if file.tell() != size:
                raise PickleError("reads differently in parts: forged; refused")
        for value in walk(root):
            if isinstance(value, Inert):
                value.check()
        if not isinstance(root, dict) or not any(isinstance(v, records.PersistentObject) for v in root.values()):
            raise PickleError("holds no network, but other pickled data: give the .pkl of a StyleGAN or EDM network")
    except PickleError as error:
        raise PickleError(f"{path} {error}") from None
    except OSError as error:
        raise PickleError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise PickleError(f"{path} does not fit into memory") from None
    except Exception as error:  # damaged bytes can fail in any of the unpickler's ways
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise PickleError(f"{path} is damaged or no network pickle ({reason}); download it again") from error
    foreign = tuple(f"{module}.{name}" for module, name in scan.globals if allowed_record(module, name) is None)
    return NetworkPickle(root, scan.protocol, path, trust, foreign)


def inert(value: Any) -> Any:
    """A value as records: what reading a pickle of it would give."""
    return _InertUnpickler(io.BytesIO(pickle.dumps(value, protocol=4)), trust=False).load()


def _scan(path: Path, file: BinaryIO, size: int) -> PickleScan:
    try:
        return scan_pickle(file, size)
    except PickleError:
        explain_failure(path)
        raise


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
