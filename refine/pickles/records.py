"""Inert records that the objects of a network pickle become when it is read.

A pickle builds objects by naming a global and calling it. Here every global is an `InertType`, a class made for that
name alone; "calling" it makes an `Inert` record that remembers the call. Nothing that the file names is imported. The
records keep everything that a pickle can say (arguments, state, items, identity), so that the writer can say it again.
The few that Refine has to understand have subclasses: persistent objects here, tensors in `tensor_records`, NumPy
values in `numpy_records`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

from refine.files.digest import text_sha256
from refine.pickles.errors import PickleError

MAX_EXPANDED = 100_000  # values, where shared ones count each time; the settings of a network have 100


class InertType(type):
    """A global that a pickle names: a class of its own, made for that name and never imported."""

    global_module: str
    global_name: str

    def __call__(cls, *args: Any) -> Any:
        """REDUCE: records the call and runs nothing."""
        record: Any = cls.__new__(cls, *args)  # type: ignore[arg-type]
        record.is_new_object = False
        return record

    def __repr__(cls) -> str:
        return f"<global {cls.global_module}.{cls.global_name}>"


class Inert(metaclass=InertType):
    """An object as its pickle describes it.

    Attributes:
        args: Arguments of the call (REDUCE) or of `__new__` (NEWOBJ).
        is_new_object: Whether the object is made by NEWOBJ (`cls.__new__`) instead of REDUCE (a call).
        state: State that BUILD passes to `__setstate__`, or None.
        list_items: Items that APPENDS adds to an object that is not a list.
        dict_items: Items that SETITEMS adds to an object that is not a dict.
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

    may_be_new_object = False  # forms that a subclass allows beyond a plain call
    may_have_state = False

    def check(self) -> None:
        """Raises PickleError if the record is not what its global requires; called after everything is read."""
        self._require(self.may_be_new_object or not self.is_new_object, "call is one of __new__")
        self._require(self.may_have_state or self.state is None, "call is followed by a state")
        self._require(not (self.list_items or self.dict_items), "call is followed by items")

    def children(self) -> Iterator[Any]:
        """The values that the record refers to."""
        yield from (self.args, self.state, self.list_items, self.dict_items)

    def plain(self) -> Any:
        """Python value that the record stands for: a number or a list of numbers.

        Raises:
            PickleError: The record stands for no such value.
        """
        raise PickleError(f"has a setting of a kind that Refine does not read: {self!r:.80}")

    def _require(self, condition: bool, what: str) -> None:
        if not condition:
            raise PickleError(f"has a {type(self).global_name} record whose {what}; it is damaged or forged")


class InertDict(Inert, dict):
    """A subclass of dict (OrderedDict, EasyDict): its items are its own, everything else as in `Inert`."""

    may_be_new_object = may_have_state = True
    __setitem__ = dict.__setitem__
    __repr__ = dict.__repr__
    __hash__ = None

    def check(self) -> None:
        """No arguments and no list items: only items, and the versions of modules that PyTorch adds to state dicts."""
        super().check()
        self._require(not self.args, "call has arguments")
        is_usual = self.state is None or (isinstance(self.state, dict) and self.state.keys() == {"_metadata"})
        self._require(is_usual, "call is followed by a state")

    def children(self) -> Iterator[Any]:
        """Keys and values, and the state."""
        yield from self.keys()
        yield from self.values()
        yield self.state


class Foreign(Inert):
    """An object that a trusted pickle makes from a global that is not on the list; it may have any form."""

    def check(self) -> None:
        """Accepts everything: Refine does not make the object."""


class Opaque(Foreign):
    """An object that Refine passes over: what dill writes of functions, and networks of other packages.

    It takes any form that a pickle can give an object, and remembers only what it refers to, not how. So it can be
    copied with the bytes of its file, but not be written anew.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Opaque:
        """NEWOBJ or NEWOBJ_EX: records what is passed."""
        record: Any = super().__new__(cls, *args, *kwargs.values())
        assert isinstance(record, Opaque)
        return record

    def __call__(self, *args: Any) -> Opaque:
        """REDUCE with an object in place of a global: records the call and runs nothing."""
        return Opaque(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.list_items.append(state)

    def add(self, item: Any) -> None:
        """ADDITEMS to an object that is not a set."""
        self.list_items.append(item)

    def children(self) -> Iterator[Any]:
        """Nothing: its content may refer back to it; see `contents`."""
        return iter(())

    def contents(self) -> Iterator[Any]:
        """The values that it refers to."""
        yield from (self.args, self.list_items, self.dict_items)


class Name(Inert):
    """A global that is only named, never called, such as an element type."""

    def check(self) -> None:
        """Refuses every record."""
        self._require(False, "global is called, which no network pickle does")


class Values(Inert):
    """A call on plain values that Refine passes on: a set of protocol 3, a `torch.Size`, a `torch.device`."""


class PlainModule(Inert):
    """A module that its pickle names: made bare, then given its `__dict__`."""

    may_be_new_object = may_have_state = True
    init_args: tuple[Any, ...] = ()  # constructor arguments, which such a pickle does not have
    init_kwargs: dict[str, Any] = {}  # noqa: RUF012

    @property
    def class_name(self) -> str:
        """Name of the class within its module."""
        return self.global_name

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's `__dict__`, as inert values."""
        return self.state if isinstance(self.state, dict) else {}

    def check(self) -> None:
        """`__new__` without arguments."""
        super().check()
        self._require(self.is_new_object and not self.args, "call has another form")


class OwnModule(PlainModule):
    """A module of a repository whose pickles name their classes, which the repository's code then has to define."""


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


NetworkRecord = PersistentObject | OwnModule

_text_sha256 = lru_cache(maxsize=64)(text_sha256)


def to_python(value: Any) -> Any:
    """Constructor arguments and settings as plain Python values: records become numbers, lists and dicts.

    Raises:
        PickleError: A value (a tensor, an object) has no plain form, or values that refer to each other over and
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
        if isinstance(value, Inert):
            return convert(value.plain())
        raise PickleError(f"has a setting of a kind that Refine does not read: {value!r:.80}")

    return convert(value)
