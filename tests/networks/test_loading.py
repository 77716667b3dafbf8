"""From a path to a network that is ready to use."""

from __future__ import annotations

import pickletools
import subprocess
import sys

import pytest
import torch

import refine
from refine import load_generator, load_teacher, pickles


def test_generator(fixture_path, golden):
    loaded = load_generator(str(fixture_path("sg2ada/b_cond16.pkl")))
    assert loaded.key == "G_ema" and loaded.architecture.role == "generator"
    network = loaded.network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    assert {(t.dtype, t.device.type) for t in network.state_dict().values()} == {(torch.float32, "cpu")}
    arrays = golden("sg2ada/b_cond16")
    z, c = (torch.from_numpy(arrays[name]) for name in ("in.z", "in.c"))
    image = network(z, c, truncation_psi=0.7, noise_mode="const")
    expected = torch.from_numpy(arrays["G_call_const_psi0.7"])
    assert (image - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_teacher(fixture_path, golden):
    loaded = load_teacher(str(fixture_path("edm/s2_edm_adm_cond16.pkl")))
    assert loaded.key == "ema" and loaded.architecture.role == "denoiser"
    arrays = golden("edm/s2_edm_adm_cond16")
    x, sigma, labels = (torch.from_numpy(arrays[name]) for name in ("in.x", "in.sigma", "in.labels"))
    expected = torch.from_numpy(arrays["D"])
    assert (loaded.network(x, sigma, labels) - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_pickle_without_moving_average(fixture_path, tmp_path):
    """Some snapshots hold only G."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    del pkl.root["G_ema"]
    pickles.save(pkl, tmp_path / "g.pkl")
    assert load_generator(str(tmp_path / "g.pkl")).key == "G"


def test_pickle_of_something_else(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pickles.save(pickles.NetworkPickle({"D": pkl["D"]}, 4, pkl.path), tmp_path / "d.pkl")
    with pytest.raises(pickles.PickleError, match=r"d\.pkl: it holds no generator; its entries are 'D'"):
        load_generator(str(tmp_path / "d.pkl"))
    pickles.save(pickles.NetworkPickle({"G_ema": pkl["D"]}, 4, pkl.path), tmp_path / "d.pkl")
    with pytest.raises(pickles.PickleError, match="it holds a discriminator as 'G_ema', where a generator is expected"):
        load_generator(str(tmp_path / "d.pkl"))


def test_half_precision_weights_become_float32(fixture_path, tmp_path):
    """Compact pickles store float16; the contract of the networks is float32."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    tensors = pickles.named_tensors(pkl["G_ema"])
    name, record = next((n, t) for n, t in tensors.items() if n.endswith("conv1.weight"))
    blob = record.storage.blob
    values = blob.tensor().half()
    whole = bytes(blob.archive)
    archive = whole[: blob.data_start].replace(b"FloatStorage", b"HalfStorage") + values.numpy().tobytes()
    path = tmp_path / "half.pkl"
    pickles.save(pkl, path)
    # The archive is two bytes shorter per element: its length field stands right before it.
    old = b"B" + len(whole).to_bytes(4, "little") + whole
    data = path.read_bytes()
    assert data.count(old) == 1
    data = data.replace(old, b"B" + len(archive).to_bytes(4, "little") + archive)
    path.write_bytes(unframed(data))
    network = load_generator(str(path)).network
    weight = network.state_dict()[name]
    assert weight.dtype == torch.float32 and torch.equal(weight.flatten(), values.float())


def unframed(data: bytes) -> bytes:
    """A protocol 4 pickle without frames, whose lengths a change within would make wrong."""
    out, at = bytearray(), 0
    for position in [position for opcode, _, position in pickletools.genops(data) if opcode.name == "FRAME"]:
        out += data[at:position]
        at = position + 9
    return bytes(out + data[at:])


def test_loading_does_not_import_the_compiler(fixture_path):
    """PyTorch imports it (seconds) for innocent arithmetic on the meta device; the constructors avoid that."""
    gans = [
        str(fixture_path(f"{name}.pkl"))
        for name in (
            *("sg2ada/b_cond16", "sg2ada/c_resnet16", "sg3/s1_stylegan2_uncond32", "r3gan/s1_r3gan_uncond32"),
            *("sg3/s2_stylegan3t_uncond32", "sg3/s3_stylegan3r_uncond16", "sgxl/s1_sgxl_stem_cond16"),
        )
    ]
    names = ("s2_edm_adm_cond16", "s3_vp_ddpmpp_uncond16", "s5_ve_ncsnpp_uncond16", "s6_iddpm_adm_uncond16")
    teachers = [str(fixture_path(f"edm/{name}.pkl")) for name in names] + [str(fixture_path("edm2/s1_edm2_cond16.pkl"))]
    code = f"""
import sys, refine
for path in {gans!r}: refine.load_generator(path)
for path in {teachers!r}: refine.load_teacher(path)
print(sorted({{"torch._dynamo", "sympy"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names():
    assert refine.load_generator is load_generator
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = refine.nonsense
    code = "import sys, refine; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
