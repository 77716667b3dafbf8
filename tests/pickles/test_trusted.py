"""Embedded source runs on the user's word only, and then everything else works as for a known architecture."""

from __future__ import annotations

import importlib.util
import logging
import pickle
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import refine
from refine import RunConfig, load_generator, load_teacher, networks, pickles
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
    sys.modules.pop("foreign_networks", None)


def test_refused_without_the_word(foreign_pickle, capsys):
    path, _ = foreign_pickle
    capsys.readouterr()
    with pytest.raises(PickleError, match=r"collections\.Counter, which no network .* needs.*--trust"):
        load_generator(str(path))
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
    del sys.modules["foreign_networks"]  # Else its own class is taken, and nothing runs.
    capsys.readouterr()
    with caplog.at_level(logging.WARNING, "refine"):
        loaded = load_generator(str(path), trust=True)
    assert capsys.readouterr().out == "embedded source ran\n"
    before, after = [record.getMessage() for record in caplog.records]
    assert "TinyGenerator" in before and loaded.record.source_sha256[:16] in before
    assert "TinyGenerator" in after and "network that the pickle brings" in after and loaded.is_embedded
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


def with_source(pkl, source):
    """The pickle with another source in every persistent object."""
    for record in pkl.persistent_objects():
        record.meta["module_src"] = source
    return pkl


EMBEDDED = Path(__file__).parents[1] / "support" / "embedded_stylegan2.py"  # a whole StyleGAN2 of ours


def test_known_architecture_runs_its_source_with_trust_only(fixture_path, tmp_path, capsys, caplog):
    """And a published source not even then: there is nothing to find out."""
    pkl = with_source(pickles.load(fixture_path("sg2ada/d_gray16.pkl")), "print('embedded source ran')\n")
    path = tmp_path / "known.pkl"
    pickles.save(pkl, path)
    with caplog.at_level(logging.INFO, "refine"):
        assert not load_generator(str(path)).is_embedded
    assert capsys.readouterr().out == "" and pkl["G_ema"].source_sha256[:16] in caplog.records[-1].getMessage()
    assert not load_generator(
        str(path), trust=True
    ).is_embedded  # the source does not run, and Refine's network is there
    assert capsys.readouterr().out == "embedded source ran\n"
    load_generator(str(fixture_path("sg2ada/d_gray16.pkl")), trust=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("change", "is_embedded"), [("", False), ("return torch.tanh(img)", True)])
def test_fork_with_the_same_tensors(change, is_embedded, fixture_path, tmp_path, caplog):
    """A changed network has the names and shapes of the original: only its images tell."""
    source = EMBEDDED.read_text(encoding="utf-8")
    assert source.count("        return img\n") == 1
    source = "# a fork\n" + source.replace("        return img\n", f"        {change or 'return img'}\n")
    pkl = with_source(pickles.load(fixture_path("sg2ada/b_cond16.pkl")), source)
    path = tmp_path / "fork.pkl"
    pickles.save(pkl, path)
    with caplog.at_level(logging.INFO, "refine"):
        original = load_generator(str(path))
        assert not original.is_embedded and pkl["G_ema"].source_sha256[:16] in caplog.text
        loaded = load_generator(str(path), trust=True)
    assert loaded.is_embedded == is_embedded
    expected = "the network that the pickle brings" if is_embedded else "Refine's own network"
    assert expected in caplog.records[-1].getMessage()
    z, c = torch.randn(2, 32), torch.eye(5)[:2]
    images = [one.network(z, c, noise_mode="const") for one in (original, loaded)]
    expected = torch.tanh(images[0]) if is_embedded else images[0]
    assert (images[1] - expected).abs().max() < 1e-4


def test_fork_is_refined_and_comes_back(fixture_path, tmp_path, caplog):
    """The steps move the network that the pickle brings, and the snapshot keeps its source."""
    source = EMBEDDED.read_text(encoding="utf-8").replace("        return img\n", "        return torch.tanh(img)\n")
    pkl = with_source(pickles.load(fixture_path("sg2ada/b_cond16.pkl")), "# a fork\n" + source)
    pickles.save(pkl, tmp_path / "fork.pkl")
    options = {"batch": 4, "kimg": 0.008, "warmup_kimg": 0.004, "glr": 1e-3, "metrics": "none", "preflight": False}
    config = RunConfig(
        gan=str(tmp_path / "fork.pkl"),
        teacher=str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")),
        outdir=str(tmp_path / "runs"),
        device="cpu",
        **options,
    )
    with caplog.at_level(logging.INFO, "refine"):
        snapshot = refine.run(config, trust=True)
    assert "the network that the pickle brings" in caplog.text
    before, after = (load_generator(str(path), trust=True) for path in (tmp_path / "fork.pkl", snapshot))
    assert after.is_embedded and after.record.module_src == before.record.module_src
    z, c = torch.randn(4, 32), torch.eye(5)[:4]
    images = [loaded.network(z, c, noise_mode="const") for loaded in (before, after)]
    assert all(image.abs().max() <= 1 for image in images) and (images[0] - images[1]).abs().max() > 1e-5


