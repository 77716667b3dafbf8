"""`python -m refine generate`: the images of StyleGAN's script, by an independent network; comparisons; refusals."""

from __future__ import annotations

import importlib.util
import pickle
import re
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import load_generator, pickles
from refine.commands import generate, video
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
    """Draws as the repository's script does for one seed: a latent in float64, one image at a time."""
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
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # rounding at the edge of a gray level
        assert expected.std() > 10


def test_unconditional_and_gray(fixture_path, tmp_path, stylegan):
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


STYLEGAN3 = "sg3/s3_stylegan3r_uncond16.pkl"


def pictures(fixture_path, tmp_path, *arguments):
    folder = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    done = run(f"--network={fixture_path(STYLEGAN3)}", "--seeds=0-3", f"--outdir={folder}", *arguments)
    assert done.exit_code == 0, done.output
    return np.stack([pixels(file) for file in sorted(folder.iterdir())])


def test_rotation_of_stylegan3(fixture_path, tmp_path):
    """A quarter turn is exact: neither the grid of pixels nor the filters distinguish the axes."""
    original = pictures(fixture_path, tmp_path)
    turned = pictures(fixture_path, tmp_path, "--rotate=90")
    expected = np.rot90(original, 1, axes=(1, 2))  # counterclockwise
    assert np.abs(turned - expected).max() <= 1 and np.abs(turned - original).mean() > 10
    back = pictures(fixture_path, tmp_path, "--rotate=-270")
    assert np.abs(back - turned).max() <= 1


def test_translation_of_stylegan3(fixture_path, tmp_path):
    """By whole pixels: to the right and down; only what comes in from beyond the canvas is not known."""
    original = pictures(fixture_path, tmp_path)
    moved = pictures(fixture_path, tmp_path, "--translate=0.125,-0.0625")  # 2 and -1 of 16 pixels
    difference = np.abs(moved[:, 4:12, 4:12] - original[:, 5:13, 2:10]).mean()
    assert difference < 0.15 * np.abs(moved[:, 4:12, 4:12] - original[:, 4:12, 4:12]).mean()


