"""What a network pickle becomes when it is read: inert records.

A pickle builds objects by naming a global and calling it. Here every global is an `InertType`, a class made
for that name alone; "calling" it makes an `Inert` record that remembers the call. Nothing that the file names
is imported. The records keep all that a pickle can say (arguments, state, items, identity), so that the
writer can say it again, and the few that Refine has to understand have subclasses: persistent objects,
tensors, storages and NumPy values.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from refine.pickles.errors import PickleError
from refine.pickles.storage import StorageBlob, parse_storage

MAX_EXPANDED = 100_000  # values, where shared ones count each time; the settings of a network have 100


class InertType(type):
    """A global that a pickle names: a class of its own, made for that name and never imported."""

    global_module: str
    global_name: str

    def __call__(cls, *args: Any) -> Any:
        """REDUCE: records the call; it runs nothing."""
        record: Any = cls.__new__(cls, *args)  # type: ignore[arg-type]
        record.is_new_object = False
        return record

    def __repr__(cls) -> str:
        return f"<global {cls.global_module}.{cls.global_name}>"


class Inert(metaclass=InertType):
    """An object as its pickle describes it.

    Attributes:
        args: arguments of the call (REDUCE) or of `__new__` (NEWOBJ).
        is_new_object: whether it was made by NEWOBJ (`cls.__new__`) instead of REDUCE (a call).
        state: what BUILD hands to `__setstate__`, or None.
        list_items, dict_items: what APPENDS and SETITEMS add to an object that is neither list nor dict.
    """

    global_module = "refine.pickles.records"
    global_name = "Inert"

    args: tuple[Any, ...]
    is_new_object: bool
    state: Any
    list_items: list[Any]
    dict_items: dict[Any, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """NEWOBJ: records the call."""
        if kwargs:
            raise PickleError(f"creates {cls!r} with keyword arguments, which Refine does not write back")
        record = super().__new__(cls)
        record.args = args
        record.is_new_object = True
        record.state = None
        record.list_items = []
        record.dict_items = {}
        return record

    def __setstate__(self, state: Any) -> None:
        if self.state is not None or state is None:
            raise PickleError(f"sets the state of {type(self)!r} twice or to nothing; refused")
        self.state = state

    def append(self, item: Any) -> None:
        """APPEND to an object that is not a list."""
        self.list_items.append(item)

    def extend(self, items: Iterable[Any]) -> None:
        """APPENDS to an object that is not a list."""
        self.list_items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.dict_items[key] = value

    def __repr__(self) -> str:
        return f"<{type(self).global_module}.{type(self).global_name} record>"

    may_be_new_object = False  # what a subclass allows beyond a plain call
    may_have_state = False

    def check(self) -> None:
        """Raises PickleError where the record is not what its global requires; called once all is read."""
        self._require(self.may_be_new_object or not self.is_new_object, "call is one of __new__")
        self._require(self.may_have_state or self.state is None, "call is followed by a state")
        self._require(not (self.list_items or self.dict_items), "call is followed by items")

    def children(self) -> Iterator[Any]:
        """Everything the record refers to."""
        yield from (self.args, self.state, self.list_items, self.dict_items)

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise PickleError(f"has a {type(self).global_name} record whose {what}; it is damaged or forged")


class InertDict(Inert, dict):
    """A subclass of dict (OrderedDict, EasyDict): its items are its own, everything else as in `Inert`."""

    may_be_new_object = True
    __setitem__ = dict.__setitem__
    __repr__ = dict.__repr__
    __hash__ = None

    def check(self) -> None:
        """No arguments, no state, no list items: only items."""
        super().check()
        self._require(not self.args, "call has arguments")

    def children(self) -> Iterator[Any]:
        """Keys and values."""
        yield from self.keys()
        yield from self.values()


class Foreign(Inert):
    """An object that a trusted pickle makes from a global which is not on the list: anything goes."""

    def check(self) -> None:
        """Whatever it is, it is not Refine that makes it."""


class Name(Inert):
    """A global that is only named, never called, such as an element type."""

    def check(self) -> None:
        """There is no such record."""
        self._require(False, "global is called, which no network pickle does")


class Values(Inert):
    """A call on plain values that Refine passes on: a set of protocol 3, a `torch.Size`, a `torch.device`."""


class PlainModule(Inert):
    """A module of PyTorch itself: made bare, then given its `__dict__`."""

    may_be_new_object = may_have_state = True

    def check(self) -> None:
        """`__new__` without arguments."""
        super().check()
        self._require(self.is_new_object and not self.args, "call has another form")


class PersistentObject(Inert):
    """An object of NVIDIA's persistence: its class travels as source text, its attributes as `state`.

    Source: the format of `torch_utils.persistence`, version 6: one dict with type, version, module_src,
    class_name, state.
    """

    @property
    def meta(self) -> dict[str, Any]:
        """The dict as it stands in the pickle."""
        return self.args[0]

    @property
    def class_name(self) -> str:
        """Name of the class within its source."""
        return self.meta["class_name"]

    @property
    def module_src(self) -> str:
        """Python source of the class's module: text that Refine passes through and never runs by itself."""
        return self.meta["module_src"]

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's `__dict__`, as inert values."""
        return self.meta["state"]

    @property
    def source_sha256(self) -> str:
        """SHA-256 of the embedded source, hexadecimal."""
        return _text_sha256(self.module_src)

    @property
    def init_args(self) -> tuple[Any, ...]:
        """Positional constructor arguments, as plain Python values."""
        return to_python(self.attributes.get("_init_args", ()))

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Keyword constructor arguments, as plain Python values."""
        return to_python(self.attributes.get("_init_kwargs", {}))

    def check(self) -> None:
        """One dict with the five fields of version 6."""
        super().check()
        self._require(len(self.args) == 1, "call has another form")
        meta = self.args[0]
        self._require(isinstance(meta, dict), "description is not a dict")
        self._require(meta.get("type") == "class", "type is not 'class'")
        version = meta.get("version")
        self._require(version == 6, f"format version is {version if type(version) is int else 'no number'}, not 6")
        self._require(
            all(isinstance(meta.get(field), str) for field in ("module_src", "class_name")),
            "module_src or class_name is not text",
        )
        self._require(isinstance(meta.get("state"), dict), "state is not a dict")
        for field, kind in (("_init_args", (tuple, list)), ("_init_kwargs", dict)):
            self._require(isinstance(meta["state"].get(field, kind() if kind is dict else ()), kind), f"{field} is odd")


class Storage(Inert):
    """The memory of a tensor: a torch.save archive of the old kind, kept as bytes.

    Parsed when the record is made, so that a forged archive is refused at once.
    """

    blob: StorageBlob

    def __new__(cls, *args: Any) -> Storage:
        """Parses the archive."""
        if len(args) != 1 or not isinstance(args[0], bytes):
            raise PickleError("has a tensor storage that is not one string of bytes; it is damaged or forged")
        record = super().__new__(cls, *args)
        assert isinstance(record, Storage)
        record.blob = parse_storage(args[0])
        return record

    def children(self) -> Iterator[Any]:
        """None: a storage is bytes."""
        return iter(())


class Tensor(Inert):
    """A tensor: a view on a `Storage`."""

    @property
    def storage(self) -> Storage:
        """The memory it looks at."""
        return self.args[0]

    @property
    def offset(self) -> int:
        """First element, counted in elements of the storage."""
        return self.args[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements by axis."""
        return self.args[2]

    @property
    def stride(self) -> tuple[int, ...]:
        """Distance between neighbours by axis, in elements."""
        return self.args[3]

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.storage.blob.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements of the view."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in the storage in the order of a C array."""
        expected = 1
        for size, step in zip(self.shape[::-1], self.stride[::-1], strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def check(self) -> None:
        """A view that lies within its storage, and is not larger than it."""
        super().check()
        self._require(len(self.args) in (6, 7), "call has another form")
        self._require(isinstance(self.args[0], Storage), "storage is not a storage")
        shape, stride = self.args[2], self.args[3]
        self._require(
            isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 16,
            "shape and stride do not belong together",
        )
        self._require(
            all(type(n) is int and 0 <= n < 2**40 for n in (self.args[1], *shape, *stride)),
            "offset, shape or stride is not a list of natural numbers",
        )
        self._require(math.prod(n for n in shape if n) < 2**40, "shape is beyond any tensor's")
        last = self.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        fits = self.num_elements == 0 or (
            last < self.storage.blob.num_elements and self.num_elements <= self.storage.blob.num_elements
        )
        self._require(fits, f"shape {shape} does not fit its storage of {self.storage.blob.num_elements} elements")
        hooks = self.args[5]
        self._require(isinstance(hooks, dict) and not hooks, "hooks are not empty")

    def read(self) -> torch.Tensor:
        """A fresh copy in memory of its own, contiguous, on the CPU."""
        return self.storage.blob.view(self.shape, self.stride, self.offset)


class Parameter(Inert):
    """A `torch.nn.Parameter` around a `Tensor`."""

    @property
    def tensor(self) -> Tensor:
        """The tensor itself."""
        return self.args[0]

    def check(self) -> None:
        """Around a tensor, without hooks."""
        super().check()
        self._require(len(self.args) == 3, "call has another form")
        self._require(isinstance(self.args[0], Tensor), "content is not a tensor")
        self._require(isinstance(self.args[2], dict) and not self.args[2], "hooks are not empty")


class NumpyDtype(Inert):
    """A `numpy.dtype`: code such as 'f8' in `args[0]`, byte order in `state[1]`."""

    may_have_state = True

    def check(self) -> None:
        """A code in text."""
        super().check()
        self._require(bool(self.args) and isinstance(self.args[0], str), "code is not text")

    def plain(self) -> np.dtype[Any]:
        """The dtype itself. Raises PickleError unless it is a boolean, an integer or a float."""
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self.args[0]):
            raise PickleError(f"holds NumPy data of type {self.args[0][:20]!r}, which Refine does not read")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        return np.dtype(self.args[0]).newbyteorder(order if order in ("<", ">") else "=")


