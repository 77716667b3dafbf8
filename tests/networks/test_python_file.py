"""Networks that a Python file makes."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from refine.errors import OptionError
from refine.networks.python_file import make_network, parse_python_spec

SOURCE = """
import torch
import neighbor

made = torch.nn.Linear(1, 2)

class Network(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, neighbor.WIDTH)

def fails():
    {}["missing"]

def network():
    return Network()
"""


def test_specs():
    spec = parse_python_spec("models/dcgan.py:load_it")
    assert spec is not None and (spec.path.as_posix(), spec.function) == ("models/dcgan.py", "load_it")
    assert str(spec) == "models/dcgan.py:load_it"
    windows = parse_python_spec(r"C:\models\gan.py:load")
    assert windows is not None and windows.function == "load" and str(windows.path).endswith("gan.py")
    for text in (None, "", "a.pkl", "https://x/a.pkl", "a.py", "a.py:", "a.py:1x", "a.py:x.y", "a.pyc:x", ".py:x"):
        assert parse_python_spec(text) is None, text


def test_function_class_and_module(tmp_path):
    (tmp_path / "own.py").write_text(SOURCE)
    (tmp_path / "neighbor.py").write_text("WIDTH = 7")
    before = list(sys.path)

    def make(name):
        return make_network(parse_python_spec(f"{tmp_path}/own.py:{name}"), "gan", trust=True)

    assert make("network").weight.shape == make("Network").weight.shape == (7, 3)
    assert make("made") is make("made")
    assert torch.equal(copy.deepcopy(make("made")).weight, make("made").weight)
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "function", "trust", "words"),
    [
        ("raise SystemExit", "load", False, ["gan=", "--trust-pickle", "executed"]),
        (None, "load", True, ["names no file"]),
        ("x = 1", "load", True, ["has no load"]),
        ("x = 1\nx = y", "load", True, ["line 2", "NameError"]),
        ("def load():\n  return 1\n)", "load", True, ["line 3", "SyntaxError"]),
        ("def load():\n    return {}['missing']", "load", True, ["line 2", "KeyError", "missing"]),
    ],
)
def test_unusable_files(tmp_path, source, function, trust, words):
    path = tmp_path / f"f{abs(hash(source))}.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(OptionError) as caught:
        make_network(parse_python_spec(f"{path}:{function}"), "gan", trust=trust)
    assert all(word in str(caught.value) for word in [*words, str(path)]), caught.value
