"""`python -m refine export`: each format against an implementation that is not ours, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rosinality_generator import Generator

from refine import load_generator, pickles
from refine.commands import export
from refine.export import agreement, rosinality
from refine.export.formats import FORMATS
from torch_utils import persistence


def run(*args: object):
    return CliRunner().invoke(export.main, [str(arg) for arg in args])


def written(fixture_path, name, kind, out):
    done = run(f"--network={fixture_path(f'sg2ada/{name}.pkl')}", f"--format={kind}", f"--out={out}")
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout and "the same within" in done.stdout
    return done.stdout


def state(path, key="G_ema"):
    return {name: record.read() for name, record in pickles.named_tensors(pickles.load(path)[key]).items()}


@pytest.mark.parametrize("name", ["b_cond16", "c_resnet16"])
def test_safetensors(fixture_path, tmp_path, name):
    """Read by hand, from the format: 8 bytes of length, a JSON header, little-endian data."""
    written(fixture_path, name, "safetensors", tmp_path / "g.safetensors")
    content = (tmp_path / "g.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    about = header.pop("__metadata__")
    path = fixture_path(f"sg2ada/{name}.pkl")
    expected = state(path)
    assert header.keys() == expected.keys()
    for tensor_name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(content[8 + length :][begin:end], "<f4").reshape(entry["shape"])
        assert np.array_equal(array, expected[tensor_name].numpy()), tensor_name
    described = json.loads(fixture_path(f"sg2ada/{name}.json").read_text())
    assert json.loads(about["init_kwargs"]) == described["G_init_kwargs"]
    assert about["class_name"] == "Generator" and about["source"] == f"{name}.pkl"


def test_weights_come_back(fixture_path, tmp_path):
    """From safetensors into a pickle of another run: both networks get them, the rest is as in that pickle."""
    path = fixture_path("sg2ada/b_cond16.pkl")
    moved = {name: tensor + 0.25 for name, tensor in state(path).items()}
    pickles.save(pickles.load(path), tmp_path / "refined.pkl", {"G_ema": moved})
    done = run(f"--network={tmp_path / 'refined.pkl'}", "--format=safetensors", f"--out={tmp_path / 'g.safetensors'}")
    assert done.exit_code == 0
    done = run(
        f"--network={tmp_path / 'g.safetensors'}", f"--like={path}", "--format=pkl", f"--out={tmp_path / 'x.pkl'}"
    )
    assert done.exit_code == 0 and "G and G_ema hold its weights" in done.stdout
    for key in ("G", "G_ema"):
        assert all(torch.equal(tensor, moved[name]) for name, tensor in state(tmp_path / "x.pkl", key).items())
    before, after = state(path, "D"), state(tmp_path / "x.pkl", "D")
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert list(pickles.load(tmp_path / "x.pkl")) == list(pickles.load(path))


@pytest.fixture
def checkpoint(fixture_path, tmp_path):
    """The rosinality checkpoint of a golden generator, and the generator."""
    said = written(fixture_path, "a_uncond32", "rosinality", tmp_path / "g.pt")
    assert "Generator(32, 64, 2), in whose source the table of channels has to become {4: 32, 8: 32, 16: 32" in said
    return tmp_path / "g.pt", load_generator(str(fixture_path("sg2ada/a_uncond32.pkl"))).network


def test_rosinality_computes_the_same(checkpoint, golden):
    loaded = torch.load(checkpoint[0], weights_only=True)
    theirs = Generator(32, 64, 2, dict.fromkeys([4, 8, 16, 32], 32))
    theirs.load_state_dict(loaded["g_ema"], strict=True)
    z = torch.from_numpy(golden("sg2ada/a_uncond32")["in.z"])
    for psi, name in ((1.0, "img_const_psi1"), (0.7, "G_call_const_psi0.7")):
        image = theirs(z, psi, loaded["latent_avg"]).detach()
        expected = golden("sg2ada/a_uncond32")[name]
        assert np.abs(image.numpy() - expected).max() < 1e-4, psi
        assert (image - rosinality.compute(loaded["g_ema"], loaded["latent_avg"], z, psi)).abs().max() < 1e-5
        assert np.abs(expected).max() > 1


@pytest.mark.parametrize(
    "name", ["convs.2.conv.weight", "to_rgbs.1.bias", "noises.noise_4", "style.2.bias", "latent_avg"]
)
def test_comparison_notices_a_wrong_tensor(checkpoint, fixture_path, name):
    loaded = load_generator(str(fixture_path("sg2ada/a_uncond32.pkl")))
    content = torch.load(checkpoint[0], weights_only=True)
    tensor = content["latent_avg"] if name == "latent_avg" else content["g_ema"][name]
    tensor.copy_(tensor.flip(-2 if name.endswith("weight") else -1) + 0.01)
    torch.save(content, checkpoint[0])
    at = agreement.Probe.of(loaded.network)
    expected = at.images(agreement.images_of_network(loaded.network))
    with pytest.raises(agreement.UserError, match="does not make the same images"):
        agreement.agreement(expected, rosinality.images(checkpoint[0], loaded, at), "it")


def test_rosinality_comes_back(checkpoint, fixture_path, tmp_path):
    path = fixture_path("sg2ada/a_uncond32.pkl")
    done = run(f"--network={checkpoint[0]}", f"--like={path}", "--format=pkl", f"--out={tmp_path / 'back.pkl'}")
    assert done.exit_code == 0, done.output
    expected = state(path)
    for key in ("G", "G_ema"):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state(tmp_path / "back.pkl", key).items())


def test_constructor_of_published_shapes():
    """The channels of the two multipliers that rosinality's constructor knows."""

    class Shape:
        def __init__(self, base, size):
            self.base, self.size = base, size

        def state_dict(self):
            resolutions = [2**i for i in range(2, self.size.bit_length())]
            return {f"synthesis.b{r}.conv1.bias": torch.zeros(min(self.base // r, 512)) for r in resolutions}

    for base, size, said in (
        (32768, 1024, "Generator(1024, 512, 8, channel_multiplier=2)"),
        (16384, 256, "Generator(256, 512, 8, channel_multiplier=1)"),
        (32768, 32, "Generator(32, 512, 8, channel_multiplier=2)"),
        (8192, 64, "{4: 512, 8: 512, 16: 512, 32: 256, 64: 128}"),
    ):
        assert said in rosinality.constructor(rosinality.Layout(size, 512, 8), Shape(base, size).state_dict())


@pytest.mark.parametrize("name", ["b_cond16", pytest.param("a_uncond32", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_onnx(fixture_path, tmp_path, golden, name):
    """By ONNX Runtime, against golden images, with batches of other sizes than the one exported with."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    written(fixture_path, name, "onnx", tmp_path / "g.onnx")
    model = onnx.load(tmp_path / "g.onnx")
    onnx.checker.check_model(model)
    inputs = ["z", "c", "truncation_psi"] if name == "b_cond16" else ["z", "truncation_psi"]
    assert [item.name for item in model.graph.input] == inputs
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    arrays = golden(f"sg2ada/{name}")
    for psi, expected in ((1.0, "img_const_psi1"), (0.7, "G_call_const_psi0.7")):
        for count in (1, 3):
            feed = {
                "z": arrays["in.z"][:count],
                "c": arrays["in.c"][:count],
                "truncation_psi": np.array(psi, np.float32),
            }
            (image,) = session.run(["image"], {key: feed[key] for key in inputs})
            assert np.abs(image - arrays[expected][:count]).max() < 1e-4


def test_compact_pickle_opens_everywhere(fixture_path, tmp_path, golden, monkeypatch):
    """With plain `pickle.load`, as the repositories' loader does it, and with Refine's own."""
    path = tmp_path / "ema.pkl"
    written(fixture_path, "b_cond16", "pkl-ema", path)
    assert path.stat().st_size < 0.4 * fixture_path("sg2ada/b_cond16.pkl").stat().st_size
    arrays = golden("sg2ada/b_cond16")
    z, c = torch.from_numpy(arrays["in.z"]), torch.from_numpy(arrays["in.c"])

    def give_source(meta):
        meta.module_src = (Path(__file__).parents[1] / "support" / "embedded_stylegan2.py").read_text(encoding="utf-8")
        return meta

    monkeypatch.setattr(persistence, "_import_hooks", [give_source])
    data = persistence.pickle.loads(path.read_bytes())
    assert all(isinstance(data[key], torch.nn.Module) for key in ("G", "D", "G_ema"))
    assert data["G"] is data["G_ema"] and not list(data["D"].state_dict())
    for network in (data["G_ema"], load_generator(str(path)).network):
        image = network(z, c, truncation_psi=0.7, noise_mode="const")
        assert np.abs(image.numpy() - arrays["G_call_const_psi0.7"]).max() < 1e-4
    # And it can be refined again: the two names get weights of their own.
    moved = {name: tensor + 1 for name, tensor in state(path).items()}
    pickles.save(pickles.load(path), tmp_path / "again.pkl", {"G": moved, "G_ema": state(path)})
    assert not torch.equal(state(tmp_path / "again.pkl", "G")["mapping.w_avg"], state(path)["mapping.w_avg"])


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        ("rosinality", "sg2ada/b_cond16.pkl", "it has classes, for which that format has no place"),
        ("rosinality", "sg2ada/c_orig16.pkl", "it has the architecture 'orig'"),
        ("rosinality", "sg2ada/d_gray16.pkl", "it has 1 image channels"),
        ("rosinality", "sg3/s1_stylegan2_uncond32.pkl", "it has a z or layers not as wide as w"),
        ("pkl-ema", "edm/s6_iddpm_adm_uncond16.pkl", "it holds an EDM denoiser"),
        ("pkl", "sg2ada/b_cond16.pkl", "--format=pkl and --like belong together"),
    ],
)
def test_refusals(fixture_path, tmp_path, kind, name, sentence):
    suffix = FORMATS[kind].suffix if kind in FORMATS else ".pkl"
    out = tmp_path / f"x{suffix}"
    done = run(f"--network={fixture_path(name)}", f"--format={kind}", f"--out={out}")
    assert done.exit_code == 2 and sentence in " ".join(done.stderr.split()), done.output
    assert not list(tmp_path.iterdir())


def test_what_cannot_come_back(fixture_path, tmp_path):
    written(fixture_path, "a_uncond32", "safetensors", tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0no header")
    torch.save({"g_ema": {}}, tmp_path / "c.pt")
    torch.save({"g_ema": {}, "latent_avg": torch.zeros(64)}, tmp_path / "d.pt")
    before = set(tmp_path.iterdir())
    for weights, sentence in (
        ("a.safetensors", "does not fit"),
        ("b.safetensors", "b.safetensors is not"),
        ("none.safetensors", "none.safetensors is not"),
        ("c.pt", "rosinality checkpoint with g_ema and latent_avg"),
        ("d.pt", "has no style.1.weight like the mapping.fc0.weight of --like"),
        ("e.bin", "give a .safetensors or .pt file as --network"),
    ):
        like = fixture_path("sg2ada/b_cond16.pkl")
        done = run(f"--network={tmp_path / weights}", f"--like={like}", "--format=pkl", f"--out={tmp_path / 'x.pkl'}")
        assert done.exit_code == 2 and sentence in " ".join(done.stderr.split()), done.output
        assert set(tmp_path.iterdir()) == before


def test_checkpoint_with_code_in_it_is_not_executed(fixture_path, tmp_path):
    class Gadget:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"g_ema": Gadget(), "latent_avg": 0}, tmp_path / "bad.pt")
    like = fixture_path("sg2ada/a_uncond32.pkl")
    done = run(f"--network={tmp_path / 'bad.pt'}", f"--like={like}", "--format=pkl", f"--out={tmp_path / 'x.pkl'}")
    assert done.exit_code == 2 and {file.name for file in tmp_path.iterdir()} == {"bad.pt"}


def test_nothing_is_overwritten_and_an_input_never(fixture_path, tmp_path, monkeypatch):
    """In place of in.pkl, with its G and D, there was a file of G_ema alone."""
    monkeypatch.chdir(tmp_path)
    content = fixture_path("sg2ada/b_cond16.pkl").read_bytes()
    Path("in.pkl").write_bytes(content)
    Path("link.pkl").symlink_to("in.pkl")
    Path("there.pkl").write_text("mine")
    for out, force in (("in.pkl", "--force"), ("./in.pkl", "--force"), ("link.pkl", "--force"), ("in.pkl", "--debug")):
        done = run("--network=in.pkl", "--format=pkl-ema", f"--out={out}", force)
        assert done.exit_code == 2 and out.removeprefix("./") in done.stderr, done.output
    done = run("--network=in.pkl", "--format=pkl-ema", "--out=there.pkl")
    assert done.exit_code == 2 and "there.pkl" in done.stderr and "--force" in done.stderr
    assert Path("in.pkl").read_bytes() == content and Path("there.pkl").read_text() == "mine"
    assert run("--network=in.pkl", "--format=pkl-ema", "--out=there.pkl", "--force").exit_code == 0
    assert load_generator("there.pkl").key == "G_ema" and Path("in.pkl").read_bytes() == content
    done = run("--network=in.pkl", "--format=onnx", "--out=x.pkl")
    assert done.exit_code == 2 and ".onnx" in done.stderr and "x.pkl" in done.stderr
    done = run("--network=in.pkl", "--format=pkl-ema", "--out=nowhere/x.pkl")
    assert done.exit_code == 2 and "nowhere" in done.stderr


def test_a_generator_that_draws_nothing_finite(fixture_path, tmp_path):
    path = fixture_path("sg2ada/b_cond16.pkl")
    weights = state(path)
    weights["synthesis.b16.torgb.bias"][0] = torch.nan
    pickles.save(pickles.load(path), tmp_path / "nan.pkl", {"G_ema": weights})
    done = run(f"--network={tmp_path / 'nan.pkl'}", "--format=safetensors", f"--out={tmp_path / 'x.safetensors'}")
    assert done.exit_code == 2 and "nan.pkl" in done.stderr and "finite" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["nan.pkl"]


def test_missing_package_is_one_sentence(fixture_path, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    path = fixture_path("sg2ada/a_uncond32.pkl")
    done = run(f"--network={path}", "--format=onnx", f"--out={tmp_path / 'x.onnx'}")
    assert done.exit_code == 2
    expected = "--format=onnx needs onnx, onnxscript, onnxruntime: python -m pip install onnx onnxscript onnxruntime"
    assert expected in " ".join(done.stderr.split())


def test_file_that_computes_something_else_does_not_get_its_name(fixture_path, tmp_path, monkeypatch):
    from refine.export import safetensors_file

    monkeypatch.setattr(safetensors_file, "images", lambda path, loaded, at: torch.zeros(4, 3, 16, 16))
    out = tmp_path / "g.safetensors"
    out.write_text("as it was")
    pair = (f"--network={fixture_path('sg2ada/b_cond16.pkl')}", "--format=safetensors")
    done = run(*pair, f"--out={out}", "--force")
    assert done.exit_code == 2 and "was not written because it does not make the same images" in done.stderr
    assert out.read_text() == "as it was" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(agreement.UserError, match=r"makes images \[3, 8, 8\] instead of \[3, 16, 16\]"):
        agreement.agreement(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 8, 8), "it")
    with pytest.raises(agreement.UserError, match="differ by nan"):
        agreement.agreement(torch.zeros(1, 3, 2, 2), torch.full([1, 3, 2, 2], torch.nan), "it")
