"""Calls that a hostile pickle would make, and random changes of pickles."""

from __future__ import annotations

import pickle
import pickletools
import random

from forge import text

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


OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def mutated(data: bytes, rng: random.Random, positions: list[int]) -> bytes:
    """One to four changes: to bytes anywhere, or to opcodes where they stand."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        kind, at = rng.randrange(8), rng.randrange(2, max(3, len(out)))
        opcode_at = min(rng.choice(positions), len(out) - 1)
        if kind == 0:
            out[at] = rng.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[opcode_at : opcode_at + 1] = rng.choice(OPCODES)
        elif kind == 3:
            out[opcode_at:opcode_at] = rng.choice(OPCODES) + rng.randbytes(rng.randrange(5))
        elif kind == 4:
            del out[at : at + rng.choice((1, 2, 8, 100))]
        elif kind == 5:
            start = rng.randrange(len(out))
            out[at:at] = out[start : start + rng.choice((1, 4, 30, 300))]
        elif kind == 6:
            end = min(rng.choice(positions), len(out))
            out[opcode_at:opcode_at] = out[end : end + rng.randrange(1, 60)]
        else:
            del out[at:]
        if len(out) < 4:
            break
    return bytes(out)
