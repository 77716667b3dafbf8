"""Our `torch_utils` and `dnnlib` can be called in every way in which those of the repositories can be."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest
import torch
from public_names import NAMES, NO_SIGNATURE, REPOSITORIES, signature

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
ENTRIES = [
    (repository, module, name, kind)
    for repository in REPOSITORIES
    for module, names in NAMES[repository].items()
    for name, kind in names.items()
]


def difference(theirs: inspect.Signature, ours: inspect.Signature) -> str | None:
    """The first way of calling `theirs` that `ours` does not take; None if there is none."""
    own = dict(ours.parameters)
    takes_any_keyword = any(p.kind is p.VAR_KEYWORD for p in own.values())
    for place, (name, parameter) in enumerate(theirs.parameters.items()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            if not any(p.kind is p.VAR_POSITIONAL for p in own.values()):
                return f"no *{name}"
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            if not takes_any_keyword:
                return f"no **{name}"
            continue
        if name in ("self", "exc_type", "exc_value", "traceback"):
            continue
        if name not in own:
            return f"no parameter {name}"
        if parameter.kind in POSITIONAL and list(own).index(name) != place:
            return f"{name} is at another place"
        if parameter.kind in POSITIONAL and own[name].kind not in POSITIONAL:
            return f"{name} cannot be given by position"
        if parameter.default != own[name].default:
            return f"{name} is {own[name].default!r} by default, {parameter.default!r} there"
    for name, parameter in own.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and name not in theirs.parameters:
            return f"{name} has to be given"
    return None


def check(kind: str, ours: Any) -> str | None:
    return difference(signature(kind), inspect.signature(ours))


@pytest.mark.parametrize(("repository", "module", "name", "kind"), ENTRIES, ids=lambda value: str(value)[:30])
def test_name_is_there_and_callable_as_there(repository: str, module: str, name: str, kind: Any) -> None:
    ours = getattr(importlib.import_module(module), name)
    if isinstance(kind, dict):
        assert isinstance(ours, type)
        for method, text in kind.items():
            assert check(text, getattr(ours, method)) is None, method
    elif kind == "class":
        assert isinstance(ours, type)
    elif kind == "module":
        assert inspect.ismodule(ours)
    elif kind == "attribute":
        assert not callable(ours)
    elif ours is torch.nan_to_num:
        x = torch.tensor([float("nan"), 1])  # a builtin has no signature: called in every way
        for y in (ours(x, 0.0, None, None), ours(input=x, nan=0.0, posinf=None, neginf=None), ours(x, out=x.clone())):
            assert y.tolist() == [0, 1]
    else:
        assert callable(ours)
        assert check(kind, ours) is None


def test_table_is_not_thin() -> None:
    assert REPOSITORIES == ("stylegan2-ada-pytorch", "stylegan3", "edm")
    assert all(sum(map(len, NAMES[repository].values())) > 40 for repository in REPOSITORIES)
    assert all(kind in NO_SIGNATURE or isinstance(kind, dict) or kind[0] == "(" for *_, kind in ENTRIES)


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ("(x, b=None)", "(x, b=None, c=3)", None),
        ("(x, **more)", "(x, y=1, **options)", None),
        ("(x)", "(*rest)", "no parameter x"),
        ("(x, y)", "(y, x)", "x is at another place"),
        ("(x, y=1)", "(x, y=2)", "y is 2 by default, 1 there"),
        ("(x)", "(x, y)", "y has to be given"),
        ("(x)", "(*, x)", "x cannot be given by position"),
        ("(*x)", "(x=1)", "no *x"),
        ("(**x)", "(x=1)", "no **x"),
    ],
)
def test_checker_notices(theirs: str, ours: str, sentence: str | None) -> None:
    assert difference(signature(theirs), signature(ours)) == sentence
