"""The R3GAN generator: golden values, files of its form, and what opening one takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import r3gan_file
import torch

from refine import load_generator, pickles
from refine.errors import UserError
from refine.networks import describe, r3gan
from refine.networks.loading import generator_of, save
from refine.networks.style_based import as_generator

NAME = "r3gan/s1_r3gan_uncond32"
ROOT = Path(__file__).resolve().parents[2]


def close(found, expected, tolerance):
    expected = torch.from_numpy(np.asarray(expected))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(params=[f"{NAME}.pkl", f"{NAME}.oldnames.pkl"])
def loaded(request, fixture_path):
    return load_generator(str(fixture_path(request.param)))


def test_golden_images(loaded, golden, fixture_path):
    arrays = golden(NAME)
    assert loaded.key == "G_ema" and isinstance(loaded.network, r3gan.Generator)
    assert loaded.architecture.name == "R3GAN generator" and not loaded.is_embedded
    z, c = torch.from_numpy(arrays["in.z"]), torch.from_numpy(arrays["in.c"])
    with torch.no_grad():
        close(loaded.network(z, c), arrays["img"], 5e-5)
        close(as_generator(loaded.network)(z, c).images, arrays["img"], 5e-5)
        x = z
        for number in range(2):
            x = loaded.network.Model.MainLayers[number](x)
            close(x, arrays[f"act_stage{number}"], 5e-5)
        close(loaded.network.Model(z, c, low_precision=True), arrays["img_bf16"], 2e-2)
        raw = generator_of(loaded.pickle, ("G",)).network
        close(raw(z, c), arrays["rawG_img"], 5e-5)


def test_golden_gradients(loaded, golden, fixture_path):
    arrays = golden(NAME)
    names = json.loads(fixture_path(f"{NAME}.json").read_text())["G_parameters"]
    network = loaded.network.requires_grad_(True)
    z, c = (torch.from_numpy(arrays[name]) for name in ("in.z", "in.c"))
    loss = (network(z.requires_grad_(True), c) * torch.from_numpy(arrays["in.r"])).sum()
    assert float(loss.detach()) == pytest.approx(float(arrays["loss"]), rel=2e-4)
    parameters = dict(network.named_parameters())
    assert list(parameters) == names
    grad_z, *gradients = torch.autograd.grad(loss, [z, *parameters.values()])
    close(grad_z, arrays["grad_z"], 3e-4)
    digest = []
    for name, gradient in zip(names, gradients, strict=True):
        if f"grad.{name}" in arrays:
            close(gradient, arrays[f"grad.{name}"], 3e-4)
        flat = gradient.double().flatten()
        ramp = torch.arange(1, len(flat) + 1, dtype=torch.float64) / len(flat)
        digest.append([flat.sum(), flat.square().sum(), (flat * ramp).sum()])
    for found, expected in zip(np.array(digest).T, arrays["grad_digest"].T, strict=True):
        assert np.abs(found - expected).max() <= 3e-4 * np.abs(expected).max()


def test_the_adapter(loaded):
    generator = as_generator(loaded.network)
    assert (generator.z_shape, generator.c_dim, generator.img_channels, generator.img_resolution) == ((24,), 0, 3, 32)
    resolutions = {name: generator.resolution_of(name) for name, _ in loaded.network.named_parameters()}
    assert resolutions["Model.MainLayers.0.Layers.0.Basis"] == 4
    assert resolutions["Model.MainLayers.3.Layers.1.NonLinearity1.Bias"] == 32
    assert resolutions["Model.AggregationLayer.Layer.weight"] == 32 and None not in resolutions.values()
    assert len(generator.blocks()) == 5
    with pytest.raises(UserError, match=r"truncation.*0\.5"):
        generator(torch.zeros(1, 24), torch.zeros(1, 0), truncation_psi=0.5)
    for z, c in ((torch.zeros(1, 23), None), (torch.zeros(24), None)):
        with pytest.raises(ValueError, match="24"):
            loaded.network(z, c)


@pytest.mark.parametrize("c_dim", [0, 3])
def test_files_of_its_form(c_dim, tmp_path):
    ours = r3gan_file.generator(c_dim=c_dim)
    path = r3gan_file.write(tmp_path / "snapshot.pkl", ours)
    loaded = load_generator(str(path))
    assert [stage.is_low_precision for stage in loaded.network.Model.MainLayers] == [False, True, True]
    z, c = torch.randn(4, 8), torch.softmax(torch.randn(4, c_dim), 1) if c_dim else torch.zeros(4, 0)
    images = loaded.network(z, c)
    assert torch.equal(images, ours(z, c))
    if c_dim:  # the embedding is a linear map of the label, behind z
        embedded = c @ ours.Model.EmbeddingLayer.weight.T
        first = ours.Model.MainLayers[0].Layers[0]
        x = (torch.cat([z, embedded], 1) @ first.LinearLayer.weight.T)[:, :, None, None] * first.Basis
        assert torch.allclose(first(torch.cat([z, embedded], 1)), x)
        with pytest.raises(ValueError, match=r"\[4, 3\]"):
            loaded.network(z, None)
    about = describe.describe(loaded.pickle)["entries"]["G_ema"]
    assert about["architecture"] == "R3GAN generator" and about["rebuilt_by_refine"] and about["img_resolution"] == 16
    # Written back, the repository's own code opens it, and finds everything else as it was.
    with torch.no_grad():
        loaded.network.Model.AggregationLayer.Layer.weight.mul_(2)
    save(loaded, tmp_path / "changed.pkl")
    old, new = path.read_bytes(), (tmp_path / "changed.pkl").read_bytes()
    differing = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    assert differing[-1] - differing[0] < loaded.network.Model.AggregationLayer.Layer.weight.nbytes
    with r3gan_file.repository():
        import pickle

        theirs, before = (pickle.loads(p.read_bytes()) for p in (tmp_path / "changed.pkl", path))
    assert list(theirs) == list(before) and theirs["cur_nimg"] == 7
    expected = loaded.network.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs["G_ema"].state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(theirs["D"].parameters(), before["D"].parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(theirs["G"].parameters(), before["G"].parameters(), strict=True))
    assert theirs["G_opt_state"]["param_groups"] == before["G_opt_state"]["param_groups"]
    assert torch.allclose(load_generator(str(tmp_path / "changed.pkl")).network(z, c), 2 * images, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("Model.AggregationLayer.Layer.weight", None, ["AggregationLayer"]),
        ("Model.MainLayers.1.Layers.0.Resampler.Kernel", None, ["MainLayers.1", "Kernel"]),
        ("Model.MainLayers.0.Layers.0.LinearLayer.weight", (3,), ["LinearLayer.weight", "(3,)"]),
        ("Model.MainLayers.0.Layers.1.LinearLayer2.Layer.weight", (32, 0, 3, 3), ["LinearLayer2"]),
        ("Model.MainLayers.0.Layers.1.LinearLayer2.Layer.weight", (32, 5, 3, 3), ["32", "6"]),
        ("Model.MainLayers.500.Layers.1.LinearLayer2.Layer.weight", (32, 5, 3, 3), ["stages", "501"]),
        ("Model.MainLayers.0.Layers.500.LinearLayer2.Layer.weight", (32, 5, 3, 3), ["blocks", "500"]),
    ],
)
def test_impossible_shapes(name, shape, words):
    network = r3gan_file.generator()
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} | {name: shape}
    shapes = {key: value for key, value in shapes.items() if value is not None}
    attributes = {"z_dim": 8, "c_dim": 0, "img_resolution": 16}
    with pytest.raises(UserError) as caught:
        r3gan.options_from_shapes(shapes, attributes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_impossible_attributes():
    shapes = {key: tuple(tensor.shape) for key, tensor in r3gan_file.generator().state_dict().items()}
    for name, value in (
        ("img_resolution", 32),
        ("z_dim", 0),
        ("z_dim", 7),
        ("z_dim", None),
        ("c_dim", -1),
        ("c_dim", 3),
    ):
        with pytest.raises(UserError):
            r3gan.options_from_shapes(shapes, {"z_dim": 8, "c_dim": 0, "img_resolution": 16} | {name: value})


PEAK = """
import resource, sys
from refine import load_generator
import torch, refine.networks.r3gan, stylegan_ops.upfirdn2d, numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
network = load_generator(sys.argv[1]).network
size = sum(tensor.nbytes for tensor in network.state_dict().values())
print(size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_memory_of_opening(tmp_path):
    """A seventh of the file is the generator; the rest stays on the disk."""
    path = r3gan_file.write(tmp_path / "large.pkl", r3gan_file.generator((768, 768), z_dim=512))
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    size, peak = map(int, result.stdout.split())
    assert path.stat().st_size > 6.9 * size and size > 30e6
    assert peak <= 1.2 * size


def test_other_forms_of_its_classes_are_refused(tmp_path):
    """Only a bare object that is given its state; never a call."""
    import pickle

    class Call:
        def __reduce__(self):
            return classes["training.networks", "Generator"], ()

    with r3gan_file.repository() as classes:
        data = pickle.dumps({"G_ema": Call()})
    (tmp_path / "called.pkl").write_bytes(data)
    with pytest.raises(pickles.PickleError, match=r"called\.pkl.*Generator"):
        pickles.load(tmp_path / "called.pkl")
    (tmp_path / "other.pkl").write_bytes(data.replace(b"training.networks", b"training.netw0rks"))
    with pytest.raises(pickles.PickleError, match=r"training\.netw0rks\.Generator"):
        pickles.load(tmp_path / "other.pkl")
