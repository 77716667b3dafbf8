"""Writer of records, back to the pickle that they came from, with other tensors.

The result differs from the source only in the bytes of tensors. Every record keeps its metadata, the embedded source
byte for byte, the archive head of each storage, the order of fields, the types, and the identity of objects: objects
shared in the source are shared in the copy. The one exception is a network that shares its tensors with something else
in the pickle: see `unshared`.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from refine.files.atomic import atomic_write
from refine.pickles.errors import PickleError
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.layout import like_dict
from refine.pickles.reader import NetworkPickle
from refine.pickles.records import Inert, InertDict, InertType, Opaque, PersistentObject
from refine.pickles.source import FileBytes
from refine.pickles.tensor_records import ParameterRecord, StorageRecord, TensorRecord
from refine.pickles.tree import children, module_state, named_tensors, walk
from refine.pickles.unpickler import inert

log = logging.getLogger("refine")

MAX_NAMED = 10  # globals in a warning


def save(
    network_pickle: NetworkPickle,
    path: str | Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> None:
    """Writes a pickle that any StyleGAN repository opens like the source pickle.

    Embedded source is copied unchanged, so for a plain `pickle.load` the result is as dangerous as the source; a
    warning says so unless every embedded source is known.

    Args:
        network_pickle: Result of `load`.
        path: File to write; it appears under this name only when it is complete.
        tensors: New values by top-level entry, each a complete state dict: `{"G_ema": G.state_dict()}`. They are
            stored with the element types of the source. Entries not named stay unchanged.

    Raises:
        PickleError: A tensor is missing, unknown, or of another shape.
        UserError: The file cannot be written.
    """
    with atomic_write(path) as file:
        write(network_pickle, file, tensors)
    warn_of_code(network_pickle, path)


def write(
    network_pickle: NetworkPickle, file: BinaryIO, tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None
) -> None:
    """Writes into an open file, without a warning about embedded source; see `save`."""
    if network_pickle.is_verbatim and _patch(network_pickle, file, tensors or {}):
        return
    root = like_dict(network_pickle.root, dict(network_pickle.root))
    new_data: dict[int, torch.Tensor] = {}
    for key, values in (tensors or {}).items():
        record = root.get(key)
        if module_state(record) is None:
            raise PickleError(f"{network_pickle.path} has no network {key!r} to give new tensors to")
        elsewhere = _storages([value for other, value in root.items() if other != key])
        if any(id(tensor.storage) in elsewhere for tensor in named_tensors(record).values()):
            record = root[key] = unshared(record)
        new_data |= _new_data(named_tensors(record), values, key)
    layout = network_pickle.layout
    value: Any = root
    if layout is not None:
        value = layout.enclose(root) if layout.is_snapshot else snapshot_of(root)
    dump(value, file, network_pickle.protocol, new_data)


def _patch(network_pickle: NetworkPickle, file: BinaryIO, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> bool:
    """Copies the bytes of the source, with other bytes where the data of new tensors lies.

    Returns:
        False, with nothing written, if a tensor to replace is at the same time one of another entry.

    Raises:
        PickleError: That is so, and the pickle cannot be written anew either.
    """
    source, root = network_pickle.verbatim, network_pickle.root
    assert source is not None
    pieces: dict[int, torch.Tensor] = {}  # flat data by position
    for key, values in tensors.items():
        record = root.get(key)
        if module_state(record) is None:
            raise PickleError(f"{network_pickle.path} has no network {key!r} to give new tensors to")
        own = named_tensors(record)
        if _archives(list(own.values())) & _archives([value for other, value in root.items() if other != key]):
            if not network_pickle.foreign_globals:
                return False
            raise PickleError(
                f"{network_pickle.path} shares the tensors of {key} with another entry, and records of dill cannot be "
                "written anew: make a file of the generator alone with `python -m refine export --network="
                f"{network_pickle.path} --format=pkl-ema --out=FILE`, and use that"
            )
        data = _new_data(own, values, key)
        for tensor in own.values():
            blob = tensor.storage.blob
            assert isinstance(blob.archive, FileBytes)
            pieces[blob.archive.offset + blob.data_start] = data[id(tensor.storage)]
    position = 0
    for start in sorted(pieces):
        for chunk in source.chunks(position, start - position):
            file.write(chunk)
        flat = pieces[start]
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy().data)
        position = start + flat.nbytes
    for chunk in source.chunks(position, source.size - position):
        file.write(chunk)
    return True


def snapshot_of(root: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a StyleGAN snapshot around a generator.

    The loader of NVIDIA's repositories wants a module under each of G, D and G_ema. A G that is missing is G_ema
    itself. A D that is missing becomes an empty module, which fails at once where somebody calls it; copying from it
    into a discriminator copies nothing.

    Args:
        root: Entries of which `G_ema` is one; without it they are returned as they are.
    """
    if "G_ema" not in root:
        return dict(root)
    expected = {
        "training_set_kwargs": None,
        "G": root["G_ema"],
        "D": inert(torch.nn.ModuleDict()) if root.get("D") is None else None,
        "G_ema": None,
        "augment_pipe": None,
    }
    return expected | {key: value for key, value in root.items() if not (key == "D" and value is None)}


