"""Images of a generator depend only on the seed and their number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from refine.errors import UserError
from refine.files.images import to_uint8
from refine.metrics.sampler import (
    BLOCK,
    Labels,
    Sampler,
    draw_labels,
    draw_latents,
    draw_noise,
    draw_uniform,
    noise_inputs,
    with_noise,
)
from refine.networks.plain_module import as_contract
from refine.pair.resize import resize

CPU = torch.device("cpu")


def in_batches(draw: Any, count: int, batch: int) -> torch.Tensor:
    numbers = range(count)
    return torch.cat([draw(numbers[first : first + batch]) for first in range(0, count, batch)])


@pytest.mark.parametrize("batch", [1, 7, 64, 200])
def test_batches_of_any_size_draw_the_same(batch: int) -> None:
    labels = Labels.of(np.array([0, 0, 0, 2]))
    for draw in (
        lambda n: draw_latents(n, 5, seed=3),
        lambda n: draw_labels(n, labels, 3, seed=3),
        lambda n: draw_uniform(n, 3, "t"),
    ):
        whole = draw(range(200))
        assert torch.equal(in_batches(draw, 200, batch), whole)
        assert torch.equal(draw(range(130, 150)), whole[130:150])


def test_latents_are_normal_and_depend_on_the_seed() -> None:
    z = draw_latents(range(2000), 8, seed=0)
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.03
    assert len(torch.unique(z[:, 0])) == 2000  # no block repeats another
    assert not torch.equal(z[:BLOCK], draw_latents(range(BLOCK), 8, seed=1))
    assert draw_latents(range(0), 8, seed=0).shape == (0, 8)


def test_labels_follow_the_data() -> None:
    classes = np.repeat([0, 1, 3], [100, 300, 600])
    drawn = draw_labels(range(20_000), Labels.of(classes), 4, seed=0)
    shares = drawn.mean(dim=0).numpy()
    np.testing.assert_allclose(shares, [0.1, 0.3, 0, 0.6], atol=4 * np.sqrt(0.25 / 20_000))
    assert torch.equal(drawn.sum(dim=1), torch.ones(20_000))


def test_labels_without_data_are_uniform_and_vectors_are_those_of_the_data() -> None:
    shares = draw_labels(range(10_000), None, 5, seed=0).mean(dim=0).numpy()
    np.testing.assert_allclose(shares, 0.2, atol=4 * np.sqrt(0.16 / 10_000))
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    drawn = draw_labels(range(500), Labels.of(vectors), 6, seed=0)
    assert {row.tobytes() for row in drawn.numpy()} == {row.tobytes() for row in vectors}
    assert draw_labels(range(9), None, 0, seed=0).shape == (9, 0)


def test_uint8_truncates() -> None:
    x = torch.tensor([-1.01, -1, -0.0001, 0, 0.5, 0.999, 1, 7.0]).reshape(1, 1, 1, -1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 127, 128, 191, 255, 255, 255]


# -- images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_mode", ["random", "const", "none"])
def test_images_do_not_depend_on_batches(conditional: Any, noise_mode: str) -> None:
    sampler = Sampler(as_contract(conditional), CPU, seed=5, noise_mode=noise_mode)
    whole = sampler.images(range(70)).int()
    for batch in (1, 7, 64):
        off = (in_batches(sampler.images, 70, batch).int() - whole).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 1e-3  # float32 rounding across an integer


def test_noise_is_random_by_image_and_matters(generator: Any) -> None:
    random = Sampler(as_contract(generator), CPU).images(range(4)).float()
    assert (
        random - Sampler(as_contract(generator), CPU, noise_mode="const").images(range(4)).float()
    ).abs().mean() > 0.5
    assert (random - Sampler(as_contract(generator), CPU, seed=1).images(range(4)).float()).abs().mean() > 0.5
    noise = draw_noise(as_contract(generator), range(3), 0, "metric noise")
    assert [tuple(n.shape) for n in noise] == [
        (3, 1, *m.noise_const.shape) for m in noise_inputs(as_contract(generator))
    ]
    flat = torch.cat([n.reshape(3, -1) for n in noise], dim=1)
    assert abs(flat.mean()) < 0.05 and abs(flat.std() - 1) < 0.05
    assert not torch.equal(noise[0][0], noise[0][1])


def test_noise_given_is_the_noise_added(generator: Any) -> None:
    """Random noise, as the generator draws it by itself, given by hand."""
    z, c = draw_latents(range(2), generator.z_dim, 0), torch.zeros(2, 0)
    with torch.no_grad():
        torch.manual_seed(7)
        expected = generator(z, c, noise_mode="random")
        torch.manual_seed(7)
        noise = [torch.randn(2, 1, *m.noise_const.shape) for m in noise_inputs(as_contract(generator))]
        stored = [m.noise_const for m in noise_inputs(as_contract(generator))]
        with with_noise(as_contract(generator), noise):
            found = generator(z, c, noise_mode="const")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert all(m.noise_const is s for m, s in zip(noise_inputs(as_contract(generator)), stored, strict=True))


def test_images_are_reduced_before_they_become_uint8(generator: Any) -> None:
    sampler = Sampler(as_contract(generator), CPU, noise_mode="const", resolution=16)
    z = draw_latents(range(3), generator.z_dim, 0)
    with torch.no_grad():
        expected = to_uint8(resize(generator(z, torch.zeros(3, 0), noise_mode="const"), 16))
    assert torch.equal(sampler.images(range(3)), expected)


def test_images_that_are_not_finite_are_refused(generator: Any) -> None:
    class Broken(torch.nn.Module):
        z_dim, c_dim, img_resolution, img_channels = 4, 0, 1, 3

        def forward(self, z: torch.Tensor, c: torch.Tensor, **_: Any) -> torch.Tensor:
            return z[:, :3, None, None] * float("nan")

    with pytest.raises(UserError, match="not finite"):
        Sampler(as_contract(Broken()), CPU).images(range(2))
