"""Hostile pickles: nothing runs, nothing is touched, memory stays bounded, and the user reads one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from refine import inspect, pickles
from refine.pickles import writer
from refine.pickles.tree import named_tensors, submodules

# A case may use this much memory: records of Python cost about a hundred bytes for one byte of file.
MEMORY_BASE, MEMORY_PER_BYTE = 24 << 20, 60


def small_bases(fixture_path) -> list[bytes]:
    """Parts of golden pickles that load in a millisecond: a mapping network, one U-Net block, a protocol-3 file."""
    ada = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    edm = pickles.load(fixture_path("edm/s6_iddpm_adm_uncond16.pkl"))
    sg3 = pickles.load(fixture_path("sg3/s2_stylegan3t_uncond32.pkl"))
    unet = submodules(edm["ema"])["model"]
    parts = [
        ({"training_set_kwargs": ada["training_set_kwargs"], "G_ema": submodules(ada["G_ema"])["mapping"]}, 4),
        ({"G_ema": submodules(ada["G_ema"])["mapping"], "G": submodules(ada["G"])["mapping"]}, 3),
        ({"ema": submodules(unet)["map_layer0"], "loss_fn": edm["loss_fn"]}, 4),
        ({"G_ema": submodules(submodules(sg3["G_ema"])["synthesis"])["input"]}, 5),
    ]
    return [dumped(value, protocol) for value, protocol in parts]


def dumped(value, protocol=4) -> bytes:
    file = io.BytesIO()
    writer.dump(value, file, protocol)
    return file.getvalue()


@pytest.fixture(scope="module")
def check(watching, tmp_path_factory, fixture_path):
    """`check(data)` gives a pickle to the command line and returns whether it was accepted."""
    path = tmp_path_factory.mktemp("hostile") / "case.pkl"
    runner = CliRunner()

    def run(data: bytes) -> bool:
        path.write_bytes(data)
        with watching(path) as watch:
            result = runner.invoke(inspect.main, [str(path)])
        assert not watch.events, watch.events
        assert watch.peak_bytes < MEMORY_BASE + MEMORY_PER_BYTE * len(data), watch.peak_bytes
        assert result.exit_code in (0, 2), (result.output, result.exception)
        if result.exit_code == 2:
            assert result.stdout == ""
            assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1, result.stderr
            assert str(path) in result.stderr and "Traceback" not in result.stderr
            assert len(result.stderr) < 1000
        return result.exit_code == 0

    # Whatever is imported lazily on the ordinary way is imported before anything is watched.
    for name in ("sg2ada/b_cond16.pkl", "edm/s2_edm_adm_cond16.pkl", "sg3/s2_stylegan3t_uncond32.pkl"):
        assert runner.invoke(inspect.main, [str(fixture_path(name))]).exit_code == 0
    path.write_bytes(b"")
    runner.invoke(inspect.main, [str(path)])
    return run


# -- the harness itself ----------------------------------------------------------------------------------


class Call:
    """Pickles to a call, as every gadget does."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("gadget", "event"),
    [
        (Call(os.system, "true"), "os.system"),
        (Call(eval, "1 + 1"), "compile"),
        (Call(exec, "x = 1"), "compile"),
        (Call(__import__, "this_module_does_not_exist"), "import"),
        (Call(open, os.devnull), "open"),
        (Call(subprocess.check_output, ["true"]), "subprocess.Popen"),
        (Call(os.mkdir, "/nonexistent/folder"), "os.mkdir"),
    ],
)
def test_harness_notices_code_that_runs(gadget, event, watching):
    data = pickle.dumps(gadget)
    with watching("none") as watch, contextlib.suppress(Exception):
        pickle.loads(data)
    assert event in {name for name, _ in watch.events}


def test_harness_notices_memory(watching):
    with watching("none") as watch:
        pickle.loads(b"\x80\x04Nr" + struct.pack("<I", 1 << 23) + b".")
    assert watch.peak_bytes > 100 << 20  # nine bytes of pickle