def test_matrix_is_that_of_stylegan3s_script(fixture_path, golden):
    """As in the golden file: of the forward matrix, the inverse."""
    matrix = generate._transform([load_generator(str(fixture_path(STYLEGAN3))).network], (0.3, -0.1), 30.0)
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    forward = np.array([[cos, sin, 0.3], [-sin, cos, -0.1], [0, 0, 1]])
    np.testing.assert_allclose(matrix.numpy() @ forward, np.eye(3), atol=1e-6)


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
    state["synthesis.b16.torgb.bias"] += 0.1  # 12.75 gray levels, where nothing is clamped
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
        ("5-4", "must rise: write 4-5"),
        ("4294967296", "from 0 to 4294967295, which 4294967296"),
        ("0-99999999999", "which 99999999999 is beyond"),
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
        (["--seeds=0", "--class=-1"], "from 0 to 4, several, or all, not '-1'"),
        (["--seeds=0", "--class=x"], "from 0 to 4, several, or all, not 'x'"),
        (["--seeds=0", "--class=3-5"], "has classes 0 to 4, not 5"),
        (["--seeds=0", "--class=1", "--label=1,0,0,0,0"], "--class and --label"),
        (["--seeds=0", "--label=1,0"], r"--label=1,0 has shape \[2\], and this generator needs \[N, 5\]"),
        (["--seeds=0", "--label=1,0,0,0,nan"], "not finite"),
        (["--seeds=0", "--label=one"], "5 numbers such as 0.2,0.8"),
        (["--seeds=0", "--label=none.npy"], r"none\.npy cannot be read"),
        (["--seeds=0", "--class=1", "--trunc=nan"], "--trunc must be a number, not 'nan'"),
        (["--seeds=0", "--class=1", "--trunc=inf"], "--trunc must be a number, not 'inf'"),
        (["--seeds=0", "--class=1", "--trunc=1e38"], "seed0000 is not finite"),
        (["--seeds=0", "--class=1", "--noise-seed=3"], "--noise-seed has no effect on --noise-mode=const"),
        (["--seeds=0", "--class=1", "--translate=0,1"], "--translate needs a StyleGAN3 generator"),
        (["--seeds=0", "--class=1", "--rotate=3"], "--rotate needs a StyleGAN3 generator"),
        (["--seeds=0", "--class=1", "--translate=1"], "--translate must be two numbers such as .*, not '1'"),
        (["--seeds=0", "--class=1", "--translate=1,nan"], "--translate must be a number, not 'nan'"),
        (["--latents=none.npy", "--class=1"], r"none\.npy cannot be read"),
        (["--latents={wrong}", "--class=1"], r"wrong\.npz has shape \[1, 6, 32\]"),
        (["--seeds=0", "--class=1", "--video=x.avi"], r"--video must be a name that ends in \.mp4"),
        (["--seeds=0", "--class=1", "--video={file}.mp4"], "at least two --seeds"),
        (["--seeds=x", "--class=1"], "such as 0-35,40, not 'x'"),
        ([], "one of --seeds"),
        (["--seeds=0", "--projected-w=w.npz"], "one of --seeds"),
        (["--seeds=0", "--latents=w.npz"], "one of --seeds"),
        (["--projected-w=w.npz", "--compare=x.pkl"], "--compare needs --seeds"),
        (["--projected-w=w.npz", "--class=1"], "--class needs --seeds"),
        (["--projected-w=none.npz"], r"none\.npz cannot be read"),
        (["--projected-w={wrong}"], r"has shape \[1, 6, 32\], and this generator needs \[N, 6, 48\]"),
        (["--projected-w={pickled}"], r"pickled\.npz cannot be read"),
        (["--projected-w={two}"], r"two\.npz holds a, b, and --projected-w reads an array named w"),
        (["--projected-w={cut}"], r"cut\.npz"),
        (["--projected-w={text}"], r"text\.npz"),
        (["--seeds=0", "--class=0", "--compare={other}"], "--compare has z_dim 64 and --network 32"),
        (["--seeds=0", "--class=0", "--compare={teacher}"], "it holds an EDM denoiser"),
        (["--seeds=0", "--class=0", "--outdir={file}/x"], "Cannot write"),
    ],
)
def test_refusals(fixture_path, tmp_path, arguments, sentence):
    np.savez(tmp_path / "wrong.npz", w=np.zeros([1, 6, 32]))
    np.savez(tmp_path / "pickled.npz", w=np.array([{}], dtype=object))
    (tmp_path / "file").write_text("")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(tmp_path / "text.npz", w=np.array(["a"]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "wrong.npz").read_bytes()[:200])
    names = {
        "wrong": tmp_path / "wrong.npz",
        "pickled": tmp_path / "pickled.npz",
        "other": fixture_path("sg2ada/a_uncond32.pkl"),
        "teacher": fixture_path("edm/s6_iddpm_adm_uncond16.pkl"),
        "file": tmp_path / "file",
        **{name: tmp_path / f"{name}.npz" for name in ("two", "text", "cut")},
    }
    given = [argument.format(**names) for argument in arguments]
    done = run(f"--network={fixture_path('sg2ada/b_cond16.pkl')}", f"--outdir={tmp_path / 'out'}", *given)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert re.search(sentence, " ".join(done.stderr.split())), done.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.mp4"))


# -- several classes, labels that are vectors, latents in files, a seed for the noise -----------------


def test_several_classes(fixture_path, tmp_path, stylegan):
    path = fixture_path("sg2ada/b_cond16.pkl")
    done = run(f"--network={path}", "--seeds=3,4", "--class=0,2-3", f"--outdir={tmp_path / 'some'}")
    assert done.exit_code == 0, done.output
    names = {f"seed000{seed}-class{k}.png" for seed in (3, 4) for k in (0, 2, 3)}
    assert {file.name for file in (tmp_path / "some").iterdir()} == names
    G = stylegan(path)
    for name in names:
        seed, k = int(name[4:8]), int(name[14])
        assert np.abs(pixels(tmp_path / "some" / name) - scripts_image(G, seed, k)).max() <= 1
    assert run(f"--network={path}", "--seeds=3", "--class=all", f"--outdir={tmp_path / 'all'}").exit_code == 0
    assert len(list((tmp_path / "all").iterdir())) == 5


