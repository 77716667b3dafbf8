"""The nine-label augmentation: exact where it can be, analytic where it cannot, and StyleGAN2-ADA's own resampling."""

from __future__ import annotations

import math

import pytest
import torch

from refine import load_teacher, pickles
from refine.diffusion import augment
from refine.diffusion.augment import PARAMETERS, SYM6, matrices, transform, warp
from stylegan_ops import upfirdn2d


def parameters(count=1, **values):
    """[count, 8] with the named ones set."""
    table = torch.zeros(count, len(PARAMETERS))
    for name, value in values.items():
        table[:, PARAMETERS.index(name)] = value
    return table


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def waves(matrix, size):
    """A smooth image, evaluated where the matrix says that its pixels come from: [1, 1, size, size]."""
    axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y, _ = matrix.reshape(3, 3) @ torch.stack([x.flatten(), y.flatten(), torch.ones(size * size).double()])
    values = (x * 0.31 + 0.4).sin() * (y * 0.23 - 0.2).cos() + 0.3 * (0.17 * x + 0.11 * y).cos()
    return values.reshape(1, 1, size, size)


def test_nothing_happens_at_p_0():
    images = noise(8, 3, 16, 16)
    result, labels = augment.augment(images, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(result, images) and labels.shape == (8, augment.NUM_LABELS) and not labels.any()


@pytest.mark.parametrize("axes", [(), ("x",), ("y",), ("x", "y")])
def test_mirrors_are_exact(axes):
    images = noise(2, 3, 16, 16)
    table = parameters(2, **{f"mirror_{axis}": 1.0 for axis in axes})
    expected = images.flip([{"x": 3, "y": 2}[axis] for axis in axes])
    assert torch.equal(transform(images, table), expected)
    assert augment.labels(table)[0].tolist() == [float("x" in axes), float("y" in axes), *[0.0] * 7]


def test_images_that_stay_are_untouched_beside_others():
    images = noise(3, 3, 16, 16)
    table = torch.cat([parameters(), parameters(scale=1.0), parameters()])
    result = transform(images, table)
    assert torch.equal(result[[0, 2]], images[[0, 2]]) and not torch.allclose(result[1], images[1], atol=0.1)


def test_shift_by_whole_pixels():
    """Exact within rounding, since the wavelet gives back what it took; what comes in is reflected."""
    images = noise(1, 2, 16, 16)
    result = transform(images, parameters(shift_x=3 / 16 * 8, shift_y=-2 / 16 * 8))
    assert (result[:, :, :-2, 3:] - images[:, :, 2:, :-3]).abs().max() < 1e-5
    assert (result[:, :, :-2, :3] - images[:, :, 2:, 1:4].flip(3)).abs().max() < 1e-5


def test_rotation_by_a_right_angle():
    """Positive angles turn counterclockwise as seen, as rot90 does; the wavelet's center is some 0.05 pixels aside."""
    image = waves(torch.eye(3).double(), 24)
    result = transform(image, parameters(rotation=math.pi / 2))
    assert (result - torch.rot90(image, 1, [2, 3])).abs().max() < 0.06
    assert (result - torch.rot90(image, -1, [2, 3])).abs().max() > 1
    half = transform(image, parameters(rotation=math.pi))
    assert (half - image.flip([2, 3])).abs().max() < 0.06


@pytest.mark.parametrize(
    "values",
    [
        {"scale": 1.5},
        {"rotation": 0.7},
        {"stretch": 1.0},
        {"stretch": 1.0, "stretch_angle": 0.9},
        {"shift_x": 0.37, "shift_y": -0.6},
        {"scale": 1.0, "rotation": -1.1, "stretch": -0.8, "stretch_angle": 0.5, "shift_x": 0.3, "shift_y": 0.2},
    ],
)
def test_smooth_function_is_transformed_analytically(values):
    """Away from the border the result is the function at the transformed place."""
    size, table = 48, parameters(**values)
    matrix = matrices(table, size)
    result, expected = transform(waves(torch.eye(3).double(), size), table), waves(matrix, size)
    inner = slice(16, 32)  # sees nothing but the image itself
    assert (result - expected)[:, :, inner, inner].abs().max() < 0.025
    assert (waves(torch.eye(3).double(), size) - expected)[:, :, inner, inner].abs().max() > 0.1


def test_matrices():
    """Of each transformation alone, from the formulas of the paper."""
    size = 32
    at = lambda **values: matrices(parameters(**values), size)[0, :2]  # noqa: E731
    eye = torch.eye(2).double()
    assert torch.allclose(at(scale=1.0)[:, :2], eye / 2**0.2)
    assert torch.allclose(at(shift_x=1.0, shift_y=-0.5), torch.tensor([[1.0, 0, -4], [0, 1, 2]]).double())
    assert torch.allclose(at(stretch=2.0)[:, :2], torch.diag(torch.tensor([2**-0.4, 2**0.4]).double()))
    vertical = at(stretch=2.0, stretch_angle=math.pi / 2)[:, :2]
    assert torch.allclose(vertical, torch.diag(torch.tensor([2**0.4, 2**-0.4]).double()), atol=1e-6)
    c, s = math.cos(0.3), math.sin(0.3)
    assert torch.allclose(at(rotation=0.3)[:, :2], torch.tensor([[c, -s], [s, c]]).double())


def test_labels():
    table = parameters(scale=-0.7, rotation=0.4, stretch=1.5, stretch_angle=0.8, shift_x=0.1, shift_y=-2.0)
    turned = [math.cos(0.4) - 1, math.sin(0.4)]
    stretched = [1.5 * math.cos(0.8), 1.5 * math.sin(0.8)]
    assert augment.labels(table)[0].tolist() == pytest.approx([0, 0, -0.7, *turned, *stretched, 0.1, -2.0], abs=1e-6)


def test_what_is_drawn():
    """Frequencies within four standard errors; normal and uniform by their moments."""
    count, p = 40_000, 0.3
    table = dict(zip(PARAMETERS, augment.draw(count, p, torch.Generator().manual_seed(0)).unbind(1), strict=True))

    def share(name):
        return float((table[name] != 0).float().mean())

    expected = {"mirror_x": 0.5, "mirror_y": p / 2, "stretch_angle": p / 2} | dict.fromkeys(
        ("scale", "rotation", "stretch", "shift_x", "shift_y"), p
    )
    for name, value in expected.items():
        assert abs(share(name) - value) < 4 * math.sqrt(value * (1 - value) / count), name
    for name in ("scale", "stretch", "shift_x", "shift_y"):
        values = table[name][table[name] != 0]
        assert abs(float(values.mean())) < 4 / math.sqrt(len(values)) and abs(float(values.std()) - 1) < 0.03
    for name in ("rotation", "stretch_angle"):
        values = table[name][table[name] != 0]
        assert values.abs().max() <= math.pi and abs(float(values.std()) - math.pi / math.sqrt(3)) < 0.04
    assert torch.equal(table["shift_x"] != 0, table["shift_y"] != 0)
    assert not table["stretch_angle"][table["stretch"] == 0].any()


def test_part_of_a_batch_is_transformed_as_in_the_whole():
    images, table = noise(6, 3, 16, 16), augment.draw(6, 0.9, torch.Generator().manual_seed(3))
    whole = transform(images, table)
    parts = torch.cat([transform(images[part], table[part]) for part in (slice(0, 2), slice(2, 6))])
    assert (whole - parts).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["sg2ada/d_gray16", "sg2ada/a_uncond32"])
