"""The command that made the files: its parts, for a few steps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner

from benchmarks.studies import unconditional
from refine import load_generator, load_teacher, zoo
from refine.digits import digits, figures
from refine.digits.make import data
from refine.digits.make.__main__ import main
from refine.digits.make.gan import GanOptions, make_networks, random_labels, train_gan
from refine.digits.make.teacher import TeacherOptions, make_network, train_teacher
from refine.digits.sources.edm import EDMLoss
from refine.digits.sources.stylegan2 import MinibatchStdLayer

TINY_GAN = GanOptions(kimg=0.048, batch=8, z_dim=8, channels=8, mapping_layers=1, r1_interval=2)
TINY_TEACHER = TeacherOptions(kimg=0.048, batch=8, model_channels=8, channel_mult=(1, 2), attn_resolutions=())


@pytest.fixture(scope="module")
def splits():
    pytest.importorskip("sklearn")
    return data.load_splits()


def test_the_split_is_the_one_that_ships(splits):
    assert sum(len(images) for images in splits.values()) == 1797
    for name, images in splits.items():
        shipped = digits.shipped_split(name)
        assert torch.equal(shipped.pixels, images.pixels)
        assert torch.equal(shipped.classes, images.classes)


def test_no_image_is_in_two_splits(splits):
    from sklearn.datasets import load_digits

    again = data.load_splits()
    assert all(torch.equal(again[name].pixels, images.pixels) for name, images in splits.items())
    all_images = {data.enlarge(image).tobytes() for image in load_digits().images}
    sets = [{image.numpy().tobytes() for image in images.pixels} for images in splits.values()]
    assert set.union(*sets) == all_images
    assert sum(len(part) for part in sets) == len(all_images)


def test_enlarging_keeps_levels_and_the_mean():
    white = data.enlarge(np.full([8, 8], 16.0))
    assert white.shape == (1, 16, 16) and white.dtype == np.uint8 and (white == 255).all()
    image = np.full([8, 8], 8.0)
    image[3:5, 3:5] = 10
    assert float(data.enlarge(image).mean()) == pytest.approx(float(image.mean()) * 255 / 16, abs=1)


def test_a_dataset_survives_its_file(splits, tmp_path):
    first = digits.Images(splits["test"].pixels[:7], splits["test"].classes[:7])
    data.write_dataset(first, tmp_path / "a.zip")
    data.write_dataset(first, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    read = digits.read_dataset(tmp_path / "a.zip")
    assert torch.equal(read.pixels, first.pixels) and torch.equal(read.classes, first.classes)


def test_gan_training_moves_all_three_networks(splits):
    torch.manual_seed(0)
    untrained = make_networks(TINY_GAN)
    torch.manual_seed(0)
    gan = train_gan(splits["train"], TINY_GAN)
    for before, after in ((untrained.G, gan.G), (untrained.D, gan.D), (untrained.G_ema, gan.G_ema)):
        parameters = dict(after.named_parameters())
        still = {name for name, value in before.named_parameters() if torch.equal(value, parameters[name])}
        assert still == set()
        assert not after.training and not any(p.requires_grad for p in after.parameters())
    assert gan.G.mapping.w_avg.abs().sum() > 0
    assert torch.equal(gan.G.mapping.w_avg, gan.G_ema.mapping.w_avg)
    image = gan.G_ema(torch.randn(3, 8), random_labels(3))
    assert image.shape == (3, 1, 16, 16) and torch.isfinite(image).all()


def test_networks_without_labels(splits, tmp_path):
    """Both files of benchmarks/studies/unconditional.py are written, not made again, and draw images."""
    tiny = replace(TINY_GAN, c_dim=0), replace(TINY_TEACHER, label_dim=0)
    paths = unconditional.make_pair(tmp_path, *tiny)
    made = [path.stat().st_mtime_ns for path in paths]
    assert unconditional.make_pair(tmp_path, *tiny) == paths
    assert [path.stat().st_mtime_ns for path in paths] == made
    gan, teacher = load_generator(str(paths[0])), load_teacher(str(paths[1]))
    assert (gan.network.c_dim, teacher.network.label_dim) == (0, 0)
    assert gan.pickle["training_set_kwargs"]["use_labels"] is teacher.pickle["dataset_kwargs"]["use_labels"] is False
    found = unconditional.judged(figures.generator_sampler(gan.network), splits["test"], 30)
    assert sum(found.class_shares) == pytest.approx(1)


def test_entropy_of_classes():
    """1 where all occur alike, 0 where there is one, and the logarithm's base does not matter."""
    assert unconditional.entropy((0.25,) * 4) == pytest.approx(1)
    assert unconditional.entropy((1.0, 0.0, 0.0)) == 0
    assert unconditional.entropy((0.5, 0.5, 0.0, 0.0)) == pytest.approx(math.log(2) / math.log(4))


