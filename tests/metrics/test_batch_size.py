"""Images per pass: found by trial, halved when out of memory, without effect on values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from refine.errors import UserError
from refine.metrics.batch_size import LARGEST, USUAL, BatchSize, is_out_of_memory
from refine.metrics.collect import collect
from refine.metrics.detectors import Detector
from refine.metrics.metric import FeatureSpec
from refine.metrics.options import MetricOptions
from refine.metrics.suite import make_measure

CPU = torch.device("cpu")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8))


def memory_for(most: int) -> Callable[[int], None]:
    def check(count: int) -> None:
        if count > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return check


# -- the trial ----------------------------------------------------------------------------------------


def sizes_tried(seconds: Callable[[int], float], largest: int = LARGEST) -> tuple[list[int], BatchSize]:
    """Sizes in turn, for a device that takes so long for a batch."""
    batch, tried = BatchSize(64, largest), []
    for _ in range(20):
        tried.append(batch.now)
        batch.took(batch.now, seconds(batch.now))
    return [size for i, size in enumerate(tried) if i == 0 or size != tried[i - 1]], batch


def test_it_grows_while_images_take_less_time() -> None:
    sizes, batch = sizes_tried(lambda n: max(n, 200))  # up to 200 images cost the same
    assert sizes == [64, 128, 256, 512, 256] and batch.settled
    sizes, batch = sizes_tried(lambda n: 1.0)
    assert sizes == [64, 128, 256, 512] and batch.settled
    sizes, batch = sizes_tried(lambda n: float(n))
    assert sizes == [64, 128, 64] and batch.settled
    sizes, batch = sizes_tried(lambda n: 1.0, largest=100)
    assert sizes == [64] and batch.settled


def test_the_first_batch_of_a_size_does_not_count() -> None:
    """There kernels are chosen, and memory is got."""
    batch = BatchSize(4, 16)
    for seconds in (100.0, 1.0, 100.0, 1.0):
        batch.took(batch.now, seconds)
    assert batch.now == 16
    batch.took(3, 1e-9)  # the last images of many say nothing either
    assert batch.now == 16 and not batch.settled


def test_there_is_none_on_a_cpu_or_where_the_user_chose() -> None:
    for given, device, resolution, now, largest in (
        (None, "cpu", 32, USUAL, USUAL),
        (10, "cuda", 32, 10, 10),
        (None, "cuda", 32, USUAL, LARGEST),
        (None, "cuda", 1024, USUAL, USUAL),
    ):
        batch = BatchSize.choose(given, torch.device(device), resolution)
        assert (batch.now, batch.largest, batch.settled) == (now, largest, now == largest)


# -- memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 5, 7, 100])
def test_parts_become_smaller_and_nothing_is_left_out(most: int, caplog: pytest.LogCaptureFixture) -> None:
    check, batch = memory_for(most), BatchSize(16, 64)

    def work(part: range) -> list[int]:
        check(len(part))
        return list(part)

    with caplog.at_level(logging.INFO, logger="refine"):
        found = [number for part in batch.parts(range(3, 40), work) for number in part]
    assert found == list(range(3, 40))
    assert batch.now <= max(most, 16) and batch.settled == (most < 16)
    assert all("per pass; continuing with" in record.getMessage() for record in caplog.records)
    for _ in range(4):
        batch.took(batch.now, 1e-9)
    assert most >= 16 or batch.now <= most  # does not grow again


def test_no_memory_for_one_image() -> None:
    def work(part: range) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="single image"):
        list(BatchSize(4).parts(range(4), work))


def test_errors_of_memory_in_other_words() -> None:
    traceback = "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory."
    assert is_out_of_memory(RuntimeError(traceback)) and is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))

    def work(part: range) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(BatchSize(4).parts(range(4), work))


def test_a_detector_that_takes_few_images(inception: Detector) -> None:
    check = memory_for(5)

    def module(images: torch.Tensor, **arguments: Any) -> torch.Tensor:
        check(len(images))
        return inception.module(images, **arguments)

    specs = [FeatureSpec(dataclasses.replace(inception, module=module), keep="rows")]
    batch = BatchSize(12)
    numbers = range(30)
    found = collect(lambda n, b: b.parts(n, lambda p: IMAGES[p.start : p.stop]), numbers, specs, batch, "test")
    assert batch.now == 3
    np.testing.assert_allclose(found[specs[0]], inception.features(IMAGES).numpy(), rtol=1e-5, atol=1e-5)


class Greedy(torch.nn.Module):
    """A generator for which memory suffices for few images."""

    def __init__(self, generator: Any, most: int) -> None:
        super().__init__()
        self.generator, self.check = generator, memory_for(most)
        self.counts: list[int] = []
        for name in ("z_dim", "c_dim", "img_resolution", "img_channels"):
            setattr(self, name, getattr(generator, name))

    def forward(self, z: torch.Tensor, c: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.counts.append(len(z))
        self.check(len(z))
        return self.generator(z, c, **arguments)


def test_a_metric_survives_a_generator_that_takes_few_images(
    generator: Any, data: str, detectors: dict[str, str]
) -> None:
    options = MetricOptions(metrics=("fid70_full", "kid70_full"), data=data, **detectors)
    expected = make_measure(options, generator, CPU)(generator, "a.pkl")
    greedy = Greedy(generator, 10)
    measure = make_measure(options, greedy, CPU)
    found = measure(greedy, "a.pkl")
    assert max(greedy.counts) == USUAL
    greedy.counts.clear()
    measure(greedy, "b.pkl")
    assert max(greedy.counts) == 8  # 64, 32, 16, 8: tried once in a run
    for a, b in zip(found, expected, strict=True):
        assert (a["provenance"]["batch"], b["provenance"]["batch"]) == (8, USUAL)
        for name, value in b["results"].items():
            assert a["results"][name] == pytest.approx(value, rel=1e-4, abs=1e-4)


def test_a_trial_changes_no_value(
    generator: Any, data: str, detectors: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = MetricOptions(metrics=("fid100_full",), data=data, **detectors)
    (expected,) = make_measure(options, generator, CPU)(generator, "a.pkl")
    monkeypatch.setattr(BatchSize, "choose", classmethod(lambda cls, *args: cls(2, 16)))
    (found,) = make_measure(options, generator, CPU)(generator, "a.pkl")
    assert found["provenance"]["batch"] in (2, 4, 8, 16)
    for name, value in expected["results"].items():
        assert found["results"][name] == pytest.approx(value, rel=1e-4, abs=1e-4)
