"""`EasyDict`, which network pickles name, and classes and functions found by their dotted name."""

from __future__ import annotations

import importlib
from typing import Any


class EasyDict(dict[str, Any]):
    """A dict whose keys can also be read, set and deleted as attributes.

    Pickled as `dnnlib.util.EasyDict`, with its items and no other state.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"EasyDict has no item {name!r}") from None


def get_obj_by_name(name: str) -> Any:
    """Finds an object by its full name, such as `torch.nn.Linear` or `package.module.Class.method`.

    Raises:
        ImportError: no module can be imported from the beginning of the name, or it lacks the rest of it.
            What goes wrong inside a module that does exist is raised as it is.
    """
    parts = name.split(".")
    if not all(parts):
        raise ImportError(f"{name!r} is not a full name: it has an empty part")
    for length in range(len(parts), 0, -1):
        module_name = ".".join(parts[:length])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # This name or a package in it does not exist: its last part may be an attribute.
            if f"{module_name}.".startswith(f"{error.name}."):
                continue
            raise
        try:
            for part in parts[length:]:
                found = getattr(found, part)
        except AttributeError as error:
            raise ImportError(f"{name!r} names nothing: {error}") from error
        return found
    raise ImportError(f"{name!r} names nothing: there is no module {parts[0]!r}")


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Calls the function of that full name with the other arguments."""
    return get_obj_by_name(func_name)(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """Makes an instance of the class of that full name with the other arguments."""
    return call_func_by_name(*args, func_name=class_name, **kwargs)
