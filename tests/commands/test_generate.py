"""`python -m refine generate`: the images of StyleGAN's script, by an independent network; comparisons; refusals."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import pickles
from refine.commands import generate
from refine.errors import UserError
from refine.networks import sampling as seeds
from torch_utils import persistence

SUPPORT = Path(__file__).parents[1] / "support"


def run(*args: object):
    return CliRunner().invoke(generate.main, [*(str(arg) for arg in args), "--device=cpu"])


@pytest.fixture
def stylegan(monkeypatch):
    """A pickle's G_ema as its own repository opens it: plain `pickle.load`, another network than Refine's."""

    def give_source(meta):
        meta.module_src = (SUPPORT / "embedded_stylegan2.py").read_text(encoding="utf-8")
        return meta

    monkeypatch.setattr(persistence, "_import_hooks", [give_source])
    return lambda path: pickle.loads(path.read_bytes())["G_ema"]


def scripts_image(G, seed, class_index=None, psi=1.0, noise_mode="const"):
    """What the repository's script does for one seed: a latent in float64, one image at a time."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, G.z_dim))
    label = torch.zeros(1, G.c_dim)
    if class_index is not None:
        label[:, class_index] = 1
    image = G(z.float(), label, truncation_psi=psi, noise_mode=noise_mode)
    return (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)[0].numpy()


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_same_seed_same_image(fixture_path, tmp_path, stylegan, noise_mode):
    path = fixture_path("sg2ada/b_cond16.pkl")
    done = run(f"--network={path}", "--seeds=0-2,85", "--trunc=0.7", "--class=3", f"--noise-mode={noise_mode}",
               f"--outdir={tmp_path / 'out'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "Wrote 4 images" in done.stdout
    names = {"seed0000.png", "seed0001.png", "seed0002.png", "seed0085.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    G = stylegan(path)
    for name in names:
        expected = scripts_image(G, int(name[4:8]), class_index=3, psi=0.7, noise_mode=noise_mode)
        difference = np.abs(pixels(tmp_path / "out" / name) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # rounding at the edge of a grey level
        assert expected.std() > 10


def test_unconditional_and_grey(fixture_path, tmp_path, stylegan):
    path = fixture_path("sg2ada/d_gray16.pkl")
    done = run(f"--network={path}", "--seeds=12345", "--class=2", f"--outdir={tmp_path}")
    assert done.exit_code == 0 and "--class=2 is ignored" in done.stderr
    shown = pixels(tmp_path / "seed12345.png")
    assert shown.shape == (16, 16)
    assert np.abs(shown - scripts_image(stylegan(path), 12345)[:, :, 0]).max() <= 1


def test_random_noise_follows_the_seed(fixture_path, tmp_path):
    path = fixture_path("sg2ada/a_uncond32.pkl")
    for name, wanted in (("a", "4,7"), ("b", "7")):
        done = run(f"--network={path}", f"--seeds={wanted}", "--noise-mode=random", f"--outdir={tmp_path / name}")
        assert done.exit_code == 0, done.output
    assert (pixels(tmp_path / "a" / "seed0007.png") == pixels(tmp_path / "b" / "seed0007.png")).all()
    run(f"--network={path}", "--seeds=7", f"--outdir={tmp_path / 'c'}")
    assert (pixels(tmp_path / "a" / "seed0007.png") != pixels(tmp_path / "c" / "seed0007.png")).any()


def test_projected_w(fixture_path, golden, tmp_path):
    """The golden images of golden ws, through an .npz as StyleGAN's projector writes it."""
    arrays = golden("sg2ada/a_uncond32")
    np.savez(tmp_path / "projected_w.npz", w=arrays["ws_rand"])
    path = fixture_path("sg2ada/a_uncond32.pkl")
    done = run(f"--network={path}", f"--projected-w={tmp_path / 'projected_w.npz'}", f"--outdir={tmp_path / 'out'}")
    assert done.exit_code == 0, done.output
    count = len(arrays["ws_rand"])
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"proj{i:02d}.png" for i in range(count)]
    for index, image in enumerate(arrays["img_const_wsrand"]):
        expected = np.clip(image.transpose(1, 2, 0) * 127.5 + 128, 0, 255).astype(np.uint8)
        assert np.abs(pixels(tmp_path / "out" / f"proj{index:02d}.png") - expected).max() <= 1


def test_comparison(fixture_path, tmp_path, stylegan):
    path = fixture_path("sg2ada/b_cond16.pkl")
    original = pickles.load(path)
    state = {name: record.read() for name, record in pickles.named_tensors(original["G_ema"]).items()}
    state["synthesis.b16.torgb.bias"] += 0.1  # 12.75 grey levels, where nothing is clamped
    pickles.save(original, tmp_path / "refined.pkl", {"G_ema": state})
    done = run(f"--network={tmp_path / 'refined.pkl'}", "--seeds=0-4", "--trunc=0.7", "--class=0",
               f"--outdir={tmp_path / 'out'}", f"--compare={path}")  # fmt: skip
    assert done.exit_code == 0, done.output
    shown = pixels(tmp_path / "out" / "compare.png")
    assert shown.shape == (2 * 16, 2 * 3 * 16 + generate.GAP, 3)  # five in three columns
    G, squares = stylegan(path), []
    for seed in range(5):
        row, column = divmod(seed, 3)
        left = shown[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        right = shown[16 * row : 16 * row + 16, 48 + generate.GAP + 16 * column :][:, :16]
        assert np.abs(left - scripts_image(G, seed, 0, 0.7)).max() <= 1
        assert (right == pixels(tmp_path / "out" / f"seed{seed:04d}.png")).all()
        squares.append(np.square(right - left).mean())
    said = float(done.stdout.split("difference ")[1].split()[0])
    assert 1 < said <= 12.75 and said == pytest.approx(np.sqrt(np.mean(squares)), abs=0.5)
    assert (shown[16:, 32:48] == 255).all() and (shown[:, 48 : 48 + generate.GAP] == 255).all()


def test_large_comparisons_are_reduced():
    assert [generate._shrink(36, 256), generate._shrink(36, 1024), generate._shrink(1, 1024)] == [1, 2, 1]
    pictures = [Image.new("L", (4, 4), shade) for shade in (10, 20)]
    both = generate._side_by_side(pictures, pictures[::-1])
    assert both.size == (16 + generate.GAP, 4)
    assert [both.getpixel((x, 0)) for x in (0, 4, 8 + generate.GAP, 12 + generate.GAP)] == [10, 20, 20, 10]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-3,40", (0, 1, 2, 3, 40)), ("7", (7,)), ("1,1, 2 - 3", (1, 1, 2, 3)), ("4294967295", (4294967295,))],
)
def test_seeds(text, expected):
    assert seeds.parse_seeds(text) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        *(
            (wrong, "numbers and ranges such as 0-35,40")
            for wrong in ("", "a", "1-", "-1", "1,,2", "1.5", "²", "1-2-3")
        ),
        ("5-4", "must rise"),
        ("4294967296", "end by 4294967295"),
        ("0-4000000000", "more than 1,000,000 seeds"),
    ],
)
def test_wrong_seeds(text, sentence):
    with pytest.raises(UserError, match=sentence):
        seeds.parse_seeds(text)