# -- gadgets ---------------------------------------------------------------------------------------------

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


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


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


def as_root(body: bytes) -> bytes:
    return b"\x80\x04" + body + pickle.STOP


def as_entry(body: bytes, base: bytes) -> bytes:
    """The gadget as a further entry of a good pickle: before its STOP stands the root dict."""
    return base[:-1] + text("extra") + body + pickle.SETITEM + pickle.STOP


def without_frames(data: bytes) -> bytes:
    """The same pickle in one piece, so that bytes can be added at its end."""
    out, last = [], None
    for opcode, _, position in pickletools.genops(data):
        if last is not None and last[0] != "FRAME":
            out.append(data[last[1] : position])
        last = (opcode.name, position)
    return b"".join(out) + data[last[1] :]


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


# -- exhaustion ------------------------------------------------------------------------------------------


def exhaustion_cases() -> dict[str, bytes]:
    many = 300_000
    cases = {
        "memo": pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1),
        "memo, small": pickle.NONE + pickle.BINPUT + b"\xff",
        "memo never written": pickle.LONG_BINGET + struct.pack("<I", 1 << 20),
        "deep tuples": pickle.EMPTY_TUPLE + pickle.TUPLE1 * many,
        "deep tuple as a key": pickle.EMPTY_DICT
        + pickle.EMPTY_TUPLE
        + pickle.TUPLE1 * 100
        + pickle.NONE
        + pickle.SETITEM,
        "deep lists": pickle.EMPTY_LIST * many + pickle.APPEND * (many - 1),
        "deep marks": pickle.MARK * many,
        "deep dicts": (pickle.EMPTY_DICT + text("k")) * 1000 + pickle.NONE + pickle.SETITEM * 1000,
        "many sets": pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_SET * many + pickle.APPENDS,
        "many dicts": pickle.EMPTY_LIST + pickle.MARK + pickle.EMPTY_DICT * many + pickle.APPENDS,
        "unhashable key": pickle.EMPTY_DICT + pickle.EMPTY_LIST + pickle.NONE + pickle.SETITEM,
        "colliding keys": pickle.EMPTY_DICT
        + b"".join(
            pickle.LONG1 + bytes([16]) + (k * (2**61 - 1)).to_bytes(16, "little") + pickle.NONE + pickle.SETITEM
            for k in range(1, 2000)
        ),
        # Hashing it would visit 2^60 tuples.
        "doubling tuples as a key": pickle.MARK
        + pickle.EMPTY_TUPLE
        + pickle.MEMOIZE
        + b"".join(2 * (pickle.BINGET + bytes([n])) + pickle.TUPLE2 + pickle.MEMOIZE for n in range(60))
        + pickle.EMPTY_DICT
        + pickle.BINGET
        + bytes([60])
        + pickle.NONE
        + pickle.SETITEM
        + pickle.TUPLE,
        "itself": pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\x00" + pickle.APPEND,
        "itself in a dict": pickle.EMPTY_DICT + pickle.MEMOIZE + text("k") + pickle.BINGET + b"\x00" + pickle.SETITEM,
        "frame": pickle.FRAME + struct.pack("<Q", 1 << 30) + pickle.NONE,
        "frame of 2^63": pickle.FRAME + struct.pack("<Q", 1 << 63) + pickle.NONE,
        "no value": pickle.REDUCE,
        "two values": pickle.NONE + pickle.NONE,
        "open mark": pickle.NONE + pickle.MARK,
    }
    declared = {"string": pickle.BINUNICODE8, "bytes": pickle.BINBYTES8, "bytearray": pickle.BYTEARRAY8}
    for name, opcode in declared.items():
        cases[f"1 GB {name} in 1 KB"] = opcode + struct.pack("<Q", 1 << 30) + b"x" * 1000
        cases[f"2^64 - 1 {name}"] = opcode + struct.pack("<Q", 2**64 - 1) + b"x" * 1000
    cases["4 GB bytes"] = pickle.BINBYTES + struct.pack("<I", 2**32 - 1)
    cases["4 GB string"] = pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)
    laughs = pickle.EMPTY_LIST + pickle.MEMOIZE
    for level in range(100):
        get = pickle.BINGET + bytes([level])
        laughs += pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.MARK + get * 10 + pickle.APPENDS
    cases["billion laughs"] = pickle.MARK + laughs + pickle.TUPLE
    return cases


