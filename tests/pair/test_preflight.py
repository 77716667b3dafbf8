"""The trial before a run: each mistake is built into a pair whose mathematics is known, and has to be named."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import GaussianDenoiser
from gaussian_scenes import SceneDenoiser, SceneGenerator, scenes

from refine import RunConfig, load_generator, load_teacher, run
from refine.diffusion.sampler import heun_sample
from refine.networks.style_based import as_generator
from refine.pair.bridge import Bridge
from refine.pair.mismatches import CANDIDATES, _zoomed
from refine.pair.preflight import (
    AT_LEVEL,
    SAMPLER,
    SIGMAS,
    KnownFids,
    _labels_help,
    denoising_losses,
    pixel_distance,
    preflight,
)
from refine.pair.resize import resize_matrix

R = 8


def pair(spoil=lambda x: x, **kwargs):
    """A teacher, and a generator of its own images that are then spoiled."""
    means, covariance = scenes(R, **kwargs)
    return SceneGenerator(means, covariance, spoil), SceneDenoiser(means, covariance)


def measured(generator, *args, **kwargs):
    """The preflight of a generator made in a test."""
    return preflight(as_generator(generator), *args, **kwargs)


def examine(generator, teacher, **kwargs):
    return measured(generator, teacher, Bridge(teacher.img_resolution, teacher.label_dim), num_images=64, **kwargs)


def problems(report):
    """Its findings, but for that the generator may be good already."""
    return tuple(finding for finding in report.findings if finding != "level")


def test_losses_of_an_exact_denoiser():
    """E ||D(x0 + sigma n) - x0||^2 = trace K (K + sigma^2)^-1 sigma^2, within four standard errors."""
    rng = torch.Generator().manual_seed(0)
    root = 0.3 * torch.eye(4) + 0.3 * torch.randn(4, 4, generator=rng)
    teacher, count = GaussianDenoiser(torch.zeros(4), root), 20_000
    images = (torch.randn(count, 4, generator=rng) @ root.t()).reshape(-1, 1, 2, 2)
    noise = torch.randn([2, count, 1, 2, 2], generator=rng)
    losses = denoising_losses(teacher, images, None, (0.2, 1.5), noise)
    for sigma, row in zip((0.2, 1.5), losses, strict=True):
        k = (root @ root.t()).double()
        expected = torch.trace(k @ torch.linalg.inv(k + sigma**2 * torch.eye(4)) * sigma**2) / 4
        assert abs(float(row.mean() - expected)) < 4 * float(row.std()) / math.sqrt(count)


@pytest.mark.parametrize("seed", range(5))
def test_a_pair_that_fits(seed):
    report = examine(*pair(seed=seed), seed=seed)
    ratios = [a / b for a, b in zip(report.generator_loss, report.teacher_loss, strict=True)]
    assert all(0.7 < ratio < 1.4 for ratio in ratios) and report.sigmas == SIGMAS
    if all(1 / AT_LEVEL <= ratio <= AT_LEVEL for ratio in ratios):
        assert report.findings == ("level",)
        shown = f"from {min(ratios):.2f} to {max(ratios):.2f}, over 64 images"
        assert shown in report.warnings[0] and report.lines()[-1] == report.warnings[0]
    else:
        assert report.findings == () and report.warnings == () and "No problems found" in report.lines()[-1]


def test_a_generator_that_is_as_good_as_the_teacher():
    """By its loss, which needs enough images; nothing is said of one whose images are somewhat noisy."""
    means, covariance = scenes(R)
    teacher = SceneDenoiser(means, covariance)
    good = SceneGenerator(means, covariance, lambda x: x)
    noisy = SceneGenerator(means, covariance, lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.manual_seed(0)))
    bridge = Bridge(teacher.img_resolution, teacher.label_dim)
    assert measured(good, teacher, bridge, num_images=1024).findings == ("level",)
    assert measured(noisy, teacher, bridge, num_images=1024).findings == ()


@pytest.mark.parametrize(("generator_fid", "expected"), [(1.85, True), (1.97, False), (2.92, False)])
def test_published_fids(generator_fid, expected):
    generator, teacher = pair(lambda x: x + 0.2 * torch.randn(x.shape, generator=torch.manual_seed(0)))
    report = examine(generator, teacher, known_fids=KnownFids("CIFAR-10", generator_fid, 1.97))
    assert ("fid" in report.findings) is expected
    if expected:
        assert report.lines()[-1] == report.warnings[-1]
        assert all(part in report.warnings[-1] for part in ("CIFAR-10", "1.85", "1.97"))


@pytest.mark.parametrize(
    ("spoil", "finding", "word"),
    [
        (lambda x: (x + 1) / 2, ("range 0..1",), "in 0..1"),
        (lambda x: (x + 1) * 127.5, ("range 0..255",), "0..255"),
        (lambda x: x * 2 - 1, ("teacher's range 0..1",), "The teacher seems to expect colors in 0..1"),
        (torch.neg, ("negative",), "negatives"),
        (lambda x: x.flip(1), ("channel order",), "BGR"),
        (lambda x: x.flip(3), ("horizontal mirror",), "left to right"),
        (lambda x: x.flip(2), ("vertical mirror",), "upside down"),
        (lambda x: (x.flip(1) + 1) * 127.5, ("range 0..255", "channel order"), "BGR"),
        (lambda x: x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), ("domain",), "another kind"),
        (lambda x: x.roll(3, 1).transpose(2, 3) * 1.7 + 0.7, ("domain",), "another kind"),
    ],
)
def test_mistakes_are_named(spoil, finding, word):
    report = examine(*pair(spoil))
    assert report.findings == finding
    assert any(word in sentence for sentence in report.warnings)
    assert report.lines()[-1] == report.warnings[-1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: 0.85 * x + 0.03,
        lambda x: x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)),
        lambda x: (x + x.roll(1, 3)) / 2,
        lambda x: x.clamp(-0.6, 0.6),
        lambda x: 1.4 * x - 0.1,
        lambda x: 1.6 * x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)),
    ],
)
def test_generator_that_is_only_bad_is_not_accused(spoil):
    """Weak or strong contrast, noise, blur, saturated colors: faults that refinement is for."""
    report = examine(*pair(spoil))
    ratio = max(a / b for a, b in zip(report.generator_loss, report.teacher_loss, strict=True))
    assert problems(report) == ()
    assert report.findings or (f"{ratio:.2g}" if ratio >= 1.25 else "No problems found") in report.lines()[-1]


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_crop_is_named(share):
    """The teacher is exact for the reduced central part of what the generator draws."""
    means, covariance = scenes(16)
    border = round(16 * (1 - share) / 2)
    cut = torch.eye(16).double()[border : 16 - border]
    one_axis = resize_matrix(16 - 2 * border, R) @ cut
    reduce = torch.kron(torch.eye(3).double(), torch.kron(one_axis, one_axis))
    teacher = SceneDenoiser((reduce @ means.flatten()).reshape(1, 3, R, R), reduce @ covariance @ reduce.t())
    report = examine(SceneGenerator(means, covariance), teacher)
    assert report.findings == (f"crop {share:g}",) and f"central {share:.0%}" in report.warnings[0]


def test_classes_in_another_order():
    generator, teacher = pair(num_classes=4)
    assert problems(examine(generator, teacher)) == ()
    order = (1, 2, 3, 0)
    wrong = measured(generator, teacher, Bridge(R, 4, class_map=order), num_images=64)
    assert wrong.findings and wrong.lines()[-1] == wrong.warnings[-1]
    # Classes that differ little spoil no loss, but the labels gain nothing.
    means, covariance = scenes(R, num_classes=4)
    means = means.mean(0, keepdim=True) + 0.35 * (means - means.mean(0, keepdim=True))
    generator, teacher = SceneGenerator(means, covariance), SceneDenoiser(means, covariance)
    wrong = measured(generator, teacher, Bridge(R, 4, class_map=order), num_images=64)
    assert wrong.findings == ("classes",) and "--class-map" in wrong.warnings[0]
    assert problems(examine(generator, teacher)) == ()


def very_noisy(x):
    return x + 1.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(3))
def test_labels_tell_a_bad_generator_from_an_alien_one(seed):
    """Both are as hard to denoise as images of another kind; only the first one's labels say what is in them."""
    classes = {"num_classes": 6, "seed": seed}
    bad = examine(*pair(very_noisy, **classes), seed=seed)
    assert bad.recognized and bad.findings == () and "recognizes its classes" in bad.lines()[-1]
    alien, _ = pair(very_noisy, num_classes=6, seed=seed + 100)
    _, teacher = pair(**classes)
    report = examine(alien, teacher, seed=seed)
    assert not report.recognized and report.findings == ("domain",) and "another kind" in report.warnings[0]
    assert examine(*pair(very_noisy, seed=seed), seed=seed).findings == ("domain",)  # without classes nobody knows


