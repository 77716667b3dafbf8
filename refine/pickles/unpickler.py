"""Unpickler that turns every global into an inert record, from an allow-list of globals."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from refine.pickles import numpy_records, records, tensor_records
from refine.pickles.errors import PickleError
from refine.pickles.records import Inert, InertType
from refine.pickles.scan import Archive
from refine.pickles.source import FileBytes, SourceFile

# Every global that occurs in the snapshots of stylegan2-ada-pytorch, stylegan3, edm and their forks, and the
# record that each becomes. NumPy is spelled numpy.core up to version 1, numpy._core since 2.
ALLOWED_GLOBALS: dict[tuple[str, str], type[Inert]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): records.PersistentObject,
    ("dnnlib.util", "EasyDict"): records.InertDict,
    ("collections", "OrderedDict"): records.InertDict,
    ("builtins", "set"): records.Values,  # protocol 3 has no opcode for sets
    ("torch._utils", "_rebuild_parameter"): tensor_records.ParameterRecord,
    ("torch._utils", "_rebuild_tensor_v2"): tensor_records.TensorRecord,
    ("torch.storage", "_load_from_bytes"): tensor_records.StorageRecord,
    ("torch", "Size"): records.Values,
    ("torch", "device"): records.Values,
    ("numpy", "dtype"): numpy_records.NumpyDtype,
    ("numpy", "ndarray"): records.Name,
    **{
        (f"{core}.{name}", function): record
        for core in ("numpy.core", "numpy._core")
        for name, function, record in (
            ("multiarray", "scalar", numpy_records.NumpyScalar),
            ("multiarray", "_reconstruct", numpy_records.NumpyArray),
            ("numeric", "_frombuffer", numpy_records.NumpyBuffer),
        )
    },
}

# Modules of R3GAN, whose pickles are ordinary ones; the published files have the earlier names.
_R3GAN = {
    "training.networks": ("Generator", "Discriminator"),
    "training.networks_baseline": ("Generator", "Discriminator"),
    **{
        f"{package}.{module}": names
        for package in ("R3GAN", "BaselineGAN")
        for module, names in (
            (
                "Networks",
                ("Generator", "Discriminator", "GeneratorStage", "DiscriminatorStage", "GenerativeBasis")
                + ("DiscriminativeBasis", "ResidualBlock", "UpsampleLayer", "DownsampleLayer", "Convolution"),
            ),
            (
                "Resamplers",
                ("InterpolativeUpsamplerCUDA", "InterpolativeDownsamplerCUDA")
                + ("InterpolativeUpsamplerReference", "InterpolativeDownsamplerReference"),
            ),
            ("FusedOperators", ("BiasedActivationCUDA", "BiasedActivationReference")),
        )
    },
}
ALLOWED_GLOBALS |= {(module, name): records.OwnModule for module, names in _R3GAN.items() for name in names}


def allowed_record(module: str, name: str) -> type[Inert] | None:
    """The record that a global becomes; None if the global is not allowed.

    Beside the list, modules of PyTorch itself: unlike a call, making one bare and filling it runs nothing.
    """
    if module.startswith("torch.nn.modules.") and "." not in name:
        return records.PlainModule
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return records.Name
    return ALLOWED_GLOBALS.get((module, name))


# What a pickle of StyleGAN-XL names beside its generators: dill's own functions, and the discriminator's feature
# networks, of timm. No record of these is understood, and nothing of them is imported.
_PASSED_OVER = {
    *(("builtins", name) for name in ("getattr", "setattr", "__dict__")),
    *(("dill", "_dill"), ("functools", "partial")),
}
_PASSED_OVER_PACKAGES = ("dill._dill", "timm", "pg_modules", "feature_networks", "torchvision", "torch.nn", "torch._C")


def passed_over(module: str, name: str) -> type[Inert] | None:
    """The record that a global becomes in a pickle of dill; None if the global is not allowed there."""
    if (module, name) == ("dill._dill", "_create_array"):
        return numpy_records.DillArray
    known = any(f"{module}.".startswith(f"{package}.") for package in _PASSED_OVER_PACKAGES)
    return records.Opaque if known or (module, name) in _PASSED_OVER else None


class InertUnpickler(pickle.Unpickler):
    """Unpickler that imports nothing.

    Args:
        file: Open at the beginning of the pickle.
        trust: Permission to turn globals that are not on the list into records as well.
        dill: Whether dill wrote the pickle, so that what it writes of functions and other packages' networks occurs.
    """

    def __init__(self, file: Any, trust: bool, *, dill: bool = False) -> None:
        super().__init__(file, fix_imports=False)
        self.trust, self.dill = trust, dill
        self.types: dict[tuple[str, str], InertType] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The type that stands for a global.

        Raises:
            PickleError: The global is not allowed.
        """
        base = allowed_record(module, name) or (passed_over(module, name) if self.dill else None)
        base = base or (records.Foreign if self.trust else None)
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


class ArchiveUnpickler(InertUnpickler):
    """Unpickler whose persistent ids are the numbers of storages' archives, which stay in the file.

    Args:
        file: Pickle without archives.
        trust: See `InertUnpickler`.
        source: File with the archives.
        archives: Places of the archives.
        dill: See `InertUnpickler`.
    """

    def __init__(
        self, file: Any, trust: bool, source: SourceFile, archives: Sequence[Archive], *, dill: bool = False
    ) -> None:
        super().__init__(file, trust, dill=dill)
        self.source = source
        self._archives = archives

    def persistent_load(self, pid: Any) -> FileBytes:
        """The archive of a number, which the scan has put into the pickle."""
        archive = self._archives[pid]
        return FileBytes(self.source, archive.start, archive.end - archive.start)


def inert(value: Any) -> Any:
    """A value as records: what reading a pickle of it would give."""
    return InertUnpickler(io.BytesIO(pickle.dumps(value, protocol=4)), trust=False).load()
