"""Verbs on snapshots of networks of the user's own: nothing is executed without trust."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import refine
from refine.errors import UserError
from refine.networks.sampling import latent
from refine.networks.weights_file import write_weights
from refine.pickles import PickleError
from refine.runs.folder import RunFolder

SOURCE = """
import pathlib
import torch

pathlib.Path(__file__).with_name("executed").touch()

class Generator(torch.nn.Module):
    z_dim = 3
    c_dim = 10

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(13, 256)

    def forward(self, z, c):
        return self.layer(torch.cat([z, c], 1)).reshape(-1, 1, 16, 16).tanh()

class Unconditional(torch.nn.Module):
    z_shape = (1, 16, 16)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, truncation_psi=1.0):
        return truncation_psi * self.layer(z)

def styled():
    import refine
    return refine.load_generator("digits").network
"""
MEASURED = ("--metrics=fid400_full", "--data=digits-test.zip", "--detector=digits-detector.pt")


def run(verb: str, *args: object):
    command = importlib.import_module(f"refine.commands.{verb}").main
    words = [] if verb in ("inspect", "export") else ["--device=cpu"]
    return CliRunner().invoke(command, [*(str(arg) for arg in args), *words])


class Own:
    """A Python file, and snapshots of its networks."""

    def __init__(self, folder):
        self.folder, self.source = folder, folder / "mine.py"
        self.source.write_text(SOURCE)

    @property
    def executed(self):
        return (self.folder / "executed").exists()

    def network(self, name="Generator", seed=0):
        names = {"__file__": str(self.folder / "elsewhere" / "mine.py")}
        exec(compile(SOURCE.replace('pathlib.Path(__file__).with_name("executed").touch()', ""), "mine", "exec"), names)
        torch.manual_seed(seed)
        return names[name]()

    def snapshot(self, average, gan="mine.py:Generator", **options):
        gan = f"{self.folder / gan}" if gan.startswith("mine.py") else gan
        path = self.folder / "network-snapshot-000003.safetensors"
        live = {name: torch.zeros_like(value) for name, value in average.state_dict().items()}
        write_weights(path, live, average.state_dict(), json.dumps({"gan": gan, "kimg": 3, **options}))
        return path


@pytest.fixture
def own(tmp_path):
    return Own(tmp_path)


def pixels(image):
    return (image.detach()[0].permute(1, 2, 0) * 127.5 + 128).clamp(0, 255).to(torch.uint8).numpy().squeeze(-1)


def test_generate_with_classes(own):
    network = own.network()
    path = own.snapshot(network)
    words = (f"--network={path}", "--seeds=0,7", f"--outdir={own.folder / 'out'}")
    refused = run("generate", *words, "--class=3")
    assert refused.exit_code == 2 and not own.executed
    assert all(word in refused.output.replace("\n", "") for word in (path.name, "mine.py:Generator", "--trust-pickle"))
    unlabeled = run("generate", *words, "--trust-pickle")
    assert unlabeled.exit_code == 2 and "--class=0" in unlabeled.output and own.executed
    done = run("generate", *words, "--class=3,8", "--trust-pickle")
    assert done.exit_code == 0, done.output
    for seed in (0, 7):
        for number in (3, 8):
            found = np.asarray(Image.open(own.folder / "out" / f"seed{seed:04d}-class{number}.png"))
            assert np.array_equal(found, pixels(network(latent(seed, 3), torch.eye(10)[number][None])))


def test_generate_without_classes_and_with_truncation(own):
    network = own.network("Unconditional")
    path = own.snapshot(network, "mine.py:Unconditional")
    words = (f"--network={path}", "--seeds=5", "--trunc=0.5", f"--outdir={own.folder / 'out'}", "--trust-pickle")
    done = run("generate", *words)
    assert done.exit_code == 0, done.output
    z = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(5))[None]
    found = np.asarray(Image.open(own.folder / "out" / "seed0005.png"))
    assert np.array_equal(found, pixels(0.5 * network(z)))


def test_generate_by_a_stylegan(own):
    network = own.network("styled").cpu()
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    path = own.snapshot(network, "mine.py:styled")
    words = (f"--network={path}", "--seeds=5", "--trunc=0.5", "--class=2", f"--outdir={own.folder / 'out'}")
    done = run("generate", *words, "--trust-pickle")
    assert done.exit_code == 0, done.output
    z, c = latent(5, network.z_dim), torch.eye(10)[2][None]
    expected = pixels(network(z, c, truncation_psi=0.5, noise_mode="const"))
    assert np.array_equal(np.asarray(Image.open(own.folder / "out" / "seed0005.png")), expected)


def test_truncation_that_the_network_has_not(own):
    path = own.snapshot(own.network())
    words = (f"--network={path}", "--seeds=5", "--class=1", "--trunc=0.5", f"--outdir={own.folder / 'out'}")
    done = run("generate", *words, "--trust-pickle")
    assert done.exit_code == 2 and "0.5" in done.output


def test_the_best_snapshot_of_a_run(own):
    network = own.network()
    snapshot = own.snapshot(network)
    RunFolder(own.folder).link_best(snapshot)
    own.snapshot(own.network(seed=1)).rename(own.folder / "network-snapshot-000009.safetensors")
    (own.folder / "network-best.safetensors").unlink()
    words = ("--seeds=0", "--class=3", f"--outdir={own.folder / 'out'}", "--trust-pickle", "--force")
    for best, seed in ((False, 1), (True, 0)):
        if best:
            own.snapshot(network)
            RunFolder(own.folder).link_best(snapshot)
        done = run("generate", f"--network={own.folder}", *words)
        assert done.exit_code == 0, done.output
        expected = own.network(seed=seed)(latent(0, 3), torch.eye(10)[3][None])
        assert np.array_equal(np.asarray(Image.open(own.folder / "out" / "seed0000.png")), pixels(expected))


def test_comparison_of_two_snapshots(own):
    first = own.snapshot(own.network())
    other = first.rename(own.folder / "other.safetensors")
    first = own.snapshot(own.network(seed=1))
    words = (f"--network={first}", f"--compare={other}", "--class=1", "--seeds=0", "--trust-pickle")
    done = run("generate", *words, f"--outdir={own.folder / 'out'}")
    assert done.exit_code == 0 and "difference 0.00" not in done.output, done.output
    refused = run("generate", *words, f"--video={own.folder / 'a.mp4'}")
    assert refused.exit_code == 2 and "--compare" in refused.output


def test_a_network_that_was_given_in_python(own):
    network = own.network()
    path = own.snapshot(network, gan="Generator")
    words = (f"--network={path}", "--seeds=0", "--class=1", f"--outdir={own.folder / 'out'}", "--trust-pickle")
    refused = run("generate", *words)
    assert refused.exit_code == 2 and not own.executed
    assert all(word in refused.output for word in ("--gan", "load_weights"))
    untrusted = run("generate", *words[:-1], f"--gan={own.source}:Generator")
    assert untrusted.exit_code == 2 and not own.executed and "--trust-pickle" in untrusted.output
    done = run("generate", *words, f"--gan={own.source}:Generator")
    assert done.exit_code == 0, done.output
    found = np.asarray(Image.open(own.folder / "out" / "seed0000.png"))
    assert np.array_equal(found, pixels(network(latent(0, 3), torch.eye(10)[1][None])))


def test_metrics(own, own_cache):
    network = own.network()
    path = own.snapshot(network)
    (own.folder / "training_options.json").write_text("{}")
    refused = run("metrics", f"--network={path}", *MEASURED)
    assert refused.exit_code == 2 and "--trust-pickle" in refused.output and not own.executed
    done = run("metrics", f"--network={path}", *MEASURED, "--trust-pickle")
    assert done.exit_code == 0, done.output
    (row,) = RunFolder(own.folder).metric_rows("fid400_full")
    assert row["snapshot_pkl"] == path.name and row == json.loads(done.stdout)
    settings = {"metrics": "fid400_full", "reference": "digits-test.zip", "detector": "digits-detector.pt"}
    (direct,) = refine.evaluate(network, device="cpu", **settings)
    assert row["results"] == direct["results"]
    (of_folder,) = refine.evaluate(own.folder, device="cpu", trust=True, **settings)
    assert of_folder["results"] == direct["results"] and of_folder["snapshot_pkl"] == path.name
    with pytest.raises(UserError, match="trust=True"):
        refine.evaluate(path, device="cpu", **settings)


def test_grid_with_the_network_before(own, own_cache):
    path = own.snapshot(own.network())
    grid = own.folder / "grid.png"
    done = run("metrics", f"--network={path}", *MEASURED, "--trust-pickle", f"--grid={grid}", f"--before={path}")
    assert done.exit_code == 0, done.output
    image = np.asarray(Image.open(grid))
    assert image.shape[1] > 2 * 6 * 16 - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Generator", "Unconditional"])
def test_export_to_onnx(own, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    network = own.network(name)
    path = own.snapshot(network, f"mine.py:{name}")
    out = own.folder / "g.onnx"
    words = (f"--network={path}", "--format=onnx", f"--out={out}")
    refused = run("export", *words)
    assert refused.exit_code == 2 and "--trust-pickle" in refused.output and not own.executed
    done = run("export", *words, "--trust-pickle")
    assert done.exit_code == 0, done.output
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    assert names == (["z"] if name == "Unconditional" else ["z", "c"])
    given = [torch.randn(3, *((1, 16, 16) if name == "Unconditional" else (3,))), torch.eye(10)[:3]][: len(names)]
    (found,) = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
    with torch.no_grad():
        expected = network(*given)
    assert float((torch.from_numpy(found) - expected).abs().max()) < 1e-4


def test_other_formats(own):
    path = own.snapshot(own.network())
    for kind, suffix in (("safetensors", "safetensors"), ("rosinality", "pt"), ("pkl-ema", "pkl")):
        out = own.folder / f"out.{suffix}"
        done = run("export", f"--network={path}", f"--format={kind}", f"--out={out}", "--trust-pickle")
        assert done.exit_code == 2 and "onnx" in done.output and not out.exists()


def test_inspect_executes_nothing(own):
    network = own.network()
    path = own.snapshot(network, note="\x1b[2J")
    text = run("inspect", path).stdout
    assert f"{own.source}:Generator" in text and "kimg=3" in text and "\x1b" not in text
    assert "G_ema: 3,584 values in 2 tensors (float32)" in text and "G: 3,584" in text
    shown = json.loads(run("inspect", path, "--json", "--trust-pickle").stdout)
    assert shown["options"]["kimg"] == 3 and shown["made_by"] == f"{own.source}:Generator"
    assert shown["bytes"] == path.stat().st_size and shown["entries"]["G_ema"]["tensors"] == 2
    network.layer.bias.data[4] = torch.nan
    text = run("inspect", own.snapshot(network, gan="given")).stdout
    assert "1 in G_ema.layer.bias" in text and "given in Python" in text
    assert run("inspect", path, f"--extract-source={own.folder / 'src'}").exit_code == 2
    assert not own.executed


def test_files_that_do_not_fit(own):
    network = own.network()
    words = ("--seeds=0", "--class=0", f"--outdir={own.folder / 'out'}", "--trust-pickle")

    def sentence(path, *more):
        done = run("generate", f"--network={path}", *words, *more)
        assert done.exit_code == 2 and not (own.folder / "out").exists(), done.output
        return done.output

    assert "layer.bias" in sentence(own.snapshot(own.network("Unconditional")))
    assert "gone.py" in sentence(own.snapshot(network, gan="/nowhere/gone.py:Generator"))
    assert "Nothing" in sentence(own.snapshot(network, gan="mine.py:Nothing"))
    assert "sigma" in sentence(own.snapshot(network), "--sigma-init=2")
    assert "mine:Generator" in sentence(own.snapshot(network), "--gan=mine:Generator")
    assert "digits" in sentence("digits", f"--gan={own.source}:Generator")
    network.layer.bias.data[4] = torch.inf
    assert "layer.bias" in sentence(own.snapshot(network))
    own.snapshot(network).write_bytes(b"")
    assert "empty" in sentence(own.folder / "network-snapshot-000003.safetensors")


def test_pickles_of_other_verbs_say_what_it_is(own):
    path = own.snapshot(own.network())
    with pytest.raises(PickleError, match="load_weights"):
        refine.load_generator(str(path), trust=True)
    assert not own.executed
