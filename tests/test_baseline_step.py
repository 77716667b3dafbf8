"""The recipe that the benchmark compares with computes what Refine's networks compute."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import baseline_step
import step

SMALL = {
    "unconditional": step.Size(16, 0, 3, (16, 2, 128, 16), (8, (1, 2), 1), 4),
    "conditional": step.Size(32, 5, 1, (16, 2, 256, 16), (8, (2, 2), 1), 4),
}


@pytest.mark.parametrize("name", SMALL)
def test_networks_are_those_of_refine(name):
    size = SMALL[name]
    generator, teacher = step.networks(size)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *teacher.parameters()]:
            parameter += 0.1 * torch.randn(parameter.shape, generator=rng)
        z = torch.randn(3, generator.z_dim, generator=rng)
        c = torch.eye(max(size.classes, 1))[[0, 0, -1]]
        images = generator(z, c, noise_mode="const")
        torch.testing.assert_close(baseline_step.generate(generator, z, c, "const"), images, rtol=1e-4, atol=1e-4)
        sigma = torch.tensor([0.1, 1.0, 10.0])
        expected = teacher(images, sigma, c if size.classes else None)
        denoised = baseline_step.denoise(teacher, images, sigma.reshape(-1, 1, 1, 1), c)
        torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_both_step(name, monkeypatch):
    monkeypatch.setattr(step, "SIZES", SMALL)
    for make in step.VARIANTS.values():
        trainer = make(SMALL[name], torch.device("cpu")).__self__
        before = [p.clone() for p in trainer.generator.parameters()]
        start = [p.clone() for p in trainer.fake.parameters()]
        for _ in range(2):
            trainer.step()
        assert any(not torch.equal(a, b) for a, b in zip(before, trainer.generator.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(start, trainer.fake.parameters(), strict=True))
