"""Names of metrics."""

from __future__ import annotations

import re

import pytest

from refine.errors import UserError
from refine.metrics import MetricOptions, parse_metric, parse_metrics
from refine.metrics.cmmd import CMMD
from refine.metrics.density_coverage import DC
from refine.metrics.fid import FDD, FID, ClipFID, DinoFD, SpatialFID
from refine.metrics.inception_score import IS
from refine.metrics.kid import KID
from refine.metrics.metric import Metric
from refine.metrics.ppl import PPL
from refine.metrics.precision_recall import PR

KINDS: dict[type[Metric], str] = {
    FID: "fid", FDD: "fdd", KID: "kid", PR: "pr", IS: "is", PPL: "ppl", DC: "dc", SpatialFID: "sfid",
    DinoFD: "fd_dinov2", ClipFID: "clip_fid", CMMD: "cmmd",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fid50k_full", ("fid", 50_000, True, None, 0)),
        ("kid50k_full", ("kid", 50_000, True, 1_000_000, 0)),
        ("pr50k3_full", ("pr", 50_000, True, 200_000, 3)),
        ("fid50k", ("fid", 50_000, False, 50_000, 0)),
        ("kid50k", ("kid", 50_000, False, 50_000, 0)),
        ("pr50k3", ("pr", 50_000, False, 50_000, 3)),
        ("is50k", ("is", 50_000, True, None, 0)),
        ("fdd50k_full", ("fdd", 50_000, True, None, 0)),
        ("fid5k_full", ("fid", 5_000, True, None, 0)),
        ("fid500_full", ("fid", 500, True, None, 0)),
        ("pr2k10_full", ("pr", 2_000, True, 200_000, 10)),
        ("pr512_full", ("pr", 512, True, 200_000, 3)),
        ("pr512", ("pr", 512, False, 512, 3)),
        ("dc50k3_full", ("dc", 50_000, True, 200_000, 3)),
        ("dc1k5_full", ("dc", 1_000, True, 200_000, 5)),
        ("dc512_full", ("dc", 512, True, 200_000, 3)),
        ("sfid50k_full", ("sfid", 50_000, True, None, 0)),
        ("fd_dinov2_50k_full", ("fd_dinov2", 50_000, True, None, 0)),
        ("fd_dinov2_500_full", ("fd_dinov2", 500, True, None, 0)),
        ("clip_fid50k_full", ("clip_fid", 50_000, True, None, 0)),
        ("cmmd50k", ("cmmd", 50_000, False, 50_000, 0)),
        ("cmmd5k_full", ("cmmd", 5_000, True, None, 0)),
    ],
)
def test_names_of_the_suite(name: str, expected: tuple[str, int, bool, int | None, int]) -> None:
    spec = parse_metric(name)
    nhood_size = spec.nhood_size if isinstance(spec, PR) else 0
    assert (KINDS[type(spec)], spec.num_gen, spec.full, spec.max_real, nhood_size) == expected
    assert spec.name == name
    assert (spec.note is None) == (spec.num_gen == 50_000)
    if spec.note:
        assert f"{spec.num_gen} images: does not compare with 50k" == spec.note


@pytest.mark.parametrize(
    ("name", "space", "sampling", "crop"),
    [
        ("ppl2_wend", "w", "end", False),
        ("ppl_zfull", "z", "full", True),
        ("ppl_wfull", "w", "full", True),
        ("ppl_zend", "z", "end", True),
        ("ppl_wend", "w", "end", True),
    ],
)
def test_path_lengths(name: str, space: str, sampling: str, crop: bool) -> None:
    spec = parse_metric(name)
    assert isinstance(spec, PPL)
    assert (spec.space, spec.sampling, spec.crop, spec.num_gen) == (space, sampling, crop, 50_000)
    assert parse_metric(f"{name}2k").num_gen == 2000
    assert not spec.needs_reference


@pytest.mark.parametrize(
    "name",
    ["dc50k", "dc3_full", "pr1", "fd_dinov2_1_full", "fd_dinov250k", "cmmd50k3", "clip_fid", "sfid1"]
    + ["fid", "FID50k", "fid50k_half", "pr50k", "pr50k0", "is50k_full", "ppl2_zend", "fid0k", "fid1_full", "is5"],
)
def test_unknown_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(repr(name))):
        parse_metric(name)
    with pytest.raises(UserError):
        MetricOptions(metrics=(name,))


def test_lists() -> None:
    assert parse_metrics("fid50k_full, kid50k_full,fid50k_full") == ("fid50k_full", "kid50k_full")
    assert parse_metrics("none") == parse_metrics("") == ()


def test_options_are_checked() -> None:
    for bad in (
        {"fid_seeds": 0},
        {"batch": 0},
        {"bootstrap": -1},
        {"bootstrap": 5},
        {"kid_subsets": 0},
        {"kid_subset_size": 1},
        {"workers": -1},
        {"ref_images": 1},
        {"resample": "nearest"},
        {"seed": -1},
        {"ref": "data"},
        {"noise_mode": "loud"},
    ):
        with pytest.raises(UserError):
            MetricOptions(**bad)  # type: ignore[arg-type]
    for psi in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=str(psi)):
            MetricOptions(truncation_psi=psi)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("fid50k_full", 120, "fid120_full"),
        ("fid50k_full", 10_000, "fid10k_full"),
        ("fid1500", 700, "fid700"),
        ("pr50k3_full", 2000, "pr2k3_full"),
        ("pr50k3_full", 250, "pr250_full"),
        ("fd_dinov2_2_full", 5, "fd_dinov2_5_full"),
        ("fd_dinov2_2k_full", 50, "fd_dinov2_50_full"),
    ],
)
def test_names_with_another_count(name: str, count: int, expected: str) -> None:
    assert parse_metric(name).with_count(count) == expected
    assert parse_metric(expected).num_gen == count