def test_denoiser_of_a_fork(fixture_path, tmp_path, caplog):
    """The built-in teacher, whose source is ours, against a copy that halves its output."""
    built_in = pickles.load(Path(refine.__file__).parent / "digits" / "edm-digits.pkl")
    source = built_in["ema"].module_src
    line = next(line for line in source.splitlines() if line.strip().startswith("return c_skip"))
    for change, is_embedded in ((line, False), (line.replace("return ", "return 0.5 * (") + ")", True)):
        fork = with_source(built_in, "# a fork\n" + source.replace(line, change))
        pickles.save(fork, tmp_path / "fork.pkl")
        with caplog.at_level(logging.WARNING, "refine"):
            assert load_teacher(str(tmp_path / "fork.pkl"), trust=True).is_embedded == is_embedded
        assert "EDMPrecond" in caplog.records[-1].getMessage()


def test_fork_with_another_layer_or_argument(fixture_path, tmp_path, caplog):
    """Refine's network does not fit, so only the embedded one can be used, and only with trust."""
    for key, value in (("new_option", 7), ("mapping_kwargs", {"num_layers": 5})):
        pkl = with_source(pickles.load(fixture_path("sg2ada/b_cond16.pkl")), EMBEDDED.read_text(encoding="utf-8"))
        for name in ("G", "G_ema"):
            pkl[name].attributes["_init_kwargs"][key] = value
        path = tmp_path / f"{key}.pkl"
        pickles.save(pkl, path)
        with pytest.raises(PickleError, match="--trust-pickle") as caught:
            load_generator(str(path))
        assert str(path) in str(caught.value)
        with caplog.at_level(logging.WARNING, "refine"):
            loaded = load_generator(str(path), trust=True)
        assert loaded.is_embedded and "the network that the pickle brings" in caplog.records[-1].getMessage()
        original = load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network
        z, c = torch.randn(2, 32), torch.eye(5)[:2]
        assert (loaded.network(z, c, noise_mode="const") - original(z, c, noise_mode="const")).abs().max() < 1e-4


@pytest.fixture
def fork(fixture_path):
    """A generator that Refine does not rebuild: StyleGAN3 with an argument that the original does not have."""
    pkl = pickles.load(fixture_path("sg3/s2_stylegan3t_uncond32.pkl"))
    pkl["G_ema"].attributes["_init_kwargs"]["novelty"] = 1
    return pkl


def test_module_that_setuptools_dropped(fork, tmp_path):
    """stylegan3's torch_utils imports pkg_resources, which is gone: the sentence names what helps."""
    pickles.save(with_source(fork, "import pkg_resources.nothing\n"), tmp_path / "sg3.pkl")
    with pytest.raises(PickleError, match=r"sg3\.pkl.*pkg_resources.*docs/drop-in\.md"):
        load_generator(str(tmp_path / "sg3.pkl"), trust=True)


def test_source_that_does_not_run(fork, tmp_path):
    pickles.save(fork, tmp_path / "sg3.pkl")  # its source is a comment
    with pytest.raises(PickleError, match=r"sg3\.pkl: .*Generator does not run here"):
        load_generator(str(tmp_path / "sg3.pkl"), trust=True)


def test_trusted_object_that_is_no_generator(foreign_pickle, tmp_path):
    path, network = foreign_pickle
    del network.num_ws
    path.write_bytes(pickle.dumps({"G_ema": network}))
    with pytest.raises(PickleError, match="TinyGenerator has no num_ws"):
        load_generator(str(path), trust=True)


def test_trusted_generator_that_cannot_be_refined(foreign_pickle, fixture_path):
    path, _ = foreign_pickle
    teacher = str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    with pytest.raises(UserError, match=r"TinyGenerator in .* is not made of a mapping and a synthesis network"):
        load_pair(str(path), teacher, trust=True)
