"""Many images: progress, and what happens when something is wrong with one of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from refine.errors import UserError
from refine.metrics import collect as features
from refine.metrics.batch_size import BatchSize
from refine.metrics.collect import at_all, at_first, collect, with_progress
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec
from refine.metrics.moments import Moments

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))


def images(numbers: range, batch: BatchSize) -> Iterator[torch.Tensor]:
    return batch.parts(numbers, lambda part: IMAGES[part.start : part.stop])


def test_several_specs_of_one_pass(inception: Detector, vgg: Detector) -> None:
    specs = [
        FeatureSpec(inception),
        FeatureSpec(inception, keep="rows"),
        FeatureSpec(inception, output="probabilities", keep="rows"),
        FeatureSpec(vgg, keep="half"),
    ]
    found = collect(images, range(5, 30), specs, BatchSize(7), "test")
    expected = inception.features(IMAGES[5:])
    np.testing.assert_allclose(found[specs[1]], expected.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[specs[0]].scatter, Moments.of(expected).scatter, rtol=1e-4, atol=1e-4)
    assert found[specs[0]].count == 25
    np.testing.assert_allclose(found[specs[2]], inception.probabilities(IMAGES[5:]).numpy(), rtol=1e-4, atol=1e-6)
    assert found[specs[3]].dtype == np.float16
    np.testing.assert_allclose(found[specs[3]], vgg.features(IMAGES[5:]).numpy(), rtol=2e-3, atol=2e-3)


def test_gray_images_are_seen_as_rgb(inception: Detector) -> None:
    spec = FeatureSpec(inception, keep="rows")
    found = collect(
        lambda numbers, batch: (p[:, :1] for p in images(numbers, batch)), range(9), [spec], BatchSize(4), "test"
    )
    gray = IMAGES[:9, :1].repeat(1, 3, 1, 1)
    np.testing.assert_allclose(found[spec], inception.features(gray).numpy(), rtol=1e-5, atol=1e-5)


def test_features_that_are_not_finite_are_refused(inception: Detector) -> None:
    def module(images: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(images), 4), float("nan"))

    broken = dataclasses.replace(inception, module=module)
    with pytest.raises(UserError, match=r"tiny_inception_s\.pt gives features that are not finite"):
        collect(images, range(9), [FeatureSpec(broken)], BatchSize(4), "test")


def test_lines_with_an_estimate_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="refine"):
        parts = list(with_progress(images(range(30), BatchSize(20)), 30, "images 0-29"))
    assert [len(part) for part in parts] == [20, 10]
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("images 0-29: 20 of 30 images, eta ") and lines[1].endswith("eta 0 s")


def test_one_process_alone() -> None:
    assert at_all(lambda: 3) == [3] and at_first(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        at_all(lambda: 1 // 0)
