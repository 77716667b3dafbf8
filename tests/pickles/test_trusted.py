"""Embedded source runs on the user's word only, and then everything else works as for a known architecture."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import sys
import textwrap

import pytest
import torch

from refine import load_gan, networks, pickles
from refine.errors import UserError
from refine.pair.pair import load_pair
from refine.pickles import PickleError

SOURCE = """
    import collections
    import torch
    from torch_utils import persistence

    print("embedded source ran", flush=True)

    @persistence.persistent_class
    class TinyGenerator(torch.nn.Module):
        def __init__(self, z_dim, c_dim=0):
            super().__init__()
            self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, z_dim, 1
            self.img_resolution, self.img_channels = 4, 1
            self.layer = torch.nn.Linear(z_dim, 16)
            self.weights = collections.Counter(a=1)
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, z, c=None, **kwargs):
            return self.scale * self.layer(z).reshape(-1, 1, 4, 4)
"""


@pytest.fixture
def foreign_pickle(tmp_path):
    """A snapshot of an architecture that Refine does not know; its own globals are not on the allow-list either."""
    module_path = tmp_path / "foreign_networks.py"
    module_path.write_text(textwrap.dedent(SOURCE))
    spec = importlib.util.spec_from_file_location("foreign_networks", module_path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["foreign_networks"] = module
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    network = module.TinyGenerator(z_dim=8).eval().requires_grad_(False)
    path = tmp_path / "foreign.pkl"
    path.write_bytes(pickle.dumps({"G": network, "G_ema": network, "D": None}))
    yield path, network
    del sys.modules["foreign_networks"]


def test_refused_without_the_word(foreign_pickle, capsys):
    path, _ = foreign_pickle
    capsys.readouterr()
    with pytest.raises(PickleError, match=r"collections\.Counter, which no network .* needs.*--trust"):
        load_gan(str(path))
    assert capsys.readouterr().out == ""


def test_opening_with_trust_still_runs_nothing(foreign_pickle, capsys):
    path, _ = foreign_pickle
    capsys.readouterr()
    pkl = pickles.load(path, trust=True)
    assert networks.identify(pkl["G_ema"]).role == "unknown"
    with pytest.raises(PickleError, match="not one of the networks that Refine rebuilds"):
        networks.rebuild(pkl["G_ema"])
    assert capsys.readouterr().out == ""


def test_trusted_source_runs_says_so_and_is_written_back(foreign_pickle, capsys, caplog, tmp_path):
    path, original = foreign_pickle
    capsys.readouterr()
    with caplog.at_level(logging.WARNING, "refine"):
        loaded = load_gan(str(path), trust=True)
    assert capsys.readouterr().out == "embedded source ran\n"
    (line,) = [record.getMessage() for record in caplog.records]
    assert "TinyGenerator" in line and loaded.record.source_sha256[:16] in line
    z = torch.randn(3, 8)
    assert torch.equal(loaded.network(z), original(z))

    refined = {name: value + 1 for name, value in loaded.network.state_dict().items()}
    written = tmp_path / "refined.pkl"
    pickles.save(loaded.pickle, written, {"G_ema": refined})
    with written.open("rb") as file:
        again = pickle.load(file)
    assert all(torch.equal(value, refined[name]) for name, value in again["G_ema"].state_dict().items())
    assert torch.equal(again["G"](z), original(z))
    assert again["G_ema"].weights == {"a": 1}


def test_known_architecture_never_runs_its_source(fixture_path, tmp_path, capsys):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    for record in pkl.persistent_objects():
        record.meta["module_src"] = "print('embedded source ran')\n"
    path = tmp_path / "known.pkl"
    pickles.save(pkl, path)
    load_gan(str(path), trust=True)
    assert capsys.readouterr().out == ""


def test_source_that_does_not_run(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg3/s2_stylegan3t_uncond32.pkl"))  # its source is a comment
    pickles.save(pkl, tmp_path / "sg3.pkl")
    with pytest.raises(PickleError, match=r"sg3\.pkl: .*Generator does not run here"):
        load_gan(str(tmp_path / "sg3.pkl"), trust=True)


def test_trusted_object_that_is_no_generator(foreign_pickle, tmp_path):
    path, network = foreign_pickle
    del network.num_ws
    path.write_bytes(pickle.dumps({"G_ema": network}))
    with pytest.raises(PickleError, match="TinyGenerator has no num_ws"):
        load_gan(str(path), trust=True)


def test_trusted_generator_that_cannot_be_refined(foreign_pickle, fixture_path):
    path, _ = foreign_pickle
    teacher = str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    with pytest.raises(UserError, match=r"TinyGenerator in .* is not made of a mapping and a synthesis network"):
        load_pair(str(path), teacher, trust=True)