@pytest.mark.parametrize("name", exhaustion_cases())
def test_exhaustion(name, check, fixture_path):
    body = exhaustion_cases()[name]
    assert not check(as_root(body))
    if pickle.BINGET not in body:  # else its memo numbers mean something else within another pickle
        assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))


def nested_laughs(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value] * 10
    return value


def test_billion_laughs_in_settings(check, fixture_path):
    """Well-formed and small in memory; only what expands it could be exhausted."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    mapping = submodules(pkl["G_ema"])["mapping"]
    mapping.attributes["_init_kwargs"]["num_layers"] = nested_laughs(60)
    assert not check(dumped({"G_ema": mapping}))
    assert not check(dumped({"G_ema": pkl["G_ema"]})) or True  # inner settings are not used; must only end
    plain = {"G_ema": submodules(pkl["G"])["mapping"], "training_set_kwargs": {"path": nested_laughs(60)}}
    assert check(dumped(plain))  # shown as unreadable


def test_billion_laughs_in_modules(check, fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    child = submodules(pkl["G_ema"])["mapping"]
    for _ in range(12):
        parent = writer.unshared(child)
        parent.attributes["_modules"] = {f"m{i}": child for i in range(8)}
        child = parent
    assert not check(dumped({"G_ema": child}))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_layers", 10**9),
        ("num_layers", -1),
        ("num_layers", 2.5),
        ("num_layers", "8"),
        ("num_layers", None),
        ("num_layers", [1] * 5000),
        ("w_avg_beta", "x"),
        ("lr_multiplier", 0),
        ("lr_multiplier", float("nan")),
        ("layer_features", 10**12),
        ("layer_features", -5),
        ("embed_features", 10**8),
        ("activation", "__class__"),
        ("unknown_option", 1),
    ],
)
def test_constructor_arguments_of_a_generator(argument, value, check, fixture_path):
    """They reach Refine's own constructors, so they must not be able to keep one busy or break it."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pkl["G_ema"].attributes["_init_kwargs"]["mapping_kwargs"][argument] = value
    assert check(dumped({"G_ema": pkl["G_ema"]}))  # inspect says that it is not rebuilt, and why
    assert_load_gan_ends_in_a_sentence(dumped({"G_ema": pkl["G_ema"]}))


