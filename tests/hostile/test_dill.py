"""Pickles of dill, whose records of functions and foreign networks are passed over: nothing of them ever runs."""

from __future__ import annotations

import os
import pickle
import pickletools
import random

import pytest
from forge import as_entry, as_root, dumped, small_bases, text, without_frames
from gadgets import TARGETS, gadgets, mutated, named

from refine import load_generator, pickles
from refine.pickles import PickleError, records
from refine.pickles.tree import named_tensors
from refine.pickles.unpickler import passed_over

XL = "sgxl/s1_sgxl_stem_cond16.pkl"
FUNCTION = named("dill._dill", "_create_function", stack=True)
GETATTR = named("builtins", "getattr", stack=True)


def called(target: bytes, *args: bytes) -> bytes:
    return target + pickle.MARK + b"".join(args) + pickle.TUPLE + pickle.REDUCE


@pytest.fixture(scope="module")
def base(fixture_path) -> bytes:
    """A small pickle with a function of dill in it."""
    return as_entry(called(FUNCTION, text("code")), without_frames(small_bases(fixture_path)[0]))


def test_the_real_one(check, fixture_path, base):
    assert check(fixture_path(XL).read_bytes()) and check(base)


def test_gadgets(check, base):
    """Names that no such file needs are refused, in every form; the others become records."""
    num_refused = 0
    for module, name in TARGETS:
        for form, body in enumerate(gadgets(module, name)):
            accepted = check(as_entry(body, base), memory=form % 7 == 0)
            assert not accepted or passed_over(module, name) is not None, (module, name)
            num_refused += not accepted
    assert num_refused > 400


def test_what_dill_writes_is_taken_and_nothing_runs(check, base):
    """Calls of what calls return, closures that refer to themselves, values that are made and discarded."""
    module = named("dill", "_dill", stack=True)
    setter = called(GETATTR, module, text("_setattr"), named("builtins", "setattr", stack=True))
    cell = called(named("dill._dill", "_create_cell", stack=True), text("x"))
    globals_ = pickle.EMPTY_DICT + text("f") + called(FUNCTION, text("y")) + pickle.SETITEM
    for body in (
        called(setter, cell, text("cell_contents"), text("1")),
        cell + called(setter, cell, text("cell_contents"), text("1")) + pickle.POP,
        globals_ + pickle.MARK + text("a") + text("b") + pickle.POP_MARK,
        called(FUNCTION, text("c")) + pickle.EMPTY_DICT + pickle.EMPTY_DICT + pickle.TUPLE2 + pickle.BUILD,
        called(named("timm.models.x", "Y", stack=True)) + text("weights") + pickle.APPEND,
        named("timm.models.x", "Y", stack=True) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + text("s") + pickle.BUILD,
    ):
        assert check(as_entry(body, base))
    # a function whose globals contain it
    index = sum(opcode.name == "MEMOIZE" for opcode, _, _ in pickletools.genops(base))
    own = called(FUNCTION, text("c")) + pickle.MEMOIZE + text("self")
    assert check(as_entry(own + pickle.LONG_BINGET + index.to_bytes(4, "little") + pickle.SETITEM, base))


@pytest.mark.parametrize(
    "body",
    [
        text("x") + pickle.POP + pickle.POP,  # the second takes the key
        pickle.POP_MARK,
        pickle.MARK + pickle.POP + text("x"),  # Python's POP takes the mark
        called(FUNCTION) + text("x") + pickle.EMPTY_DICT + pickle.SETITEM + pickle.POP,
        pickle.EMPTY_DICT + called(FUNCTION) + text("x") + pickle.SETITEM,  # a record as a key
        called(named("os", "system", stack=True), text("echo hit > /tmp/refine_was_here")),
        called(GETATTR, named("os", "path", stack=True), text("os")),
        called(FUNCTION, *[called(FUNCTION)] * 3) * 200 + pickle.TUPLE1,
        called(named("dill._dill", "_create_array", stack=True), text("x")),
    ],
)
def test_impossible_forms(body, check, base):
    assert not check(as_entry(body, base))


@pytest.mark.parametrize(
    "body", [text("x") + text("y") + pickle.POP, pickle.MARK + text("x") + pickle.POP_MARK + text("y")]
)
def test_only_dill_discards(body, check, fixture_path, base):
    assert check(as_entry(body, base))
    assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))
    assert not check(as_root(body))