def test_labels_that_are_vectors(fixture_path, tmp_path, stylegan):
    path = fixture_path("sg2ada/b_cond16.pkl")
    mixed = np.array([0.25, 0, 0.75, 0, 0])
    np.save(tmp_path / "labels.npy", np.stack([mixed, np.eye(5)[4]]))
    assert run(f"--network={path}", "--seeds=1", "--label=.25,0,.75,0,0", f"--outdir={tmp_path / 'a'}").exit_code == 0
    done = run(f"--network={path}", "--seeds=1", f"--label={tmp_path / 'labels.npy'}", f"--outdir={tmp_path / 'b'}")
    assert done.exit_code == 0, done.output
    z = torch.from_numpy(np.random.RandomState(1).randn(1, 32)).float()
    image = stylegan(path)(z, torch.from_numpy(mixed)[None].float(), noise_mode="const")
    expected = (image.permute(0, 2, 3, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)[0].numpy()
    for name in ("a/seed0001.png", "b/seed0001-label0.png"):
        assert np.abs(pixels(tmp_path / name) - expected).max() <= 1
    last = pixels(tmp_path / "b" / "seed0001-label1.png")
    assert np.abs(last - scripts_image(stylegan(path), 1, 4)).max() <= 1


@pytest.mark.parametrize("kind", ["npy", "npz", "npz with another name", "one row"])
def test_latents_from_a_file(fixture_path, tmp_path, kind):
    """The latents of two seeds give the images of these seeds."""
    path = fixture_path("sg2ada/a_uncond32.pkl")
    z = np.concatenate([np.random.RandomState(seed).randn(1, 64) for seed in (5, 6)])
    file = tmp_path / ("z.npy" if kind in ("npy", "one row") else "z.npz")
    if file.suffix == ".npy":
        np.save(file, z[0] if kind == "one row" else z)
    else:
        np.savez(file, **{"z" if kind == "npz" else "latents_of_mine": z})
    assert run(f"--network={path}", f"--latents={file}", f"--outdir={tmp_path / 'out'}").exit_code == 0
    assert run(f"--network={path}", "--seeds=5,6", f"--outdir={tmp_path / 'seeds'}").exit_code == 0
    for index in range(1 if kind == "one row" else 2):
        drawn = pixels(tmp_path / "out" / f"latent{index:04d}.png")
        assert (drawn == pixels(tmp_path / "seeds" / f"seed{index + 5:04d}.png")).all()


def test_a_seed_for_the_noise(fixture_path, tmp_path):
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    for name, more in (("own", []), ("7", ["--noise-seed=7"]), ("4", ["--noise-seed=4"])):
        done = run(network, "--seeds=4,7", "--noise-mode=random", f"--outdir={tmp_path / name}", *more)
        assert done.exit_code == 0, done.output
    drawn = {name: [pixels(tmp_path / name / f"seed000{seed}.png") for seed in (4, 7)] for name in ("own", "7", "4")}
    assert (drawn["own"][1] == drawn["7"][1]).all() and (drawn["own"][0] == drawn["4"][0]).all()
    assert (drawn["7"][0] != drawn["4"][0]).any()


def test_images_are_not_overwritten(fixture_path, tmp_path):
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    (tmp_path / "seed0002.png").write_text("mine")
    done = run(network, "--seeds=0-3", f"--outdir={tmp_path}")
    assert done.exit_code == 2 and "seed0002.png" in done.stderr and "--force" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["seed0002.png"]
    assert run(network, "--seeds=0-3", f"--outdir={tmp_path}", "--force").exit_code == 0
    assert pixels(tmp_path / "seed0002.png").shape == (32, 32, 3)


def test_a_seed_that_is_given_twice_is_one_image(fixture_path, tmp_path):
    done = run(f"--network={fixture_path('sg2ada/a_uncond32.pkl')}", "--seeds=0,0,0", f"--outdir={tmp_path}")
    assert done.exit_code == 0 and "Wrote 1 image to" in done.stdout


def test_the_folder_of_a_run_means_its_best_network(fixture_path, tmp_path, monkeypatch):
    folder = tmp_path / "training-runs" / "00000-a"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    empty = run("--network=training-runs/latest", "--seeds=0", "--outdir=a")
    assert empty.exit_code == 2 and "00000-a" in empty.stderr
    for name, file in (("000000", "a_uncond32"), ("000004", "a_uncond32"), ("best", "c_orig16")):
        name = f"network-{name}.pkl" if name == "best" else f"network-snapshot-{name}.pkl"
        (folder / name).write_bytes(fixture_path(f"sg2ada/{file}.pkl").read_bytes())
    for spec, outdir in (("training-runs/latest", "a"), (folder, "b"), ("latest", "c")):
        done = run(f"--network={spec}", "--seeds=0", f"--outdir={outdir}")
        assert done.exit_code == 0 and "network-best.pkl" in done.stderr, done.output
        assert pixels(Path(outdir) / "seed0000.png").shape[0] == 16
    (folder / "network-best.pkl").unlink()
    assert "network-snapshot-000004.pkl" in run(f"--network={folder}", "--seeds=0", "--outdir=d").stderr


def test_the_home_folder(fixture_path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "g.pkl").write_bytes(fixture_path("sg2ada/a_uncond32.pkl").read_bytes())
    np.save(tmp_path / "z.npy", np.zeros(64))
    done = run("--network=~/g.pkl", "--latents=~/z.npy", "--outdir=~/out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "latent0000.png").is_file() and not list(Path().iterdir())


# -- videos -------------------------------------------------------------------------------------------


def frames_of(path):
    """All frames uint8 [H, W, 3] of a video, by ffmpeg."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3).astype(int) for frame in reader]


def enlarged(image, factor):
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def test_video_from_seed_to_seed(fixture_path, tmp_path):
    """Every seed is a frame, in its turn; between them the image moves, and the last one leads back to the first."""
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    done = run(network, "--seeds=1-3", "--frames=6", "--fps=12", f"--video={tmp_path / 'v.mp4'}",
               f"--outdir={tmp_path / 'out'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "18 frames, 1.5 s" in done.stdout and {p.name for p in tmp_path.iterdir()} == {"v.mp4", "out"}
    frames = frames_of(tmp_path / "v.mp4")
    assert len(frames) == 18 and frames[0].shape == (256, 256, 3)
    for index, seed in enumerate((1, 2, 3)):
        expected = enlarged(pixels(tmp_path / "out" / f"seed000{seed}.png"), 8)
        assert np.abs(frames[6 * index] - expected).mean() < 6  # lossy
        distances = [np.abs(frame - expected).mean() for frame in frames]
        assert np.argmin(distances) == 6 * index
    steps = [np.abs(a - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert min(steps) > 0.5 and max(steps) < 40


def test_video_of_classes_and_of_ws(fixture_path, tmp_path, golden):
    network = f"--network={fixture_path('sg2ada/b_cond16.pkl')}"
    done = run(network, "--seeds=1", "--class=0,3", "--frames=2", f"--video={tmp_path / 'c.mp4'}")
    assert done.exit_code == 0 and len(frames_of(tmp_path / "c.mp4")) == 4, done.output
    np.save(tmp_path / "w.npy", golden("sg2ada/a_uncond32")["ws_rand"])
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    done = run(network, f"--projected-w={tmp_path / 'w.npy'}", "--frames=2", f"--video={tmp_path / 'w.mp4'}")
    assert done.exit_code == 0, done.output
    assert len(frames_of(tmp_path / "w.mp4")) == 2 * len(golden("sg2ada/a_uncond32")["ws_rand"])


def test_video_from_one_generator_to_the_other(fixture_path, tmp_path):
    """The first frame is of --compare, the middle one of --network, and the last one nearly back."""
    path = fixture_path("sg2ada/a_uncond32.pkl")
    original = pickles.load(path)
    state = {name: record.read() for name, record in pickles.named_tensors(original["G_ema"]).items()}
    state["synthesis.b32.torgb.bias"] += 0.4
    pickles.save(original, tmp_path / "refined.pkl", {"G_ema": state})
    done = run(f"--network={tmp_path / 'refined.pkl'}", f"--compare={path}", "--seeds=0-2", "--frames=4",
               f"--video={tmp_path / 'm.mp4'}", f"--outdir={tmp_path / 'out'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    frames = frames_of(tmp_path / "m.mp4")
    assert len(frames) == 8 and frames[0].shape == (256, 256, 3)  # three seeds in two columns
    brightness = [frame[:128].mean() for frame in frames]
    assert np.argmin(brightness) == 0 and np.argmax(brightness) == 4
    assert brightness[1] == pytest.approx(brightness[7], abs=2) and brightness[4] - brightness[0] > 15
    assert np.abs(frames[4][:128, :128] - enlarged(pixels(tmp_path / "out" / "seed0000.png"), 4)).mean() < 6
    other = fixture_path("sg2ada/c_orig16.pkl")
    refused = run(f"--network={path}", f"--compare={other}", "--seeds=0", f"--video={tmp_path / 'x.mp4'}")
    assert refused.exit_code == 2 and not (tmp_path / "x.mp4").exists()


def test_a_video_is_complete_or_not_there(fixture_path, tmp_path, monkeypatch):
    network = f"--network={fixture_path('sg2ada/a_uncond32.pkl')}"
    (tmp_path / "v.mp4").write_text("mine")
    done = run(network, "--seeds=0-1", f"--video={tmp_path / 'v.mp4'}")
    assert done.exit_code == 2 and "v.mp4" in done.stderr and (tmp_path / "v.mp4").read_text() == "mine"
    drawn = []

    def draw_two(*args):
        drawn.append(generate.draw(*args))
        if len(drawn) > 2:
            raise KeyboardInterrupt
        return drawn[-1]

    monkeypatch.setattr(video, "draw", draw_two)
    done = run(network, "--seeds=0-1", "--frames=9", f"--video={tmp_path / 'v.mp4'}", "--force")
    assert done.exit_code == 130 and [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_text() == "mine"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = run(network, "--seeds=0-1", f"--video={tmp_path / 'w.mp4'}")
    assert done.exit_code == 2 and "pip install imageio-ffmpeg" in done.stderr


def test_latents_move_on_a_great_circle():
    """Half way between orthogonal latents, and never through the middle of the sphere."""
    start, end = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    middle = video.slerp(start, end, 0.5)
    torch.testing.assert_close(middle, torch.tensor([[1.0, 1.0, 0.0]]) * 3 / 2**0.5)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 1, 512, generator=generator)
    lengths = [video.slerp(z[0], z[1], t).norm() for t in (0.0, 0.3, 0.7, 1.0)]
    assert min(lengths) > 0.99 * min(z[0].norm(), z[1].norm())
    torch.testing.assert_close(video.slerp(z[0], z[1], 0.0), z[0])
    torch.testing.assert_close(video.slerp(z[0], z[1], 1.0), z[1])
    torch.testing.assert_close(video.slerp(z[0], z[0], 0.5), z[0])
    assert video.slerp(z[0], -z[0], 0.5).isfinite().all()


def test_tiny_and_odd_images_become_frames():
    frame = video._frame([torch.zeros(1, 1, 15, 15)] * 2)
    assert frame.shape == (135 + 1, 270, 3) and frame.dtype == np.uint8
    assert video._frame([torch.zeros(1, 3, 1024, 1024)] * 25).shape[0] <= video.MAX_SIDE