class NumpyScalar(Inert):
    """A NumPy scalar: a dtype and its bytes."""

    def check(self) -> None:
        """A dtype, and bytes of its size."""
        super().check()
        ok = len(self.args) == 2 and isinstance(self.args[0], NumpyDtype) and isinstance(self.args[1], bytes)
        self._require(ok, "call has another form")

    def plain(self) -> bool | int | float:
        """The number as a Python value."""
        dtype, data = self.args[0].plain(), self.args[1]
        self._require(len(data) == dtype.itemsize, f"{len(data)} bytes are not one {dtype}")
        return np.frombuffer(data, dtype)[0].item()


class NumpyArray(Inert):
    """A NumPy array: state = (version, shape, dtype, is_fortran, bytes)."""

    may_have_state = True

    def plain(self) -> list[Any]:
        """The array as lists. Raises PickleError where shape and bytes do not agree."""
        state = self.state
        self._require(isinstance(state, tuple) and len(state) == 5, "state has another form")
        return _plain_array(self, state[4], state[2], state[1], "F" if state[3] is True else "C")


class NumpyBuffer(Inert):
    """A NumPy array of protocol 5: args = (bytes, dtype, shape, order)."""

    def plain(self) -> list[Any]:
        """The array as lists. Raises PickleError where shape and bytes do not agree."""
        self._require(len(self.args) == 4 and self.args[3] in ("C", "F"), "call has another form")
        return _plain_array(self, *self.args)


