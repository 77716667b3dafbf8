"""Classes whose pickled instances carry the source of their module, and open where that module is missing.

The format, which NVIDIA's repositories share: an instance unpickles by calling `_reconstruct_persistent_obj`
with one dict of `type` ('class'), `version` (6), `module_src`, `class_name` and `state`, in this order; `state`
is what the class's own `__getstate__` returns, else the instance's `__dict__`.

Unpickling such an object *executes* `module_src`, unless a module with the same source has been imported.
`refine.pickles` reads the same files and executes nothing.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import pickle
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

import dnnlib

FORMAT_VERSION = 6

Hook = Callable[[dnnlib.EasyDict], Mapping[str, Any]]
_Class = TypeVar("_Class", bound=type)
_Hook = TypeVar("_Hook", bound=Hook)

_import_hooks: list[Hook] = []
_source_of_class: dict[type, str] = {}
_source_of_module: dict[str, str] = {}  # Sources of modules that were executed from a pickle and so have no file.
_module_of_source: dict[str, types.ModuleType] = {}  # Imported modules whose classes are persistent.
_one_text: dict[str, str] = {}  # pickle stores equal texts once only if they are the same object
_executing = threading.RLock()


def persistent_class(orig_class: _Class) -> _Class:
    """Decorator: instances pickle together with the source of the module that defines their class.

    Instances get the read-only properties `init_args` and `init_kwargs`, copies of the constructor's arguments. A class
    derived from a persistent one has to be decorated too; decorating twice is harmless.

    Raises:
        OSError: The source of the class's module cannot be found, as in an interactive session.
    """
    if orig_class in _source_of_class:
        return orig_class
    source = _source_of_module.get(orig_class.__module__)
    if source is None:
        module = sys.modules[orig_class.__module__]
        try:
            source = inspect.getsource(module)
        except (OSError, TypeError) as error:
            raise OSError(
                f"{orig_class.__qualname__} cannot be persistent: its module {orig_class.__module__!r} has no source"
            ) from error
        _module_of_source[source] = module
    _source_of_class[orig_class] = _one_text.setdefault(source, source)

    construct = orig_class.__init__  # type: ignore[misc]

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        # Copied first: the constructor may change what it is given.
        called_with = copy.deepcopy((args, kwargs))
        construct(self, *args, **kwargs)
        # Of several persistent constructors along the inheritance, the outermost one writes last.
        self._init_args, self._init_kwargs = called_with

    attributes = {
        "__init__": init,
        "__reduce__": _reduce,
        "__copy__": _copy,
        "__deepcopy__": _deepcopy,
        "init_args": property(_init_args, doc="Positional arguments of the constructor."),
        "init_kwargs": property(_init_kwargs, doc="Keyword arguments of the constructor."),
    }
    for name, value in attributes.items():
        if name not in ("__copy__", "__deepcopy__") or not hasattr(orig_class, name):  # A class may have its own.
            setattr(orig_class, name, value)
    return orig_class


def is_persistent(obj: object) -> bool:
    """Return whether `obj` is a class that `persistent_class` decorated, or an instance of one."""
    return (obj if isinstance(obj, type) else type(obj)) in _source_of_class


def import_hook(hook: _Hook) -> _Hook:
    """Decorator: `hook` is called for every persistent object that is unpickled, before its source runs.

    The hook gets the object's `type`, `version`, `module_src`, `class_name` and `state` as an `EasyDict`, and returns
    them, changed or not; `meta.state.z_dim` is an item of the state. Hooks run in the order in which they were added.
    """
    _import_hooks.append(hook)
    return hook


def _init_args(self: Any) -> tuple[Any, ...]:
    return copy.deepcopy(self._init_args)


def _init_kwargs(self: Any) -> dnnlib.EasyDict:
    return dnnlib.EasyDict(copy.deepcopy(self._init_kwargs))


def _state_of(self: Any) -> Any:
    cls = type(self)
    # Since Python 3.11 every object has a __getstate__; only one that a class wrote itself is meant.
    own_getstate = getattr(cls, "__getstate__", None) is not getattr(object, "__getstate__", None)
    return self.__getstate__() if own_getstate else self.__dict__


def _make(cls: Any, state: Any) -> Any:
    obj = cls.__new__(cls)
    _set_state(obj, state)
    return obj


def _set_state(obj: Any, state: Any) -> None:
    if hasattr(obj, "__setstate__"):
        obj.__setstate__(state)
    elif state is not None:
        vars(obj).update(state)


# Copies are made without pickling, so that they may hold what cannot be pickled: hooks, ScriptModules.


def _copy(self: Any) -> Any:
    state = _state_of(self)
    return _make(type(self), dict(state) if state is self.__dict__ else state)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    cls: Any = type(self)
    twin = memo[id(self)] = cls.__new__(cls)
    _set_state(twin, copy.deepcopy(_state_of(self), memo))
    return twin


def _reduce(self: Any) -> tuple[Callable[[Mapping[str, Any]], Any], tuple[dict[str, Any]]]:
    cls = type(self)
    if cls not in _source_of_class:
        raise pickle.PicklingError(
            f"{cls.__qualname__} derives from a persistent class: decorate it with persistent_class too"
        )
    state = _state_of(self)
    _check_picklable(cls, state)
    meta = {
        "type": "class",
        "version": FORMAT_VERSION,
        "module_src": _source_of_class[cls],
        "class_name": cls.__name__,
        "state": state,
    }
    return _reconstruct_persistent_obj, (meta,)


class _Checker(pickle.Pickler):
    """Pickler to nowhere that skips objects that are picklable for sure, or are checked themselves later."""

    def __init__(self) -> None:
        nowhere: Any = types.SimpleNamespace(write=len)
        super().__init__(nowhere, protocol=pickle.HIGHEST_PROTOCOL)

    def persistent_id(self, obj: Any) -> str | None:
        instance = not isinstance(obj, type)
        return "passed over" if instance and (isinstance(obj, torch.Tensor) or is_persistent(obj)) else None


def _check_picklable(cls: type, state: Any) -> None:
    """Name the attribute that cannot be pickled, which errors from inside pickle do not."""
    for name, value in state.items() if isinstance(state, dict) else [("__getstate__()", state)]:
        try:
            _Checker().dump(value)
        except Exception as error:
            raise pickle.PicklingError(f"{cls.__qualname__}.{name} cannot be pickled: {error}") from error


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> Any:
    """Make the object that a pickle describes.

    If a module with the same source has been imported, the object is an instance of that module's class. Otherwise the
    source in the pickle is executed.

    Raises:
        pickle.UnpicklingError: `meta` has another format, or the source does not define the class.
        TypeError: An import hook returns something other than a dict.
    """
    described = dnnlib.EasyDict(meta)
    if _import_hooks:
        described = _hooked(described)
    kind, version = described.get("type"), described.get("version")
    if kind != "class" or version != FORMAT_VERSION:
        raise pickle.UnpicklingError(
            f"persistent objects of type 'class' and version {FORMAT_VERSION} can be read, "
            f"but this one is of type {kind!r} and version {version!r}"
        )
    cls: Any = _imported_class(described.module_src, described.class_name)
    if cls is None:
        cls = vars(_execute(described.module_src)).get(described.class_name)
    if not isinstance(cls, type):
        raise pickle.UnpicklingError(f"the embedded source defines no class {described.class_name!r}")
    return _make(persistent_class(cls), described.state)


def _hooked(described: dnnlib.EasyDict) -> dnnlib.EasyDict:
    """Let all import hooks change a description; they can read items of its state as attributes."""
    plain = type(described.get("state")) is dict
    if plain:
        described.state = dnnlib.EasyDict(described.state)
    for hook in _import_hooks:
        changed = hook(described)
        if not isinstance(changed, Mapping):
            raise TypeError(f"the import hook {hook!r} has to return the dict that it got, not {changed!r}")
        described = dnnlib.EasyDict(changed)
    if plain and type(described.state) is dnnlib.EasyDict:
        described.state = dict(described.state)
    return described


def _imported_class(source: str, name: str) -> type | None:
    """Return the persistent class of that name in an imported module with exactly this source, or None."""
    module = _module_of_source.get(source)
    if module is None or sys.modules.get(module.__name__) is not module:
        return None
    cls = vars(module).get(name)
    return cls if isinstance(cls, type) and is_persistent(cls) else None


def _execute(source: str) -> types.ModuleType:
    """Execute a source as a module named after its hash, once for each text, and return the module."""
    name = "_embedded_source_" + hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    with _executing:
        if name not in sys.modules:
            module = types.ModuleType(name)
            sys.modules[name] = module
            _source_of_module[name] = source
            try:
                # Without dont_inherit, the source would be compiled with this file's __future__ imports.
                exec(compile(source, f"<{name}>", "exec", dont_inherit=True), vars(module))
            except BaseException:
                del sys.modules[name], _source_of_module[name]
                raise
        return sys.modules[name]