def test_built_in_pair():
    """The generator was stopped early: its images are hard to denoise, but it draws the teacher's digits."""
    generator, teacher = load_generator("digits").network, load_teacher("edm-digits").network
    report = measured(generator, teacher, Bridge(16, 10))
    assert report.recognized and report.warnings == () and report.generator_loss[0] > 3 * report.teacher_loss[0]
    wrong = Bridge(16, 10, class_map=tuple(range(1, 10)) + (0,))
    assert not _labels_help(as_generator(generator), teacher, wrong, seed=0)


class Itself(torch.nn.Module):
    """A generator that draws a teacher's own samples, and then spoils them."""

    c_dim = 0

    def __init__(self, teacher, spoil):
        super().__init__()
        self.teacher, self.spoil = teacher, spoil
        self.z_dim = teacher.img_channels * teacher.img_resolution**2
        self.img_channels, self.img_resolution = teacher.img_channels, teacher.img_resolution
        self.mapping = lambda z, c, truncation_psi: z[:, None]

    def synthesis(self, ws, noise_mode, force_fp32):
        latents = ws.reshape(-1, self.teacher.img_channels, *[self.teacher.img_resolution] * 2)
        return self.spoil(heun_sample(self.teacher, latents, None, SAMPLER).float())


@pytest.mark.parametrize(
    ("spoil", "findings"),
    [(lambda x: x, ("level",)), (lambda x: (x + 1) * 127.5, ("range 0..255",))],
)
def test_golden_edm_network(spoil, findings, fixture_path):
    teacher = load_teacher(str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))).network
    report = measured(Itself(teacher, spoil), teacher, Bridge(16, 0), num_images=16)
    assert report.findings == findings


