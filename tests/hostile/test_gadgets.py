"""Pickles that name what could run: nothing does, nothing is touched, and the user reads one sentence."""

from __future__ import annotations

import pickle
import struct

import pytest
from forge import as_entry, as_root, small_bases, text, without_frames

TARGETS = [
    *(("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"), ("os", "remove")),
    *(("builtins", "eval"), ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__")),
    *(("builtins", "open"), ("builtins", "compile"), ("__builtin__", "eval"), ("builtins", "globals")),
    *(("subprocess", "Popen"), ("subprocess", "check_output"), ("importlib", "import_module")),
    *(
        ("runpy", "run_path"),
        ("pickle", "loads"),
        ("_pickle", "loads"),
        ("torch", "load"),
        ("torch.serialization", "load"),
    ),
    *(("torch.jit", "load"), ("torch.hub", "load"), ("numpy", "load"), ("numpy.core.multiarray", "fromfile")),
    *(("shutil", "rmtree"), ("socket", "socket"), ("webbrowser", "open"), ("code", "InteractiveInterpreter")),
    *(("functools", "partial"), ("operator", "attrgetter"), ("operator", "methodcaller"), ("types", "FunctionType")),
    *(("torch_utils.persistence", "_src_to_module"), ("torch_utils.persistence", "persistent_class")),
    *(("dnnlib.util", "call_func_by_name"), ("dnnlib.util", "open_url"), ("dnnlib.util", "get_obj_by_name")),
    *(("collections", "OrderedDict.__class__"), ("builtins", "set.__class__"), ("torch._utils", "os.system")),
    *(("torch.storage", "os.system"), ("torch.storage", "_load_from_bytes.__globals__"), ("", ""), ("os\nsystem", "x")),
    *(("refine.pickles.trusted", "instantiate"), ("refine.pickles.records", "Inert"), ("copyreg", "_reconstructor")),
    *(("\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "x"), ("o" * 5000, "s" * 5000)),
]


def named(module: str, name: str, *, stack: bool) -> bytes:
    if stack:
        return text(module) + text(name) + pickle.STACK_GLOBAL
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("utf-8", "surrogatepass")


def gadgets(module: str, name: str) -> list[bytes]:
    """One target called in every way that a pickle has (without protocol and STOP)."""
    forms = []
    for stack in (False, True):
        target = named(module, name, stack=stack)
        args = text("echo hit > /tmp/refine_was_here") + pickle.TUPLE1
        state = pickle.EMPTY_DICT + text("__class__") + text("x") + pickle.SETITEM
        forms += [
            target,
            target + args + pickle.REDUCE,
            target + args + pickle.NEWOBJ,
            target + args + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
            target + state + pickle.BUILD,
            target + pickle.EMPTY_TUPLE + pickle.REDUCE + state + pickle.BUILD,
            pickle.MARK + target + args + pickle.OBJ,
            target + args + pickle.REDUCE + pickle.MARK + text("a") + text("b") + pickle.SETITEMS,
            target + args + pickle.REDUCE + pickle.MARK + text("a") + pickle.APPENDS,
        ]
    forms.append(pickle.MARK + text("x") + pickle.INST + f"{module}\n{name}\n".encode("utf-8", "surrogatepass"))
    return forms


def test_gadgets(check, fixture_path):
    base = without_frames(small_bases(fixture_path)[0])
    assert check(base)
    num_cases = 0
    for module, name in TARGETS:
        for body in gadgets(module, name):
            assert not check(as_root(body))
            assert not check(as_entry(body, base))
            num_cases += 2
    assert num_cases > 800


# The opcodes that call nothing by themselves but reach registries, buffers or the caller.
@pytest.mark.parametrize(
    "body",
    [
        pickle.EXT1 + b"\x01",
        pickle.EXT2 + b"\x01\x00",
        pickle.EXT4 + b"\x01\x00\x00\x00",
        pickle.PERSID + b"x\n",
        text("x") + pickle.BINPERSID,
        pickle.NEXT_BUFFER,
        pickle.NEXT_BUFFER + pickle.READONLY_BUFFER,
        pickle.NONE + pickle.DUP,
        pickle.INT + b"1" * 100_000 + b"\n",
        pickle.LONG + b"9" * 100_000 + b"L\n",
        pickle.LONG4 + struct.pack("<i", 100_000) + b"\xff" * 100_000,
        pickle.STRING + b"'" + b"x" * 1000 + b"'\n",
        pickle.UNICODE + b"x" * 1000 + b"\n",
        pickle.GET + b"0\n",
        pickle.FLOAT + b"1e309\n",
        pickle.MARK + pickle.FROZENSET,
        b"\x00",
        b"\xff",
    ],
)
def test_opcodes_that_no_network_pickle_needs(body, check, fixture_path):
    assert not check(as_root(body))
    assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))
