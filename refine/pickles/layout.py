"""Arrangement of networks in a file: a dict in snapshots, and what other tools make of it.

Tuning and editing tools pickle a bare network, a tuple of networks, or put the dict below a key. All are read as the
dict of a snapshot, with `G`, `G_ema`, `D`, `ema` as keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.records import InertDict, NetworkRecord
from refine.pickles.state_dict import state_dict_of
from refine.pickles.tree import module_state, submodules

STATE_DICT = "state_dict"  # key of a file's one state dict
MAX_PLACES = 20_000  # values that are looked at in search of networks
MAX_DEPTH = 5


@dataclass(frozen=True)
class Layout:
    """Arrangement of the networks of one file.

    Attributes:
        root: Networks and other entries by name.
        description: The arrangement in words, if it is not a dict of networks at the top; empty if it is.
        outer: Top-level dict of the file, if `root` lies in it below a key.
        path: Keys that lead from `outer` to `root`.
        renamed: Names in the file of entries that have another one in `root`, by the latter.
        is_snapshot: True if the file has the dict of a snapshot somewhere, and can be written as it is.
    """

    root: dict[Any, Any]
    description: str = ""
    outer: Any = None
    path: tuple[Any, ...] = ()
    renamed: dict[str, Any] = field(default_factory=dict)
    is_snapshot: bool = True

    def enclose(self, root: dict[Any, Any]) -> Any:
        """The top-level value of the file with another `root`."""
        root = like_dict(root, {self.renamed.get(key, key): item for key, item in root.items()})
        containers, value = [], self.outer
        for key in self.path:
            containers.append((value, key))
            value = value[key]
        result: Any = root
        for container, key in reversed(containers):
            if isinstance(container, dict):
                result = like_dict(container, {**container, key: result})
            else:
                result = type(container)([*container[:key], result, *container[key + 1 :]])
        return result


def like_dict(source: dict[Any, Any], items: dict[Any, Any]) -> dict[Any, Any]:
    """A dict of the type of another one."""
    if isinstance(source, InertDict):
        result: Any = type(source).__new__(type(source), *source.args)
        result.is_new_object = source.is_new_object
        result.update(items)
        return result
    return items


def arrange(value: Any) -> Layout:
    """Finds the networks of a file.

    Args:
        value: Top-level value of the file, as records.

    Raises:
        PickleError: The file has no network, or networks at several places.
    """
    if isinstance(value, dict) and any(_is_network(item) for item in value.values()):
        return _dict_layout(value)
    state_dict = state_dict_of(value)
    if state_dict is not None:
        return Layout({STATE_DICT: state_dict}, "a state dict", is_snapshot=False)
    if isinstance(value, NetworkRecord):
        return _named([value], "a bare network")
    places = _places(value)
    if not places:
        if isinstance(value, dict) and any(isinstance(item, NetworkRecord) for item in value.values()):
            return Layout(value)
        raise PickleError("contains other pickled data, but no network: give the .pkl of a StyleGAN or EDM network")
    if len(places) > 1:
        where = ", ".join(_spelled(path) for path, _ in places[:5])
        raise PickleError(f"holds networks at several places ({where}): save one of them as a file of its own")
    path, container = places[0]
    if isinstance(container, dict):
        return _dict_layout(container, value, path)
    below = f" below {_spelled(path)}" if path else ""
    return _named(list(container), f"a {type(container).__name__} of {len(container)}{below}")


def _dict_layout(root: dict[Any, Any], outer: Any = None, path: tuple[Any, ...] = ()) -> Layout:
    """A dict of networks, whose one generator or denoiser gets its usual name if nothing has it."""
    renamed: dict[str, Any] = {}
    if not any(isinstance(root.get(key), NetworkRecord) for key in ("G", "G_ema", "ema", "net")):
        for name in ("G", "ema"):
            keys = [key for key, value in root.items() if _kind(value) == name]
            averages = [key for key in keys if "ema" in str(key).lower()]
            if len(averages) == 1 and len(keys) == 2 and name == "G":
                renamed["G"] = next(key for key in keys if key not in averages)
            if len(keys) == 1 or len(averages) == 1:
                renamed["G_ema" if name == "G" else name] = (averages or keys)[0]
    names = {old: new for new, old in renamed.items()}
    parts = [f"its networks below {_spelled(path)}"] if path else []
    parts += [f"{old!s:.40} read as {new}" for new, old in renamed.items()]
    description = f"a dict with {' and '.join(parts)}" if parts else ""
    if renamed:
        root = like_dict(root, {names.get(key, key): value for key, value in root.items()})
    return Layout(root, description, outer, path, renamed)


def _places(value: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Every dict, list or tuple that holds a network, with the keys that lead to it."""
    found: list[tuple[tuple[Any, ...], Any]] = []
    level: list[tuple[tuple[Any, ...], Any]] = [((), value)] if isinstance(value, (dict, list, tuple)) else []
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[tuple[tuple[Any, ...], Any]] = []
        for path, container in level:
            items = list(container.items() if isinstance(container, dict) else enumerate(container))
            seen += len(items)
            if seen > MAX_PLACES:
                raise PickleError("holds more values than a file of networks; give the .pkl of one network")
            if any(_is_network(item) for _, item in items):
                found.append((path, container))
            below += [((*path, key), item) for key, item in items if isinstance(item, (dict, list, tuple))]
        level = below
    return found


def _is_network(value: Any) -> bool:
    return isinstance(value, NetworkRecord) and module_state(value) is not None


def _named(values: list[Any], description: str) -> Layout:
    """Values under the names that a snapshot gives them: of several generators, the last is the average."""
    generators = [i for i, value in enumerate(values) if _kind(value) == "G"]
    names = {index: "G" if place == 0 else str(index) for place, index in enumerate(generators)}
    if generators:
        names[generators[-1]] = "G_ema"
    for index, value in enumerate(values):
        kind = _kind(value)
        is_free = kind is not None and kind not in names.values()
        names.setdefault(index, kind if kind is not None and is_free else str(index))
    root = {names[index]: value for index, value in enumerate(values)}
    read_as = ", ".join(name for name in root if not name.isdecimal())
    return Layout(root, f"{description}, read as {read_as or 'a network'}", is_snapshot=False)


def _kind(value: Any) -> str | None:
    """The name that a snapshot gives to a network of this class; None for others."""
    if not isinstance(value, NetworkRecord):
        return None
    parts = submodules(value).keys()
    if value.class_name.endswith("Discriminator"):
        return "D"
    if {"mapping", "synthesis"} <= parts or value.class_name.endswith("Generator"):
        return "G"
    if value.class_name.endswith("Precond"):
        return "ema"
    return "augment_pipe" if value.class_name.startswith("Augment") else None


def _spelled(path: tuple[Any, ...]) -> str:
    return ".".join(str(key)[:40] for key in path) or "the top"