def test_golden_pair(fixture_path):
    """Of untrained networks nothing is to be found out, but the same is found out twice."""
    generator = load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network
    teacher = load_teacher(str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))).network
    report = measured(generator, teacher, Bridge(16, 5), num_images=16)
    assert report.num_images == 16 and all(0 < a < 10 for a in (*report.generator_loss, *report.teacher_loss))
    again = measured(generator, teacher, Bridge(16, 5))  # 16 is what a CPU takes
    assert again == report


@pytest.mark.parametrize("name", ["s3_vp_ddpmpp_uncond16", "s5_ve_ncsnpp_uncond16", "s6_iddpm_adm_uncond16"])
def test_noise_levels_that_the_teacher_knows(name, fixture_path):
    teacher = load_teacher(str(fixture_path(f"edm/{name}.pkl"))).network
    report = measured(Itself(teacher, lambda x: x), teacher, Bridge(teacher.img_resolution, 0), num_images=4)
    assert all(teacher.sigma_min <= s <= teacher.sigma_max for s in report.sigmas)
    assert all(math.isfinite(loss) for loss in (*report.generator_loss, *report.teacher_loss))


def test_pixel_distance():
    x = torch.tensor([-1.0, 1.0])
    assert pixel_distance(x, x) == 0 and pixel_distance(2 * x, x) == pytest.approx(math.log(2))
    assert pixel_distance(x + 3, x) == pytest.approx(3 / 2**0.5) and pixel_distance(0 * x, x) > 10


def test_zooms():
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_zoomed(0.75)(x), x[:, :, 2:-2, 2:-2])
    assert _zoomed(1.25)(x).shape == (1, 3, 20, 20) and torch.equal(_zoomed(1.25)(x)[:, :, 2:-2, 2:-2], x)
    assert torch.equal(_zoomed(1.0)(x), x)
    assert all(candidate.correct(x).shape[1] == 3 for candidate in CANDIDATES.values())


def test_a_run_begins_with_it(fixture_path, tmp_path):
    pair = {"gan": "sg2ada/b_cond16.pkl", "teacher": "edm/s4_sid_ddpmpp_cond16.pkl"}
    files = {name: str(fixture_path(path)) for name, path in pair.items()}
    config = RunConfig(**files, outdir=str(tmp_path), batch=8, kimg=0.008, warmup_kimg=0, device="cpu")
    log = (run(config).parent / "log.txt").read_text().splitlines()
    report = next(index for index, line in enumerate(log) if line.startswith("Preflight: "))
    assert log[report + 1].split() == ["sigma", "0.1", "0.4", "1.5", "6"]