def test_minibatch_standard_deviation():
    """The closed form for two groups of two: half the difference of each pair, averaged over the features."""
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = MinibatchStdLayer(group_size=2)(x)
    assert torch.equal(y[:, :3], x)
    pairs = [(x[0] - x[2]).abs().mean() / 2, (x[1] - x[3]).abs().mean() / 2]
    expected = torch.stack([pairs[0], pairs[1], pairs[0], pairs[1]]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert torch.allclose(y[:, 3:], expected, atol=1e-6)


@pytest.mark.slow
def test_teacher_training_lowers_its_loss(splits):
    images, loss_fn = splits["train"], EDMLoss()

    def loss(net):
        torch.manual_seed(1)
        with torch.no_grad():
            return float(loss_fn(net, images.x0[:200], images.one_hot[:200]).mean())

    options = TeacherOptions(
        kimg=2, batch=32, model_channels=8, channel_mult=(1, 2), attn_resolutions=(), ema_halflife_kimg=0.2
    )
    torch.manual_seed(0)
    untrained = loss(make_network(options))
    torch.manual_seed(0)
    assert loss(train_teacher(images, options)) < 0.7 * untrained


def test_loss_of_a_network_that_returns_zeros():
    """Then the loss is lambda(sigma) x0^2, whose mean is known: E[1 / sd^2 + 1 / sigma^2] for ln sigma ~ N(m, s^2)."""
    torch.manual_seed(0)
    loss = EDMLoss(P_mean=0.3, P_std=0.5)(lambda x, sigma, labels: torch.zeros_like(x), torch.ones(100_000, 1, 1, 1))
    assert float(loss.mean()) == pytest.approx(4 + np.exp(-2 * 0.3 + 2 * 0.5**2), rel=0.02)


def test_distance_precision_and_recall_as_their_papers_define_them(splits):
    """The matrix root of the covariances' product, and balls around features, written out here once more."""
    images, reals, detector = splits["train"], splits["selection"], digits.shipped_detector()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:400]
    pixels, classes = images.pixels[order], images.classes[order]
    found = figures.figures(pixels, classes, reals, detector)
    fakes, real = (detector(x, return_features=True).double() for x in (pixels, reals.pixels))
    (m1, s1), (m2, s2) = ((x.mean(0).numpy(), np.cov(x.numpy(), rowvar=False)) for x in (fakes, real))
    root = np.real(scipy.linalg.sqrtm(s1 @ s2))
    assert found.fid == pytest.approx(np.square(m1 - m2).sum() + np.trace(s1 + s2 - 2 * root), rel=1e-6)
    first = fakes[: len(real)]
    inside = [
        float((torch.cdist(a, b) <= figures.reach(b)[None]).any(dim=1).double().mean())
        for a, b in ((first, real), (real, first))
    ]
    assert [found.precision, found.recall] == pytest.approx(inside, abs=1e-9)


def test_coverage_and_variance_by_hand():
    reals = torch.arange(10, dtype=torch.float64)[:, None]
    # The fifth neighbor of 0 and 9 is 5 away, of the others less: a single image at 0 is within reach of 0 to 3.
    reaches = figures.reach(reals)
    assert reaches.tolist() == [5, 4, 3, 3, 3, 3, 3, 3, 4, 5]
    assert figures.coverage(reals, torch.zeros(1, 1, dtype=torch.float64)) == 0.4
    images = torch.tensor([0, 255, 0, 0], dtype=torch.uint8).reshape(4, 1, 1, 1)
    assert figures.variance_within(images, torch.tensor([0, 0, 1, 1])) == pytest.approx(1.0)  # (2 + 0) / 2


def test_equal_sets_are_as_near_as_they_can_be(splits):
    """Distance 0, everything covered, and the classes as they are; the images in turn, as `sample` draws them."""
    test = splits["test"]
    order = torch.argsort(torch.arange(len(test)) % 40, stable=True)  # 40 images of each class, one after the other
    reals = digits.Images(test.pixels[order], test.classes[order])
    assert reals.classes[:10].unique().numel() == 10
    detector = digits.shipped_detector()
    found = figures.figures(reals.pixels.repeat(2, 1, 1, 1), reals.classes.repeat(2), reals, detector)
    assert found.fid < 0.2 and (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert max(found.class_shares) < 0.12 and found.agreement > 0.95


@pytest.mark.slow
def test_the_whole_command(splits, tmp_path):
    tiny = ["--teacher-kimg=0.064", "--gan-kimg=0.064", "--detector-epochs=1", "--samples=20"]
    result = CliRunner().invoke(main, [f"--outdir={tmp_path}", *tiny])
    assert result.exit_code == 0, result.output
    assert "Digit-CNN features, not Inception; 20 generated images" in result.output
    assert load_generator(str(tmp_path / "digits.pkl")).network.c_dim == 10
    assert load_teacher(str(tmp_path / "edm-digits.pkl")).network.label_dim == 10
    made = {path.name for path in tmp_path.iterdir()}
    shipped = {entry.path.name for entry in zoo.ENTRIES if entry.path}
    assert made == shipped | {"figures.json"}
    record = json.loads((tmp_path / "figures.json").read_text())
    assert set(record["figures"]) == {
        f"{name} against {split}"
        for name in ("generator", "teacher", "real training images")
        for split in ("selection", "test")
    }
