"""Spatial features: an activation in the middle of a TorchScript module of the suite's interface."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refine.errors import UserError
from refine.files.dataset import ImageDataset
from refine.metrics import MetricOptions, frechet_distance, make_measure
from refine.metrics.contact_sheet import write_neighbors, write_sheet
from refine.metrics.detectors import load_detector
from refine.metrics.moments import Moments
from refine.metrics.sampler import Sampler
from refine.metrics.suite import Suite
from refine.networks.plain_module import as_contract

CPU = torch.device("cpu")


class Layer(nn.Module):
    """Convolution, normalization and rectifier with the parameters of TensorFlow's graph."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(out)
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3, generator=draw) * 0.1)
        self.register_buffer("mean", torch.randn(out, generator=draw) * 0.1)
        self.register_buffer("var", torch.rand(out, generator=draw) + 0.5)
        self.beta = nn.Parameter(torch.randn(out, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.weight.to(x.dtype), padding=1)
        x = nn.functional.batch_norm(x, self.mean, self.var, None, self.beta, eps=1e-3)
        return nn.functional.relu(x)


class Mixed(nn.Module):
    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.tower = Layer(6, 9), Layer(6, 5)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.tower(x), self.conv(x)], dim=1)
        return y.mul_(0.5) if self.inplace else y


class Inception(nn.Module):
    def __init__(self, inplace: bool = False, size: int = 17) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv": Layer(3, 6), "mixed_6": Mixed(inplace)})
        self.output = nn.Linear(14, 4)
        self.size = size

    def forward(self, x: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        x = nn.functional.interpolate(x.to(torch.float32), [self.size, self.size], mode="bilinear")
        x = (x - 128) / 128
        for _, layer in self.layers.items():
            x = layer(x)
        x = x.mean(dim=[2, 3])
        return x if return_features else self.output(x).softmax(dim=1)


def scripted(network: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network.eval()).save(str(path))
    return str(path)


@pytest.mark.parametrize("inplace", [False, True])
def test_activation_of_the_layer(tmp_path: Path, inplace: bool) -> None:
    detector = load_detector(scripted(Inception(inplace), tmp_path / "own.pt"))
    network, seen = Inception(inplace).eval(), []
    network.layers["mixed_6"].conv.register_forward_hook(lambda module, given, result: seen.append(result.clone()))
    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    for _ in range(3):  # TorchScript recompiles what it has seen
        found = detector.spatial(images)
    with torch.no_grad():
        features = network(images, return_features=True)
    assert found.shape == (5, 17 * 17 * 7)
    assert torch.allclose(found, seen[0][:, :7].permute(0, 2, 3, 1).flatten(1), atol=1e-5)
    assert torch.allclose(detector.features(images), features, atol=1e-5)


def test_statistics_of_adm(tmp_path: Path, generator: Any, data: str) -> None:
    """Its files have statistics of both kinds of features, and the latter in the order of positions."""
    path = scripted(Inception(size=5), tmp_path / "own.pt")
    detector, dataset = load_detector(path), ImageDataset(data)
    images = torch.stack([torch.from_numpy(dataset.image(i)) for i in range(200)])
    arrays = {}
    for suffix, rows in (("", detector.features(images)), ("_s", detector.spatial(images))):
        features = rows.double().numpy()
        arrays |= {f"mu{suffix}": features.mean(axis=0), f"sigma{suffix}": np.cov(features, rowvar=False)}
    np.savez(tmp_path / "virtual.npz", arr_0=np.zeros((4, 32, 32, 3), np.uint8), **arrays)
    options = MetricOptions(metrics=("fid30_full", "sfid30_full"), ref=str(tmp_path / "virtual.npz"), detector=path)
    rows = make_measure(options, generator, CPU)(generator, "x.pkl")
    drawn = Sampler(as_contract(generator), CPU).images(range(30))
    for row, output in zip(rows, ("features", "spatial"), strict=True):
        sets = [Moments.of(getattr(detector, output)(x)) for x in (images, drawn)]
        expected = frechet_distance(*sets, ddof=1).value
        assert row["results"][row["metric"]] == pytest.approx(expected, rel=1e-4)
    np.savez(tmp_path / "edm.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    options = MetricOptions(metrics=("sfid30_full",), ref=str(tmp_path / "edm.npz"), detector=path)
    with pytest.raises(UserError, match=r"edm\.npz"):
        make_measure(options, generator, CPU)


def test_a_row(tmp_path: Path, generator: Any, data: str) -> None:
    path = scripted(Inception(size=5), tmp_path / "own.pt")
    options = MetricOptions(metrics=("sfid12_full", "fid12_full"), data=data, detector=path)
    rows = make_measure(options, generator, torch.device("cpu"))(generator, "x.pkl")
    detector, dataset = load_detector(path), ImageDataset(data)
    real = torch.stack([torch.from_numpy(dataset.image(i)) for i in range(256)])
    drawn = Sampler(as_contract(generator), torch.device("cpu")).images(range(12))
    expected = frechet_distance(Moments.of(detector.spatial(real)), Moments.of(detector.spatial(drawn)))
    assert rows[0]["results"]["sfid12_full"] == pytest.approx(expected.value, rel=1e-5)
    suite = Suite.build(
        MetricOptions(metrics=("sfid12_full",), data=data, detector=path, contact_sheet=True), generator, CPU, None
    )
    suite.measure(generator, "x.pkl")
    write_sheet(tmp_path / "sheet.png", suite, generator)
    write_neighbors(tmp_path / "neighbors.png", suite, generator)
    assert (tmp_path / "sheet.png").is_file() and (tmp_path / "neighbors.png").is_file()
    assert "12 images for 175 dimensions" in rows[0]["provenance"]["warning"].replace("256 and ", "")