def warn_of_code(network_pickle: NetworkPickle, path: str | Path) -> None:
    """Warns if the written pickle has unknown source that a plain `pickle.load` would run."""
    unknown = {o.source_sha256 for o in network_pickle.persistent_objects()} - KNOWN_SOURCES.keys()
    carried = [f"{len(unknown)} embedded source{'s' if len(unknown) > 1 else ''}"] if unknown else []
    if network_pickle.foreign_globals:
        names = network_pickle.foreign_globals
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        carried.append(f"calls of {', '.join(names[:MAX_NAMED])}{more}")
    if carried:
        log.warning(
            "%s carries %s from its origin, which a plain pickle.load runs and Refine cannot vouch for: "
            "pass it on only if you trust %s",
            *(path, " and ".join(carried), network_pickle.path.name),
        )


def dump(value: Any, file: BinaryIO, protocol: int, new_data: Mapping[int, torch.Tensor] | None = None) -> None:
    """Pickles a record tree.

    Args:
        value: Records and plain values.
        file: File, open for writing.
        protocol: Pickle protocol, 3 to 5.
        new_data: Flat tensors to write instead of a storage's own data, by `id` of the `StorageRecord`.
    """
    _RecordPickler(file, protocol, new_data or {}).dump(value)


def unshared(module: Any) -> Any:
    """A copy of a module's record with storages of its own; everything but the way to them stays shared.

    Some pickles hold one object as both G and G_ema. When the two get different weights, the identity of
    objects has to be given up, here and nowhere else.
    """
    copies: dict[int, Any] = {}

    def copy(record: Any) -> Any:
        if id(record) not in copies:
            copies[id(record)] = _copy(record)
        return copies[id(record)]

    def _copy(record: Any) -> Any:
        if isinstance(record, StorageRecord):
            return _like(record, record.args)
        if isinstance(record, (TensorRecord, ParameterRecord)):
            return _like(record, (copy(record.args[0]), *record.args[1:]))
        state = module_state(record)
        if state is None:
            return record
        state = like_dict(state, dict(state))
        for field in ("_parameters", "_buffers", "_modules"):
            state[field] = like_dict(state[field], {name: copy(item) for name, item in state[field].items()})
        if isinstance(record, PersistentObject):
            return _like(record, (like_dict(record.meta, record.meta | {"state": state}),))
        result = _like(record, record.args)
        result.state = state
        return result

    return copy(module)


def _like(record: Inert, args: tuple[Any, ...]) -> Any:
    result: Any = type(record).__new__(type(record), *args)
    result.is_new_object = record.is_new_object
    return result


def _storages(values: Any) -> set[int]:
    """Ids of all storages that can be reached from `values`."""
    return {id(value) for value in walk(values) if isinstance(value, StorageRecord)}


def _archives(values: Any) -> set[int]:
    """Positions of all archives that can be reached from `values`, also through records that are passed over."""
    seen: set[int] = set()
    found: set[int] = set()
    pending = [values]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        archive = getattr(value.blob, "archive", None) if isinstance(value, StorageRecord) else None
        if isinstance(archive, FileBytes):
            found.add(archive.offset)
        pending += value.contents() if isinstance(value, Opaque) else children(value)
    return found


def _new_data(
    old: Mapping[str, TensorRecord], new: Mapping[str, torch.Tensor], network: str
) -> dict[int, torch.Tensor]:
    """Flat contents of every storage of a network, by its id.

    Raises:
        PickleError: Names or shapes differ, or tensors that share memory in the pickle now have different values.
    """
    for name in [*(n for n in old if n not in new), *(n for n in new if n not in old)]:
        raise PickleError(f"{network} {'has no' if name in new else 'needs a new'} tensor {name}")
    sharing: dict[int, list[str]] = {}
    for name, record in old.items():
        if tuple(new[name].shape) != record.shape:
            raise PickleError(f"{network}.{name} is {record.shape} in the pickle, {tuple(new[name].shape)} now")
        sharing.setdefault(id(record.storage), []).append(name)
    return {storage: _storage_data(old, new, names, network) for storage, names in sharing.items()}