def test_resampling_is_stylegan2_adas(name, fixture_path, golden):
    """Golden images that went through all of that pipe's geometry at a given percentile, and then through a change of
    color, linear and unknown here: fitted away.
    """
    arrays = golden(name)
    images = torch.tensor(arrays["aug_x"])
    (n, channels, size, _), one = images.shape, torch.ones(1, dtype=torch.float64)
    for p in (0.1, 0.35, 0.9):
        signed, z = 2 * p - 1, float(torch.erfinv(torch.tensor(2 * p - 1, dtype=torch.float64)))
        mirror = augment._diagonal((1 - 2 * math.floor(2 * p)) * one, one)
        quarter = augment._rotation(math.pi / 2 * math.floor(4 * p) * one)
        whole = -torch.round(signed / 8 * size * one)
        first = mirror @ quarter @ augment._translation(whole, whole)
        table = parameters(scale=z, rotation=signed * math.pi, stretch=z, shift_x=z, shift_y=z)
        warped = warp(images, (first @ matrices(table, size)).repeat(n, 1, 1)).double()
        known = torch.cat([warped, torch.ones(n, 1, size, size)], dim=1).transpose(0, 1).flatten(1).t()
        wanted = torch.tensor(arrays[f"aug_y_p{p}"]).double().transpose(0, 1).flatten(1).t()
        fitted = known @ torch.linalg.lstsq(known, wanted).solution
        assert fitted.shape[1] == channels and wanted.std() > 0.1
        assert (fitted - wanted).abs().max() < 2e-5 * wanted.abs().max(), p
    wavelet = pickles.named_tensors(pickles.load(fixture_path(f"{name}.pkl"))["augment_pipe"])["Hz_geom"].read()
    assert torch.equal(upfirdn2d.setup_filter(SYM6), wavelet)


def test_constants_are_those_of_edm_pickles(fixture_path):
    pipe = pickles.load(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))["augment_pipe"].attributes
    assert (pipe["scale_std"], pipe["aniso_std"]) == (augment.SCALE_STD, augment.STRETCH_STD)
    assert pipe["translate_frac_std"] == augment.SHIFT_STD
    assert pipe["aniso_rotate_prob"] == augment.STRETCH_ANGLE_PROBABILITY
    assert pipe["p"] * pipe["xflip"] > 1  # mirrored or not, whatever else happens
    assert pipe["rotate_frac_max"] == 1.0 and pipe["brightness"] == 0


def test_a_network_takes_the_labels(fixture_path):
    network = load_teacher(str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl"))).network
    images, labels = augment.augment(noise(4, 3, 16, 16), 0.9, torch.Generator().manual_seed(1))
    sigma = torch.ones(4)
    told, untold = network(images, sigma, None, labels), network(images, sigma, None, None)
    assert torch.isfinite(told).all() and (told - untold).abs().max() > 1e-4
    assert torch.equal(network(images, sigma, None, torch.zeros(4, 9)), untold)