@pytest.mark.parametrize("argument", ["z_dim", "w_dim", "c_dim", "img_resolution", "img_channels"])
@pytest.mark.parametrize("value", [0, -1, 3, 2**40, 1e300, float("nan"), float("inf"), True, "64", None, [4], {}])
def test_sizes_of_a_generator(argument, value, fixture_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    if value == pkl["G_ema"].init_kwargs[argument]:
        pytest.skip("is the right value")
    pkl["G_ema"].attributes["_init_kwargs"][argument] = value
    assert_load_gan_ends_in_a_sentence(dumped({"G_ema": pkl["G_ema"]}))


@pytest.mark.parametrize(
    "argument", ["img_resolution", "img_channels", "model_channels", "channel_mult", "num_blocks", "M"]
)
@pytest.mark.parametrize("value", [0, -1, 2**40, 1e300, float("nan"), "64", None, [10**9] * 3, [], {}])
def test_sizes_of_a_denoiser(argument, value, fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("edm/s6_iddpm_adm_uncond16.pkl"))
    pkl["ema"].attributes["_init_kwargs"][argument] = value
    path = tmp_path / "ema.pkl"
    path.write_bytes(dumped({"ema": pkl["ema"]}))
    from refine import load_teacher

    with pytest.raises(pickles.PickleError, match=r"ema\.pkl"):
        load_teacher(str(path))


def assert_load_gan_ends_in_a_sentence(data: bytes) -> None:
    import tempfile

    from refine import load_gan

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gan.pkl")
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(pickles.PickleError, match=r"gan\.pkl"):
            load_gan(path)


# -- tensors ---------------------------------------------------------------------------------------------


def storage_archive(*, magic=0x1950A86A20F9469CFC6C, version=1001, system=None, pid=None, keys=None, numel=4, raw=None):
    """A torch.save archive of the old kind, with any of its parts replaced."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}} if system is None else system
    pid = ("storage", torch.FloatStorage, "0", "cpu", numel, None) if pid is None else pid

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return pid if obj is Pickler else None

    file = io.BytesIO()
    for value in (magic, version, system):
        pickle.dump(value, file, protocol=2)
    Pickler(file, protocol=2).dump(Pickler)
    pickle.dump(["0"] if keys is None else keys, file, protocol=2)
    file.write(struct.pack("<q", numel) + b"\0" * 4 * 4 if raw is None else raw)
    return file.getvalue()


def network_with_storage(archive: bytes, tensor_args: bytes | None = None) -> bytes:
    """A pickle whose one network has one buffer on that storage."""
    from torch_utils.persistence import _reconstruct_persistent_obj

    class Blob:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (archive,)

    class Buffer:
        def __reduce__(self):
            args = (Blob(), 0, (2, 2), (2, 1), False, {}) if tensor_args is None else (Blob(), *tensor_args)
            return torch._utils._rebuild_tensor_v2, args

    class Module:
        def __reduce__(self):
            state = {"_parameters": {}, "_buffers": {"x": Buffer()}, "_modules": {}}
            meta = {"type": "class", "version": 6, "module_src": "", "class_name": "M", "state": state}
            return _reconstruct_persistent_obj, (meta,)

    return pickle.dumps({"G_ema": Module()}, protocol=4)


def test_good_archive_is_accepted(check):
    assert check(network_with_storage(storage_archive()))


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"x" * 100,
        storage_archive(magic=1),
        storage_archive(version=1002),
        storage_archive(system={}),
        storage_archive(system={"little_endian": False}),
        storage_archive(system=[]),
        storage_archive(pid=("module", torch.FloatStorage, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 4, ("0", 0, 4))),
        storage_archive(pid=("storage", "FloatStorage.x", "0", "cpu", 4, None)),
        storage_archive(pid=("storage", eval, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", os.system, "0", "cpu", 4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 2**60, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", -4, None)),
        storage_archive(pid=("storage", torch.FloatStorage, "0", "cpu", 4.0, None)),
        storage_archive(pid=("storage", torch.FloatStorage)),
        storage_archive(keys=["1"]),
        storage_archive(keys=[]),
        storage_archive(keys=Call(os.system, "true")),
        storage_archive(system=Call(os.system, "true")),
        storage_archive(magic=Call(eval, "1")),
        storage_archive(raw=b""),
        storage_archive(raw=struct.pack("<q", 4) + b"\0" * 15),
        storage_archive(raw=struct.pack("<q", 4) + b"\0" * 17),
        storage_archive(raw=struct.pack("<q", -1) + b"\0" * 16),
        storage_archive(raw=struct.pack("<q", 2**62) + b"\0" * 16),
        storage_archive(numel=2**62, raw=struct.pack("<q", 2**62) + b"\0" * 16),
        storage_archive()[:50],
        b"\x80\x02Nr\xff\xff\xff\x7f." * 5,
    ],
)
def test_forged_archives(archive, check):
    assert not check(network_with_storage(archive))


@pytest.mark.parametrize(
    "tensor_args",
    [
        (1, (2, 2), (2, 1), False, {}),
        (0, (3, 2), (2, 1), False, {}),
        (0, (2, 2), (4, 1), False, {}),
        (0, (5,), (0,), False, {}),  # within the storage, yet larger than it
        (0, (10**9, 10**9), (0, 0), False, {}),
        (-1, (2,), (1,), False, {}),
        (0, (-1,), (1,), False, {}),
        (3, (4,), (-1,), False, {}),
        (0, (2,), (1, 1), False, {}),
        (0, (2**63,), (1,), False, {}),
        (0, (True, 2), (1, 1), False, {}),
        (0, (2.0,), (1,), False, {}),
        (0, [2], [1], False, {}),
        (0, (1,) * 17, (1,) * 17, False, {}),
        (0, (2,), (1,), False, {"hook": 1}),
        (0, (2,), (1,)),
        (),
    ],
)
def test_views_that_do_not_fit(tensor_args, check):
    assert not check(network_with_storage(storage_archive(), tensor_args))


# -- mutations -------------------------------------------------------------------------------------------

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


def fuzz(check, bases: list[bytes], num_cases: int, seed: int) -> int:
    """Runs `num_cases` mutations and returns how many of them were still accepted."""
    positions = [[position for _, _, position in pickletools.genops(base)] for base in bases]
    num_accepted = 0
    for case in range(num_cases):
        rng = random.Random(f"{seed}:{case}")
        number = case % len(bases)
        num_accepted += check(mutated(bases[number], rng, positions[number]))
    return num_accepted


def test_mutated_parts_of_golden_pickles(check, fixture_path):
    num_cases = 4500
    num_accepted = fuzz(check, small_bases(fixture_path), num_cases, seed=1)
    assert 0 < num_accepted < num_cases / 2  # the mutations bite, and some leave a good pickle


@pytest.mark.parametrize("name", ["sg2ada/d_gray16.pkl", "edm/s6_iddpm_adm_uncond16.pkl"])
def test_mutated_golden_pickles(name, check, fixture_path):
    fuzz(check, [fixture_path(name).read_bytes()], 60, seed=2)


def test_truncated_golden_pickles(check, fixture_path):
    data = fixture_path("edm/s6_iddpm_adm_uncond16.pkl").read_bytes()
    rng = random.Random(3)
    for length in [1, 2, 3, 4, 10, 11, len(data) - 1, *(rng.randrange(len(data)) for _ in range(100))]:
        assert not check(data[:length])


@pytest.mark.slow
def test_long_fuzzing(check, fixture_path):
    fuzz(check, small_bases(fixture_path), 30_000, seed=4)
    for name in ("sg2ada/b_cond16.oldstyle.pkl", "sg3/s1_stylegan2_uncond32.pkl", "edm/s4_sid_ddpmpp_cond16.pkl"):
        fuzz(check, [fixture_path(name).read_bytes()], 300, seed=5)


# -- in a process of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["memo", "1 GB bytes in 1 KB", "many sets", "deep tuples"])
def test_real_process_with_little_memory(case, tmp_path):
    """The command itself, with 3 GB of address space: enough for torch, not for what the pickle asks."""
    path = tmp_path / "case.pkl"
    path.write_bytes(as_root(exhaustion_cases()[case]))
    code = "import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code += (
        f"import sys; sys.argv = ['inspect', {str(path)!r}]; runpy.run_module('refine.inspect', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_forged_keys_that_are_no_text(check, fixture_path):
    """Names of tensors and settings that are numbers, which json and the checkers must survive."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    mapping = submodules(pkl["G_ema"])["mapping"]
    mapping.attributes["_buffers"][7] = next(iter(named_tensors(mapping).values()))
    mapping.attributes["_init_kwargs"][None] = 1
    mapping.attributes["_modules"][3] = submodules(pkl["G"])["mapping"]
    check(dumped({"G_ema": mapping, 5: mapping}))