def _storage_data(
    old: Mapping[str, TensorRecord], new: Mapping[str, torch.Tensor], names: list[str], network: str
) -> torch.Tensor:
    """New contents of the one storage that the tensors `names` are views of."""
    values = {name: new[name].detach().to(device="cpu", dtype=old[name].dtype) for name in names}
    record = old[names[0]]
    blob = record.storage.blob
    if len(names) == 1 and record.is_contiguous and record.num_elements == blob.num_elements:
        return values[names[0]].contiguous().reshape(-1)
    flat = blob.tensor()
    views = {name: torch.as_strided(flat, old[name].shape, old[name].stride, old[name].offset) for name in names}
    for name, view in views.items():
        view.copy_(values[name])
    for name, view in views.items():
        if not torch.equal(torch.nan_to_num(view), torch.nan_to_num(values[name])):
            raise PickleError(f"{network}.{name} shares memory with {', '.join(names)} in the pickle, and differs now")
    return flat


_PythonPickler: Any = pickle._Pickler  # written in Python: only this one can be told how to write a global


class _RecordPickler(_PythonPickler):
    def __init__(self, file: BinaryIO, protocol: int, new_data: Mapping[int, torch.Tensor]) -> None:
        super().__init__(file, protocol, fix_imports=False)
        self.new_data = new_data

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, FileBytes):
            self._save_file_bytes(obj)
        elif not isinstance(obj, (Inert, InertType)):
            super().save(obj, save_persistent_id)
        elif (known := self.memo.get(id(obj))) is not None:
            self.write(self.get(known[0]))
        elif isinstance(obj, InertType):
            self._save_global(obj)
        else:
            self._save_inert(obj)

    def _save_global(self, obj: InertType) -> None:
        if self.proto >= 4:
            self.save(obj.global_module)
            self.save(obj.global_name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.global_module}\n{obj.global_name}\n".encode())
        self.memoize(obj)

    def _save_inert(self, obj: Inert) -> None:
        if isinstance(obj, Opaque):
            raise PickleError(
                f"has a record of {obj!r:.80}, which can only be copied with its file, not be written anew"
            )
        self.save(type(obj))
        if isinstance(obj, StorageRecord) and id(obj) in self.new_data:
            assert obj.args, "a file of tensors alone is not written"
            head, data = obj.blob.with_data(self.new_data[id(obj)])
            self._write_bytes(head, data)
            self._memoize_temporary()
            self.write(pickle.TUPLE1)
            self._memoize_temporary()
        else:
            self.save(obj.args)
        self.write(pickle.NEWOBJ if obj.is_new_object else pickle.REDUCE)
        self.memoize(obj)
        items = list(obj.items()) if isinstance(obj, InertDict) else list(obj.dict_items.items())
        self._save_batches(pickle.APPEND, pickle.APPENDS, [(item,) for item in obj.list_items])
        self._save_batches(pickle.SETITEM, pickle.SETITEMS, items)
        if obj.state is not None:
            self.save(obj.state)
            self.write(pickle.BUILD)

    def _save_batches(self, one: bytes, many: bytes, items: list[tuple[Any, ...]], batch: int = 1000) -> None:
        for start in range(0, len(items), batch):
            chunk = items[start : start + batch]
            if len(chunk) > 1:
                self.write(pickle.MARK)
            for item in chunk:
                for part in item:
                    self.save(part)
            self.write(many if len(chunk) > 1 else one)

    def _write_bytes(self, head: bytes, data: memoryview) -> None:
        """Bytes in two parts, written without joining them, as long strings are: outside of any frame."""
        num_bytes = len(head) + len(data)
        if num_bytes <= 0xFF:
            self.write(pickle.SHORT_BINBYTES + bytes([num_bytes]) + head + data)
        elif num_bytes < self.framer._FRAME_SIZE_TARGET:
            self.write(pickle.BINBYTES + num_bytes.to_bytes(4, "little") + head + data)
        else:
            opcode, width = (pickle.BINBYTES, 4) if num_bytes <= 0xFFFFFFFF else (pickle.BINBYTES8, 8)
            self._write_large_bytes(opcode + num_bytes.to_bytes(width, "little") + head, data)

    def _save_file_bytes(self, obj: FileBytes) -> None:
        """Bytes from a file, in parts, as `_write_bytes` does."""
        if (known := self.memo.get(id(obj))) is not None:
            self.write(self.get(known[0]))
            return
        if len(obj) < self.framer._FRAME_SIZE_TARGET:
            self._write_bytes(b"", memoryview(bytes(obj)))
        else:
            opcode, width = (pickle.BINBYTES, 4) if len(obj) <= 0xFFFFFFFF else (pickle.BINBYTES8, 8)
            self._write_large_bytes(opcode + len(obj).to_bytes(width, "little"), b"")
            for chunk in obj.chunks():
                self._write_large_bytes(chunk, b"")
        self.memoize(obj)

    def _memoize_temporary(self) -> None:
        """Uses up a memo number for a value that nothing else refers to, without keeping it in memory."""
        self.memoize([])
