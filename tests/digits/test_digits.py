"""The files that ship: they are ordinary pickles, and what their names say."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from refine import load_generator, load_teacher, networks, pickles, zoo
from refine.diffusion.sampler import heun_sample
from refine.digits.digits import FOLDER, shipped_detector, shipped_split
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.tree import walk

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "refine" / "digits" / "sources"
SPLITS = {"train": 1197, "selection": 200, "test": 400}


@pytest.fixture(scope="module")
def detector():
    return shipped_detector()


@pytest.fixture(scope="module")
def splits():
    return {name: shipped_split(name) for name in SPLITS}


def relative_difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


def test_together_they_are_small():
    files = [path for path in (ROOT / "refine" / "digits").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000


def test_they_load_without_trust():
    gan, teacher = load_generator("digits"), load_teacher("edm-digits")
    assert gan.architecture.name == "StyleGAN2 generator (stylegan2-ada-pytorch)"
    assert (gan.network.c_dim, gan.network.img_resolution, gan.network.img_channels) == (10, 16, 1)
    assert teacher.architecture.name == "EDM denoiser (EDMPrecond over SongUNet)"
    assert (teacher.network.label_dim, teacher.network.img_resolution, teacher.network.img_channels) == (10, 16, 1)
    assert list(gan.pickle) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    assert list(teacher.pickle) == ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
    assert networks.identify(gan.pickle["D"]).role == "discriminator"


@pytest.mark.parametrize(("name", "source"), [("digits", "stylegan2.py"), ("edm-digits", "edm.py")])
def test_the_embedded_source_is_the_one_in_the_repository_and_known(name, source):
    text = (SOURCES / source).read_text(encoding="utf-8")
    pickle = pickles.load(zoo.resolve(name).path)
    objects = [value for entry in pickle.values() for value in walk(entry)]
    embedded = {value.module_src for value in objects if isinstance(value, pickles.PersistentObject)}
    assert embedded == {text}
    assert hashlib.sha256(text.encode()).hexdigest() in KNOWN_SOURCES


PLAIN = """
import pickle, sys, torch
assert not any(name.startswith("refine") for name in sys.modules)
inputs = torch.load(sys.argv[1])
with open(sys.argv[2], "rb") as file:
    G = pickle.load(file)["G_ema"]
with open(sys.argv[3], "rb") as file:
    opened = pickle.load(file)
D_T, loss_fn = opened["ema"], opened["loss_fn"]
with torch.no_grad():
    torch.manual_seed(1)
    random = G(inputs["z"], inputs["c"])
    outputs = {
        "const": G(inputs["z"], inputs["c"], truncation_psi=0.7, noise_mode="const"),
        "random": random,
        "ws": G.mapping(inputs["z"], inputs["c"], truncation_psi=0.5, truncation_cutoff=2),
        "denoised": D_T(inputs["x"], inputs["sigma"], inputs["c"]),
        "unlabelled": D_T(inputs["x"], torch.tensor(0.7)),
    }
    assert loss_fn(D_T, inputs["x"], inputs["c"]).shape == inputs["x"].shape
