"""The wrong file gets the right sentence, with exit code 2."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import pickles
from refine.commands import run as cli


def html() -> bytes:
    return b"\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>"


def lfs_pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 381624121\n"


def tensorflow_era(protocol: int = 3) -> bytes:
    """Three networks of dnnlib.tflib, as the TensorFlow repositories pickle them."""
    names = {"dnnlib": {}, "dnnlib.tflib": {}, "dnnlib.tflib.network": {}}
    modules = {name: types.ModuleType(name) for name in names}
    network = type("Network", (), {"__module__": "dnnlib.tflib.network"})
    modules["dnnlib.tflib.network"].Network = network
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        networks = []
        for name in ("G", "D", "Gs"):
            networks.append(network())
            networks[-1].__dict__.update(name=name, variables=[("x", np.zeros(3, np.float32))], build_module_src="#")
        return pickle.dumps(tuple(networks), protocol=protocol)
    finally:
        for name, module in saved.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})


def rosinality(new_format: bool) -> bytes:
    file = io.BytesIO()
    weights = {"style.1.weight": torch.zeros(4, 4)}
    checkpoint = {"g": weights, "d": weights, "g_ema": weights, "latent_avg": torch.zeros(4)}
    torch.save(checkpoint, file, _use_new_zipfile_serialization=new_format)
    return file.getvalue()


def torch_checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"model": torch.zeros(4)}, file)
    return file.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 8


def torchscript() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3))
    return file.getvalue()


def data_set() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("00000/img00000000.png", b"x")
        archive.writestr("dataset.json", b"{}")
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


def golden() -> bytes:
    return (Path(__file__).parents[1] / "fixtures/sg2ada/b_cond16.pkl").read_bytes()


WRONG = {
    "zeros at the end": (lambda: golden()[:250_000] + bytes(len(golden()) - 250_000), "ends in zeros"),
    "zeros": (lambda: bytes(1000), "begins with zeros"),
    "text mode": (lambda: golden().replace(b"\n", b"\r\n"), "text mode"),
    "json": (lambda: b'{"error": "no access"}', "is a JSON message"),
    "xml": (lambda: b'<?xml version="1.0"?><Error/>', "is an XML message"),
    "empty": (lambda: b"", "is empty"),
    "html": (html, "is a web page"),
    "git lfs": (lfs_pointer, "git lfs pull"),
    "tensorflow": (tensorflow_era, "TensorFlow StyleGAN"),
    "tensorflow, protocol 4": (lambda: tensorflow_era(4), "TensorFlow StyleGAN"),
    "progressive gan": (lambda: b"\x80\x02ctfutil\nNetwork\nq\x00.", "TensorFlow StyleGAN"),
    "rosinality": (lambda: rosinality(True), "rosinality/stylegan2-pytorch"),
    "rosinality, old": (lambda: rosinality(False), "rosinality/stylegan2-pytorch"),
    "torch checkpoint": (torch_checkpoint, "is a PyTorch checkpoint"),
    "safetensors": (safetensors, "is a safetensors file"),
    "torchscript": (torchscript, "is a TorchScript module"),
    "npz": (npz, "is a NumPy archive"),
    "data set": (data_set, "is a data set of images"),
    "cut zip": (lambda: data_set()[:40], "is a damaged ZIP archive"),
    "png": (png, "is a PNG image"),
    "gzip": (lambda: b"\x1f\x8b\x08\x00abcdefgh", "is a gzip archive, not a network pickle: unpack it"),
    "text": (lambda: b"hello, world", "is not a pickle"),
    "other pickle": (lambda: pickle.dumps({"a": 1}), "no network"),
    "list": (lambda: pickle.dumps([1, 2]), "no network"),
    "protocol 0": (lambda: pickle.dumps({"a": 1}, protocol=0), "is not a pickle"),
    "future protocol": (lambda: b"\x80\x63N.", "protocol 99"),
    "two pickles": (lambda: pickle.dumps({}) + pickle.dumps({}), "after the end of its pickle"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("option", ["--gan", "--teacher"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_kind_of_file(kind, option, tmp_path, fixture_path):
    make, sentence = WRONG[kind]
    path = tmp_path / "network.pkl"
    path.write_bytes(make())
    good = {"--gan": "sg2ada/b_cond16.pkl", "--teacher": "edm/s4_sid_ddpmpp_cond16.pkl"}
    files = {name: str(fixture_path(file)) for name, file in good.items()} | {option: str(path)}
    result = CliRunner().invoke(cli.main, [f"{name}={file}" for name, file in files.items()])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {path} ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def run(*args: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, [str(arg) for arg in args])
    return result.exit_code, result.stderr


def test_networks_given_the_wrong_way_round(fixture_path):
    gan, teacher = fixture_path("sg2ada/b_cond16.pkl"), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    for other in (gan, teacher):
        code, message = run("--gan", other, "--teacher", gan)
        assert code == 2 and str(gan) in message and "holds a StyleGAN generator" in message and "as --gan" in message


def test_generator_that_refine_does_not_rebuild(fixture_path, tmp_path):
    """One of a fork of StyleGAN3, with an argument that the original does not have."""
    pkl = pickles.load(fixture_path("sg3/s2_stylegan3t_uncond32.pkl"))
    pkl["G_ema"].attributes["_init_kwargs"]["novelty"] = 1
    pkl["G_ema"].meta["module_src"] = "# the fork's source\n"
    gan = tmp_path / "fork.pkl"
    pickles.save(pkl, gan)
    code, message = run("--gan", gan, "--teacher", fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))
    assert code == 2 and str(gan) in message and "'novelty'" in message and "--trust-pickle" in message


def test_folder_and_missing_file(tmp_path):
    code, message = run("--gan", tmp_path, "--teacher", tmp_path)
    assert code == 2 and "is a folder" in message
    code, message = run("--gan", tmp_path / "none.pkl", "--teacher", tmp_path)
    assert code == 2 and "none.pkl" in message and message.count("\n") == 1
