"""Ways through a tree of records: its modules, their tensors, everything."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.records import Inert, PersistentObject
from refine.pickles.scan import MAX_DEPTH
from refine.pickles.tensor_records import ParameterRecord, TensorRecord

MAX_NAME_CHARACTERS = 2_000_000  # of all tensors of a network; a large one needs 200,000
MAX_MODULES = 20_000  # where shared ones count each time; a large network has 1000


def _members(values: Any) -> frozenset[str]:
    """A set of names, however its protocol spells sets."""
    if isinstance(values, Inert) and len(values.args) == 1:  # builtins.set([...])
        values = values.args[0]
    return frozenset(v for v in values if isinstance(v, str)) if isinstance(values, Iterable) else frozenset()


def module_state(record: Any) -> dict[str, Any] | None:
    """The `__dict__` of a torch module's record, persistent or plain; None if the record is not a module."""
    state = record.attributes if isinstance(record, PersistentObject) else getattr(record, "state", None)
    fields = ("_parameters", "_buffers", "_modules")
    if isinstance(record, Inert) and isinstance(state, dict) and all(isinstance(state.get(f), dict) for f in fields):
        return state
    return None


def submodules(record: Any) -> dict[str, Inert]:
    """The children of a torch module's record by name, without those that are None."""
    state = module_state(record) or {"_modules": {}}
    return {name: child for name, child in state["_modules"].items() if module_state(child) is not None}


def named_tensors(record: Any, kinds: Collection[str] = ("_parameters", "_buffers")) -> dict[str, TensorRecord]:
    """Parameters and persistent buffers of a torch module's record, named and ordered as `state_dict()` does.

    Raises:
        PickleError: An entry is neither a parameter, a tensor nor None, or there are more modules than in any
            network (a module that many others share is counted, and named, each time).
    """
    found: dict[str, TensorRecord] = {}
    num_modules = num_characters = 0

    def visit(module: Any, prefix: str) -> None:
        nonlocal num_modules, num_characters
        num_modules += 1
        if num_modules > MAX_MODULES:
            raise PickleError(f"has a network of more than {MAX_MODULES} modules; refused")
        state = module_state(module)
        if state is None:
            return
        transient = _members(state.get("_non_persistent_buffers_set", ()))
        for kind in kinds:
            for name, value in state[kind].items():
                if value is None or (kind == "_buffers" and name in transient):
                    continue
                tensor = value.tensor if isinstance(value, ParameterRecord) else value
                if not isinstance(tensor, TensorRecord):
                    raise PickleError(f"has an entry {prefix}{name} that is not a tensor; it is damaged or forged")
                num_characters += len(prefix) + len(str(name))
                if num_characters > MAX_NAME_CHARACTERS:
                    raise PickleError("has a network with more tensors, or longer names, than any; refused")
                found[f"{prefix}{name}"] = tensor
        for name, child in submodules(module).items():
            visit(child, f"{prefix}{name}.")

    visit(record, "")
    return found


def children(value: Any) -> Iterator[Any]:
    """Values that a value of a record tree refers to."""
    if isinstance(value, Inert):
        yield from value.children()
    elif isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set)):
        yield from value


def walk(root: Any) -> Iterator[Any]:
    """Every container and record of a tree, each once, parents first, without recursion.

    Raises:
        PickleError: The tree is deeper than any network pickle, or refers to itself.
    """
    seen = {id(root)}
    path = [(root, children(root))]
    open_ids = {id(root)}
    yield root
    while path:
        value, remaining = path[-1]
        child = next(remaining, _END)
        if child is _END:
            path.pop()
            open_ids.discard(id(value))
        elif isinstance(child, (Inert, dict, list, tuple, set)):
            if id(child) in open_ids:
                raise PickleError("holds a value that contains itself, which no network pickle does; refused")
            if id(child) in seen:
                continue
            if len(path) > MAX_DEPTH:
                raise PickleError("nests values deeper than any network pickle; refused")
            seen.add(id(child))
            open_ids.add(id(child))
            path.append((child, children(child)))
            yield child


_END = object()