def _plain_array(record: Inert, data: Any, dtype: Any, shape: Any, order: Any) -> list[Any]:
    def require(condition: bool) -> None:
        if not condition:
            raise PickleError("has a NumPy array whose shape and data do not agree; it is damaged or forged")

    require(isinstance(data, (bytes, bytearray)) and isinstance(dtype, NumpyDtype) and isinstance(shape, tuple))
    require(len(shape) <= 32 and all(type(n) is int and 0 <= n <= MAX_EXPANDED for n in shape))
    require(math.prod(n for n in shape if n) <= MAX_EXPANDED)
    require(math.prod(shape) * dtype.plain().itemsize == len(data))
    return np.frombuffer(data, dtype.plain()).reshape(shape, order=order).tolist()


@lru_cache(maxsize=64)
def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def to_python(value: Any) -> Any:
    """Constructor arguments and settings as plain Python values: records become numbers, lists and dicts.

    Raises:
        PickleError: a value (a tensor, an object) has no plain form, or values that refer to each other over and
            over would become more than any network's settings.
    """
    num_values = 0

    def convert(value: Any) -> Any:
        nonlocal num_values
        num_values += 1 + (len(value) // 8 if isinstance(value, (str, bytes)) else 0)
        if num_values > MAX_EXPANDED:
            raise PickleError(f"has settings of more than {MAX_EXPANDED} values; refused")
        if value is None or isinstance(value, (bool, int, float, str, bytes)):
            return value
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(convert(item) for item in value)
        if isinstance(value, NumpyScalar):
            return value.plain()
        if isinstance(value, (NumpyArray, NumpyBuffer)):
            return convert(value.plain())
        raise PickleError(f"has a setting of a kind that Refine does not read: {value!r:.80}")

    return convert(value)