def test_names_that_are_passed_over_are_so_only_for_dill(check, fixture_path):
    for module, name in (
        ("timm.models.vision_transformer", "Block"),
        ("builtins", "getattr"),
        ("functools", "partial"),
    ):
        body = called(named(module, name, stack=True), text("x"))
        assert not check(as_entry(body, without_frames(small_bases(fixture_path)[0])))


def test_a_record_in_place_of_a_network_or_a_tensor(fixture_path, tmp_path):
    path = tmp_path / "odd.pkl"
    path.write_bytes(as_root(pickle.EMPTY_DICT + text("G_ema") + called(FUNCTION) + pickle.SETITEM))
    with pytest.raises(PickleError, match=r"odd\.pkl"):
        load_generator(str(path))
    pkl = pickles.load(fixture_path(XL))
    mapping = pickles.submodules(pkl["G_ema"])["mapping"]
    mapping.attributes["_buffers"]["w_avg"] = records.Opaque("x")
    with pytest.raises(PickleError, match="w_avg"):
        named_tensors(pkl["G_ema"])


def test_deep_records_do_not_overflow(check, base):
    body = called(FUNCTION)
    for _ in range(10_000):
        body = called(FUNCTION, body) if len(body) < 3000 else body
    assert check(as_entry(body, base)) in (True, False)


def test_random_changes(check, fixture_path):
    """Whatever becomes of a file, one sentence or a description results."""
    data, rng = fixture_path(XL).read_bytes(), random.Random(3)
    start = data.index(b"pg_modules")
    positions = list(range(start, len(data)))
    for _ in range(25):
        check(mutated(data, rng, positions))


def test_writing_copies_and_refuses_what_it_cannot_copy(fixture_path, tmp_path, caplog):
    pkl = pickles.load(fixture_path(XL))
    with pytest.raises(PickleError, match="copied"):
        dumped(pkl["D"])
    # The average alone can be written anew, and a plain copy says what it carries.
    assert load_generator(_written(tmp_path / "ema.pkl", dumped({"G_ema": pkl["G_ema"]}))).key == "G_ema"
    pickles.save(pkl, tmp_path / "copy.pkl")
    assert (tmp_path / "copy.pkl").read_bytes() == fixture_path(XL).read_bytes()
    assert "dill._dill" in caplog.text
    # One storage under two entries, of which one is passed over.
    shared = next(iter(named_tensors(pkl["G_ema"]).values()))
    pkl["D"].list_items.append(shared)
    state = {name: tensor.read() for name, tensor in named_tensors(pkl["G_ema"]).items()}
    with pytest.raises(PickleError, match="pkl-ema"):
        pickles.save(pkl, tmp_path / "no.pkl", {"G_ema": state})
    assert not (tmp_path / "no.pkl").exists()


def _written(path, data):
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("name", [XL, "r3gan/s1_r3gan_uncond32.pkl", "sg2ada/b_cond16.pkl"])
def test_a_file_that_changes_after_it_was_opened(name, fixture_path, tmp_path):
    path = tmp_path / "mine.pkl"
    path.write_bytes(fixture_path(name).read_bytes())
    pkl = pickles.load(path)
    state = {name: tensor.read() for name, tensor in named_tensors(pkl["G_ema"]).items()}
    path.rename(tmp_path / "moved.pkl")  # its content is still there
    pickles.save(pkl, tmp_path / "a.pkl", {"G_ema": state})
    (tmp_path / "moved.pkl").unlink()
    pickles.save(pkl, tmp_path / "b.pkl", {"G_ema": state})
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes() == fixture_path(name).read_bytes()
    pkl = pickles.load(tmp_path / "a.pkl")
    with (tmp_path / "a.pkl").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(PickleError, match=r"a\.pkl has changed"):
        pickles.save(pkl, tmp_path / "c.pkl", {"G_ema": state})
    assert not (tmp_path / "c.pkl").exists()
    pkl = pickles.load(tmp_path / "b.pkl")
    with (tmp_path / "b.pkl").open("r+b") as file:  # as long as before
        file.write(b"\x80")
    os.utime(tmp_path / "b.pkl", ns=(1, 1))
    with pytest.raises(PickleError, match=r"b\.pkl has changed"):
        next(iter(named_tensors(pkl["G_ema"]).values())).read()
