"""`python -m refine inspect`: what it prints, as text and JSON, and the sources that it extracts."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from refine import pickles
from refine.commands import inspect
from refine.networks import registry


def run(*args: object):
    return CliRunner().invoke(inspect.main, [str(arg) for arg in args])


def test_json_of_a_gan(fixture_path):
    path = fixture_path("sg2ada/b_cond16.pkl")
    described = json.loads(fixture_path("sg2ada/b_cond16.json").read_text())
    shown = json.loads(run(path, "--json").stdout)
    assert shown["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shown["bytes"] == path.stat().st_size and shown["pickle_protocol"] == 4
    assert list(shown["entries"]) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    g_ema = shown["entries"]["G_ema"]
    assert g_ema["init_kwargs"] == described["G_init_kwargs"] and g_ema["rebuilt_by_refine"] is True
    assert (g_ema["c_dim"], g_ema["z_dim"], g_ema["img_resolution"], g_ema["num_ws"]) == (5, 32, 16, 6)
    discriminator = shown["entries"]["D"]
    assert discriminator["role"] == "discriminator" and discriminator["rebuilt_by_refine"] is False
    assert shown["entries"]["training_set_kwargs"]["value"] == described["training_set_kwargs"]
    assert shown["entries"]["augment_pipe"] == {"value": None}
    assert shown["sources"][0]["sha256"] == hashlib.sha256(b"# source removed\n").hexdigest()


def test_json_of_a_denoiser_is_strict_json(fixture_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    path = fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")
    shown = json.loads(run(path, "--json").stdout, parse_constant=refuse)
    described = json.loads(fixture_path("edm/s1_edm_ddpmpp_uncond16.json").read_text())
    ema = shown["entries"]["ema"]
    assert ema["parameters"] == described["num_params"] and ema["label_dim"] == 0 and ema["sigma_max"] == "inf"
    assert shown["entries"]["loss_fn"]["role"] == "loss"
    assert shown["entries"]["augment_pipe"]["init_kwargs"]["p"] == 0.12


def test_stylegan3_is_rebuilt_and_its_pipe_passed_through(fixture_path):
    text = run(fixture_path("sg3/s2_stylegan3t_uncond32.pkl")).stdout
    assert "G_ema: Generator, StyleGAN3 generator; rebuilt by Refine" in text
    assert "augment_pipe: AugmentPipe, augmentation pipe; passed through as it is" in text


def test_mismatch_names_the_first_key_and_both_shapes(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pkl["G_ema"].attributes["_init_kwargs"]["w_dim"] = 16
    pickles.save(pkl, tmp_path / "odd.pkl")
    text = run(tmp_path / "odd.pkl").stdout
    first = "synthesis.b4.conv1.affine.weight"
    assert f"not rebuilt because: Generator: {first} has shape (20, 32) in the pickle, (20, 16) expected" in text


def test_small_file_that_would_become_a_large_network(fixture_path, tmp_path, monkeypatch):
    """All tensors look at the one largest storage: what fits one of them a thousand times over fits no memory."""
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    tensors = pickles.named_tensors(pkl["G_ema"]).values()
    largest = max((tensor.storage for tensor in tensors), key=lambda storage: storage.blob.num_elements)
    for tensor in tensors:
        tensor.args = (largest, *tensor.args[1:])
    pickles.save(pkl, tmp_path / "x.pkl")
    assert "rebuilt by Refine" in run(tmp_path / "x.pkl").stdout
    monkeypatch.setattr(registry, "FREE_ELEMENTS", 0)
    assert "its tensors are views of far smaller storages" in run(tmp_path / "x.pkl").stdout


def test_extracted_sources(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    source = "raise SystemExit('ran')  # é\r\n"
    pkl["G_ema"].meta["module_src"] = source
    pkl["G_ema"].meta["class_name"] = "../../evil"
    pickles.save(pkl, tmp_path / "x.pkl")
    out = tmp_path / "deep" / "sources"
    result = run(tmp_path / "x.pkl", "--extract-source", out)
    assert result.exit_code == 0 and "Wrote 2 embedded sources" in result.stderr
    expected = {hashlib.sha256(text.encode()).hexdigest() + ".py": text for text in (source, "# source removed\n")}
    assert {file.name: file.read_bytes().decode() for file in out.iterdir()} == expected


def test_sources_cannot_be_extracted_into_a_file(fixture_path, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(fixture_path("sg2ada/d_gray16.pkl"), "--extract-source", tmp_path / "file" / "x")
    assert result.exit_code == 2 and str(tmp_path / "file" / "x") in result.stderr


def test_text_cannot_control_the_terminal(fixture_path, tmp_path):
    pkl = pickles.load(fixture_path("sg2ada/d_gray16.pkl"))
    pkl["G_ema"].meta["class_name"] = "Gen\x1b[2J\u202eerator"
    pkl.root["\x1b]0;title\x07"] = "\x1b[31m"
    pickles.save(pkl, tmp_path / "x.pkl")
    text = run(tmp_path / "x.pkl").stdout
    assert "Gen\\x1b[2J\\u202eerator" in text
    assert all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("name", ["sg2ada/b_cond16.oldstyle.pkl"])
def test_as_a_module(name, fixture_path):
    command = [sys.executable, "-m", "refine", "inspect", str(fixture_path(name))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "rebuilt by Refine" in result.stdout
