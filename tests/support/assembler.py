"""Pickles written opcode by opcode, for what no pickler would write."""

from __future__ import annotations

import pickle
import struct


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def blob(data: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def put(index: int) -> bytes:
    return pickle.LONG_BINPUT + struct.pack("<I", index)


def get(index: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", index)


def number(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)


def mapping(*items: tuple[bytes, bytes]) -> bytes:
    return pickle.EMPTY_DICT + pickle.MARK + b"".join(key + value for key, value in items) + pickle.SETITEMS


def sequence(*items: bytes) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def tuple_of(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def doubling(levels: int) -> bytes:
    """A tuple of two tuples of two tuples ...: 2^levels values for whoever visits each; uses memo entries 0, 1, ..."""
    value = text("z") + put(0)
    for level in range(levels):
        value += get(level) + pickle.TUPLE2 + put(level + 1)
    return value


def root(*items: tuple[bytes, bytes]) -> bytes:
    return b"\x80\x04" + mapping(*items) + pickle.STOP


PERSISTENT = name("torch_utils.persistence", "_reconstruct_persistent_obj")


def persistent(
    state: bytes, class_name: str = "M", source: str = "# source removed\n", version: bytes = b"K\x06"
) -> bytes:
    fields = {"type": text("class"), "version": version, "module_src": text(source), "class_name": text(class_name)}
    items = [(text(key), value) for key, value in fields.items()]
    return PERSISTENT + mapping(*items, (text("state"), state)) + pickle.TUPLE1 + pickle.REDUCE


def module(buffers: bytes = b"}", *attributes: tuple[bytes, bytes], modules: bytes = b"}", **kwargs: object) -> bytes:
    parts = ((text("_parameters"), b"}"), (text("_buffers"), buffers), (text("_modules"), modules), *attributes)
    return persistent(mapping(*parts), **kwargs)  # type: ignore[arg-type]


SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


def archive(num_elements: int = 1, system: bytes = SYSTEM, key: bytes = text("0"), keys: bytes | None = None) -> bytes:
    """A torch.save archive of the old kind, of float32 zeros."""
    parts = [text("storage"), name("torch", "FloatStorage"), key, text("cpu"), number(num_elements), pickle.NONE]
    described = b"\x80\x02" + tuple_of(*parts) + pickle.BINPERSID + pickle.STOP
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + system + described
    return head + (keys or pickle.dumps(["0"], 2)) + struct.pack("<q", num_elements) + b"\0" * (4 * num_elements)


LOAD = name("torch.storage", "_load_from_bytes")


def storage(data: bytes | None = None) -> bytes:
    return LOAD + blob(archive() if data is None else data) + pickle.TUPLE1 + pickle.REDUCE


def tensor(of: bytes | None = None, shape: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,)) -> bytes:
    hooks = name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    sizes = [tuple_of(*(number(n) for n in numbers)) for numbers in (shape, stride)]
    args = tuple_of(storage() if of is None else of, number(0), *sizes, pickle.NEWFALSE, hooks)
    return name("torch._utils", "_rebuild_tensor_v2") + args + pickle.REDUCE
