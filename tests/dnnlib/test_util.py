"""`EasyDict`, and objects found by their names."""

from __future__ import annotations

import collections
import copy
import os.path
import pickle
import pickletools
from pathlib import Path

import pytest

import dnnlib
from dnnlib import util


def test_easy_dict_is_a_dict_with_attributes() -> None:
    d = dnnlib.EasyDict({"a": 1}, b=2)
    d.c = 3
    d["d"] = 4
    assert (d.a, d["b"], d["c"], d.d) == (1, 2, 3, 4)
    assert d == {"a": 1, "b": 2, "c": 3, "d": 4} and isinstance(d, dict)
    del d.a
    assert "a" not in d and not hasattr(d, "a") and getattr(d, "a", 5) == 5
    with pytest.raises(AttributeError, match="no item 'a'"):
        _ = d.a
    with pytest.raises(AttributeError, match="no item 'a'"):
        del d.a
    with pytest.raises(KeyError):
        d["a"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_easy_dict_pickles_under_its_name_with_its_items_only(protocol: int) -> None:
    d = dnnlib.EasyDict(a=dnnlib.EasyDict(b=1))
    pickled = pickle.dumps(d, protocol=protocol)
    for again in (pickle.loads(pickled), copy.deepcopy(d)):
        assert again == d and type(again) is type(again.a) is util.EasyDict
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(pickled)]
    assert opcodes.count("NEWOBJ") == 2 and "BUILD" not in opcodes
    assert {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)} <= {
        *("a", "b", "dnnlib.util", "EasyDict", "dnnlib.util EasyDict")
    }


def test_objects_are_found_by_name() -> None:
    assert util.get_obj_by_name("collections.OrderedDict.fromkeys") == collections.OrderedDict.fromkeys
    assert util.get_obj_by_name("os.path.join") is os.path.join
    assert util.get_obj_by_name("dnnlib.util") is util
    assert util.call_func_by_name("a", "b", func_name="os.path.join") == os.path.join("a", "b")
    assert util.construct_class_by_name([1], class_name="collections.deque", maxlen=3) == collections.deque([1])


@pytest.mark.parametrize(
    "name", ["no_such_module.x", "no_such_module", "os.no.such", "dnnlib.util.no", "", "os.", ".."]
)
def test_name_of_nothing(name: str) -> None:
    with pytest.raises(ImportError, match=repr(name).replace(".", r"\.")):
        util.get_obj_by_name(name)


def test_error_inside_a_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("import no_such_module_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        util.get_obj_by_name("breaks_on_import.f")