assert not any(name.startswith("refine") for name in sys.modules)
torch.save(outputs, sys.argv[4])
"""


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, load_generator("digits").network.z_dim, generator=generator)
    x = torch.randn(8, 1, 16, 16, generator=generator)
    sigma = torch.tensor([0.002, 0.02, 0.1, 0.5, 1, 5, 20, 80])
    return {"z": z, "c": torch.eye(10)[:8], "x": x, "sigma": sigma}


@torch.no_grad()
def test_plain_pickle_opens_them_and_computes_the_same(inputs, tmp_path):
    """In a process that has torch_utils and dnnlib, but nothing of Refine."""
    torch.save(inputs, tmp_path / "inputs.pt")
    paths = [zoo.resolve(name).path for name in ("digits", "edm-digits")]
    for package in ("torch_utils", "dnnlib", "stylegan_ops"):
        (tmp_path / package).symlink_to(ROOT / package)
    command = [sys.executable, "-I", "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}]\n{PLAIN}"]
    subprocess.run([*command, tmp_path / "inputs.pt", *paths, tmp_path / "out.pt"], check=True, timeout=300)
    plain = torch.load(tmp_path / "out.pt")

    G, D_T = load_generator("digits").network, load_teacher("edm-digits").network
    z, c, x = inputs["z"], inputs["c"], inputs["x"]
    torch.manual_seed(1)
    ours = {
        "random": G(z, c),
        "const": G(z, c, truncation_psi=0.7, noise_mode="const"),
        "ws": G.mapping(z, c, truncation_psi=0.5, truncation_cutoff=2),
        "denoised": D_T(x, inputs["sigma"], c),
        "unlabelled": D_T(x, 0.7),
    }
    for name, value in ours.items():
        assert relative_difference(plain[name], value) < 3e-5, name


def test_detector_is_called_like_inception(detector, splits):
    images = splits["test"].pixels[:5]
    assert images.dtype == torch.uint8
    features = detector(images, return_features=True)
    assert features.shape == (5, 64)
    colors = images.repeat(1, 3, 1, 1)
    assert torch.allclose(detector(colors, return_features=True), features, atol=1e-4)
    large = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert detector(large, return_features=True).shape == (5, 64)
    biased, unbiased = detector(images), detector(images, no_output_bias=True)
    assert biased.shape == unbiased.shape == (5, 10)
    assert torch.allclose(unbiased.sum(dim=1), torch.ones(5))
    weight, bias = detector.output.weight, detector.output.bias
    assert torch.allclose(unbiased, torch.softmax(features @ weight.t(), dim=1), atol=1e-5)
    assert torch.allclose(biased, torch.softmax(features @ weight.t() + bias, dim=1), atol=1e-5)


def test_detector_needs_no_recent_operators():
    """TorchScript that names an operator of a later PyTorch does not load; all these are in 2.6."""
    with zipfile.ZipFile(FOLDER / "digits-detector.pt") as archive:
        code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))
    assert set(re.findall(r"\btorch\.(\w+)\(", code)) == {
        *("__not__", "_upsample_bilinear2d_aa", "add", "avg_pool2d", "conv2d", "div", "flatten", "leaky_relu"),
        *("leaky_relu_", "linear", "matmul", "mean", "ne", "size", "softmax", "sub", "t", "to"),
    }


def test_detector_recognizes_held_out_digits(detector, splits):
    for name in ("selection", "test"):
        recognized = detector(splits[name].pixels).argmax(dim=1)
        assert (recognized == splits[name].classes).float().mean() > 0.96


def test_references_are_the_moments_of_the_images(detector, splits):
    for name, images in splits.items():
        features = detector(images.pixels, return_features=True).double().numpy()
        with np.load(zoo.resolve(f"digits-{name}.npz").path) as reference:
            assert np.allclose(reference["mu"], features.mean(axis=0), atol=1e-4)
            centered = features - features.mean(axis=0)
            assert np.allclose(reference["sigma"], centered.T @ centered / (len(features) - 1), rtol=1e-4, atol=1e-3)


def test_datasets_are_stylegans(splits):
    assert {name: len(images) for name, images in splits.items()} == SPLITS
    with zipfile.ZipFile(zoo.resolve("digits-test.zip").path) as archive:
        labels = dict(json.loads(archive.read("dataset.json"))["labels"])
        assert sorted([*labels, "dataset.json"]) == sorted(archive.namelist())
    for name, count in (("selection", 20), ("test", 40)):
        assert torch.bincount(splits[name].classes).tolist() == [count] * 10


def recognized(detector, images, classes):
    pixels = (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
    return float((detector(pixels).argmax(dim=1) == classes).float().mean())


@torch.no_grad()
def test_the_generator_is_bad_and_the_teacher_good(detector):
    """Share of the images, at the demo's start and of its teacher, that are of the class asked for."""
    classes = torch.arange(100) % 10
    labels = torch.eye(10)[classes]
    torch.manual_seed(0)
    G, D_T = load_generator("digits").network, load_teacher("edm-digits").network
    assert recognized(detector, G(torch.randn(100, G.z_dim), labels), classes) < 0.7
    assert recognized(detector, heun_sample(D_T, torch.randn(100, 1, 16, 16), labels), classes) > 0.9
