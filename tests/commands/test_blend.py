"""`python -m refine blend`: weights between two generators, and how far their images move."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from refine import load_generator, pickles
from refine.commands import blend
from refine.networks.sampling import images_of


def run(*args: object):
    return CliRunner().invoke(blend.main, [*(str(arg) for arg in args), "--device=cpu"])


def state(path, key="G_ema"):
    return {name: record.read() for name, record in pickles.named_tensors(pickles.load(path)[key]).items()}


@pytest.fixture
def pair(fixture_path, tmp_path):
    """A generator and one whose G and G_ema have moved, in different ways."""
    path = fixture_path("sg2ada/b_cond16.pkl")
    moved = {}
    generator = torch.Generator().manual_seed(0)
    for key, size in (("G", 0.3), ("G_ema", 0.1)):
        moved[key] = {n: t + size * torch.randn(t.shape, generator=generator) for n, t in state(path, key).items()}
    pickles.save(pickles.load(path), tmp_path / "refined.pkl", moved)
    return path, tmp_path / "refined.pkl"


def rms(one, other):
    """Gray levels, by NumPy."""
    a, b = (np.concatenate([np.clip(image.numpy(), -1, 1) for image in images]) for images in (one, other))
    return np.sqrt(np.mean(np.square((a.astype(np.float64) - b) * 127.5)))


def test_weights_are_interpolated_and_images_measured(pair, tmp_path):
    done = run(f"--from={pair[0]}", f"--to={pair[1]}", "--alpha=0.25", "--seeds=0-5", f"--out={tmp_path / 'out.pkl'}")
    assert done.exit_code == 0, done.output
    for key in ("G", "G_ema"):
        origin, refined, blended = (state(path, key) for path in (*pair, tmp_path / "out.pkl"))
        for name in origin:
            torch.testing.assert_close(blended[name], 0.75 * origin[name] + 0.25 * refined[name])
    out = pickles.load(tmp_path / "out.pkl")
    original = pickles.load(pair[1])
    assert list(out) == list(original) and out["G"].meta.keys() == original["G"].meta.keys()
    for name, record in pickles.named_tensors(original["D"]).items():
        assert torch.equal(record.read(), pickles.named_tensors(out["D"])[name].read())

    images = []
    for path in (*pair, tmp_path / "out.pkl"):
        G = load_generator(str(path)).network
        images.append([next(images_of(G, [seed], seed % G.c_dim)) for seed in range(6)])
    numbers = [float(n) for n in re.search(r"0\.25 +([\d.]+) +([\d.]+)", done.stdout).groups()]
    assert numbers == pytest.approx([rms(images[2], images[0]), rms(images[2], images[1])], abs=0.006)
    assert 0 < numbers[0] < numbers[1]


def test_ends_are_exact(pair, tmp_path):
    for alpha, end in (("0", pair[0]), ("1", pair[1])):
        done = run(f"--from={pair[0]}", f"--to={pair[1]}", f"--alpha={alpha}", f"--out={tmp_path / f'{alpha}.pkl'}")
        assert done.exit_code == 0, done.output
        for key in ("G", "G_ema"):
            written, expected = state(tmp_path / f"{alpha}.pkl", key), state(end, key)
            assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_several_alphas_are_measured_only(pair, tmp_path):
    done = run(f"--from={pair[0]}", f"--to={pair[1]}", "--alpha=0,0.5,1", "--seeds=0-1")
    rows = [[float(cell) for cell in line.split()] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == [0, 0.5, 1]
    assert rows[0][1] == 0 and rows[2][2] == 0 and rows[0][2] == rows[2][1] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"refined.pkl"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--to={ada}", "--alpha=1.5"], "from 0 (the original) to 1 (the refined one), not '1.5'"),
        (["--to={ada}", "--alpha=a"], "not 'a'"),
        (["--to={ada}", "--alpha=nan"], "not 'nan'"),
        (["--to={ada}", "--alpha=0,1", "--out=x.pkl"], "--out is for one --alpha"),
        (["--to={gray}"], "cannot be blended: only one of them has a tensor G.mapping.embed.weight"),
        (["--to={resnet}", "--from={orig}"], "cannot be blended: only one of them has a tensor G.synthesis.b8.skip"),
        (["--to={teacher}"], "in common to blend"),
        (["--to=nowhere.pkl"], "nowhere.pkl"),
    ],
)
def test_refusals(fixture_path, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    files = {"ada": "b_cond16", "gray": "d_gray16", "resnet": "c_resnet16", "orig": "c_orig16"}
    names = {key: fixture_path(f"sg2ada/{name}.pkl") for key, name in files.items()}
    names["teacher"] = fixture_path("edm/s6_iddpm_adm_uncond16.pkl")
    done = run(f"--from={names['ada']}", *(argument.format(**names) for argument in arguments))
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert sentence in " ".join(done.stderr.split()), done.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_an_input_never(pair, tmp_path):
    content = pair[1].read_bytes()
    (tmp_path / "there.pkl").write_text("mine")
    ends = (f"--from={pair[0]}", f"--to={pair[1]}")
    for out, more in (
        (pair[1], ["--force"]),
        (pair[1], []),
        (tmp_path / "there.pkl", []),
        (tmp_path / "x.md", ["--force"]),
    ):
        done = run(*ends, f"--out={out}", *more)
        assert done.exit_code == 2 and str(out) in done.stderr, done.output
    assert pair[1].read_bytes() == content and (tmp_path / "there.pkl").read_text() == "mine"
    assert run(*ends, "--seeds=0", f"--out={tmp_path / 'there.pkl'}", "--force").exit_code == 0
    assert pickles.load(tmp_path / "there.pkl")["G"]


def test_weights_that_are_not_finite(pair, tmp_path):
    weights = {key: state(pair[0], key) for key in ("G", "G_ema")}
    weights["G"]["mapping.fc0.weight"][0, 0] = torch.inf
    pickles.save(pickles.load(pair[0]), tmp_path / "inf.pkl", weights)
    for ends in ((tmp_path / "inf.pkl", pair[1]), (pair[0], tmp_path / "inf.pkl")):
        done = run(f"--from={ends[0]}", f"--to={ends[1]}", f"--out={tmp_path / 'x.pkl'}")
        assert done.exit_code == 2 and "inf.pkl" in done.stderr and "G.mapping.fc0.weight" in done.stderr
    assert not (tmp_path / "x.pkl").exists()


def test_from_a_pickle_with_g_alone(fixture_path, tmp_path):
    """The other one, which has both, is not to blame."""
    original = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    del original.root["G_ema"]
    pickles.save(original, tmp_path / "g.pkl", {})
    done = run(f"--from={tmp_path / 'g.pkl'}", f"--to={fixture_path('sg2ada/b_cond16.pkl')}")
    assert done.exit_code == 2 and "g.pkl has no G_ema" in " ".join(done.stderr.split())


def test_shapes_must_agree(fixture_path, tmp_path):
    path = fixture_path("sg2ada/b_cond16.pkl")
    other = pickles.load(path)
    tensor = pickles.named_tensors(other["G"])["mapping.w_avg"]
    tensor.args = (*tensor.args[:2], (24,), *tensor.args[3:])
    pickles.save(other, tmp_path / "other.pkl")
    done = run(f"--from={path}", f"--to={tmp_path / 'other.pkl'}")
    assert done.exit_code == 2 and "G.mapping.w_avg is [48] in one and [24] in the other" in " ".join(
        done.stderr.split()
    )