def test_latents_need_no_float64_on_the_device():
    z = seeds.latent(3, 5)
    assert z.dtype == torch.float32
    assert torch.equal(z, torch.from_numpy(np.random.RandomState(3).randn(1, 5)).to(torch.float32))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds=0"], "has 5 classes: choose one with --class=0 to 4"),
        (["--seeds=0", "--class=5"], "has classes 0 to 4, not 5"),
        (["--seeds=0", "--class=-1"], "has classes 0 to 4, not -1"),
        (["--seeds=x", "--class=1"], "such as 0-35,40, not 'x'"),
        ([], "Give either --seeds"),
        (["--seeds=0", "--projected-w=w.npz"], "Give either --seeds"),
        (["--projected-w=w.npz", "--compare=x.pkl"], "--compare needs --seeds"),
        (["--projected-w=none.npz"], "none.npz is no .npz with an array w"),
        (["--projected-w={wrong}"], r"holds w of shape \[1, 6, 32\], and this generator needs \[N, 6, 48\]"),
        (["--projected-w={pickled}"], "is no .npz with an array w"),
        (["--seeds=0", "--class=0", "--compare={other}"], "--compare has z_dim 64 and --network 32"),
        (["--seeds=0", "--class=0", "--compare={teacher}"], "it holds an EDM denoiser"),
        (["--seeds=0", "--class=0", "--outdir={file}/x"], "Cannot write"),
    ],
)
def test_refusals(fixture_path, tmp_path, arguments, sentence):
    np.savez(tmp_path / "wrong.npz", w=np.zeros([1, 6, 32]))
    np.savez(tmp_path / "pickled.npz", w=np.array([{}], dtype=object))
    (tmp_path / "file").write_text("")
    names = {
        "wrong": tmp_path / "wrong.npz",
        "pickled": tmp_path / "pickled.npz",
        "other": fixture_path("sg2ada/a_uncond32.pkl"),
        "teacher": fixture_path("edm/s6_iddpm_adm_uncond16.pkl"),
        "file": tmp_path / "file",
    }
    given = [argument.format(**names) for argument in arguments]
    done = run(f"--network={fixture_path('sg2ada/b_cond16.pkl')}", f"--outdir={tmp_path / 'out'}", *given)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert re.search(sentence, " ".join(done.stderr.split())), done.stderr
    assert not list(tmp_path.glob("out/*"))
