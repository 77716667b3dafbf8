"""Metrics within a run: rows beside snapshots, what `auto` means, and that no run is lost for a metric."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine.commands import run as cli
from refine.config import RunConfig
from refine.errors import UserError
from refine.files import download
from refine.files.image_grid import layout_of
from refine.metrics.sampler import Sampler
from refine.runs import evaluation, start

FindPath = Callable[[str], Path]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)


@pytest.fixture
def options(fixture_path: FindPath, tmp_path: Path) -> dict[str, Any]:
    return {
        "gan": str(fixture_path("sg2ada/a_uncond32.pkl")),
        "teacher": str(fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")),
        "outdir": str(tmp_path / "runs"),
        "batch": 4,
        "kimg": 0.024,
        "warmup_kimg": 0.004,
        "tick_kimg": 0.008,
        "snap_ticks": 1,
        "device": "cpu",
        "preflight": False,
        "glr": 1e-3,
        "ema_halflife_kimg": 0.01,
        "ema_rampup": None,
    }


@pytest.fixture
def measured(fixture_path: FindPath) -> dict[str, Any]:
    return {
        "data": str(fixture_path("metrics/dataset_s32.zip")),
        "detector": str(fixture_path("metrics/tiny_inception_s.pt")),
        "vgg": str(fixture_path("metrics/tiny_vgg_s.pt")),
        "metrics": "fid60_full,is60",
    }


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"metric-{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_rows_beside_snapshots(options: dict[str, Any], measured: dict[str, Any]) -> None:
    folder = start.run(RunConfig(**options, **measured)).parent
    found = rows(folder, "fid60_full")
    # The generator as it came, and three more.
    assert len(found) == 4 and len(rows(folder, "is60")) == 4
    moments = ("000000", "000000_008", "000000_016", "000000_024")
    assert [row["snapshot_pkl"] for row in found] == [f"network-snapshot-{moment}.pkl" for moment in moments]
    assert len({row["results"]["fid60_full"] for row in found}) == 4
    assert (folder / "network-best.pkl").exists()
    with Image.open(folder / "reals.png") as reals:
        layout = layout_of(reals)
        left, top = layout.corner(0, 0)
        corner = np.asarray(reals)[top : top + layout.tile : 2, left : left + layout.tile : 2]
    with Image.open(folder / "fakes_init.png") as fakes:
        assert layout_of(fakes) == layout and fakes.size == layout.size
    from refine.files.dataset import ImageDataset

    dataset = ImageDataset(measured["data"])
    assert any(np.array_equal(corner, dataset.image(i).transpose(1, 2, 0)) for i in range(len(dataset)))


def test_metrics_change_nothing_of_the_run(options: dict[str, Any], measured: dict[str, Any]) -> None:
    with_metrics = start.run(RunConfig(**options, **measured))
    without = start.run(RunConfig(**options, metrics="none"))
    assert with_metrics.read_bytes() == without.read_bytes()


def test_every_other_snapshot_and_the_last_one(options: dict[str, Any], measured: dict[str, Any]) -> None:
    folder = start.run(RunConfig(**options, **measured, metric_every=2)).parent
    assert len(rows(folder, "fid60_full")) == 3  # of the snapshots number 0, 1, 2 and 3: the last one is 3


def test_reference_statistics_and_a_detector_of_ones_own(
    options: dict[str, Any], measured: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "own-32x32.npz"
    np.savez(path, mu=np.zeros(48), sigma=np.eye(48))
    changes = {"metrics": "fid60_full", "data": None, "ref": str(path)}
    folder = start.run(RunConfig(**options, **(measured | changes))).parent
    about = rows(folder, "fid60_full")[0]["provenance"]
    assert about["detector"]["name"] == "tiny_inception_s.pt" and about["reference"]["name"] == "own-32x32.npz"


def test_teacher_where_there_is_nothing_else(options: dict[str, Any], measured: dict[str, Any]) -> None:
    changes = {"data": None, "metrics": "fid20_full"}
    folder = start.run(RunConfig(**(options | {"kimg": 0.008}), **(measured | changes))).parent
    assert len(rows(folder, "fid20_full_at16_teacher")) == 2


def test_what_auto_means(options: dict[str, Any], measured: dict[str, Any]) -> None:
    names = evaluation.metric_names
    assert names(RunConfig(**options), CUDA) == ("fid50k_full",)
    assert names(RunConfig(**options), CPU) == ()
    assert names(RunConfig(**options, data=measured["data"]), CPU) == ("fid50k_full",)
    assert names(RunConfig(**options, metrics="none"), CUDA) == ()
    assert names(RunConfig(**options, metrics="is5k,fid5k_full"), CPU) == ("is5k", "fid5k_full")


def test_options_are_checked_at_once(options: dict[str, Any]) -> None:
    for wrong in ({"metrics": "fid9x"}, {"metric_seed": -1}, {"fid_seeds": 0}, {"metric_every": 0}, {"ref": "data"}):
        with pytest.raises(UserError):
            RunConfig(**options, **wrong)


def test_a_default_that_cannot_be_had_is_one_line(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU, where `auto` means fid50k_full, without a network to get the detector from."""
    monkeypatch.setattr(evaluation, "metric_names", lambda config, device: ("fid50k_full",))
    monkeypatch.setattr(download, "fetch", lambda url, **_: (_ for _ in ()).throw(UserError(f"Cannot download {url}.")))
    with caplog.at_level(logging.INFO, logger="refine"):
        snapshot = start.run(RunConfig(**options))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "inception-2015-12-05.pt" in warnings[0]
    assert snapshot.is_file() and not list(snapshot.parent.glob("metric-*"))
    with pytest.raises(UserError, match="Cannot download"):
        start.run(RunConfig(**options, metrics="fid50k_full"))


def test_nothing_is_begun_for_a_metric_that_cannot_be(options: dict[str, Any], measured: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no file 'missing"):
        start.run(RunConfig(**options, **(measured | {"detector": "missing.pt"})))
    assert not Path(options["outdir"]).exists()


def test_a_metric_that_fails_does_not_end_the_run(
    options: dict[str, Any],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[int] = []
    original = Sampler.images

    def broken(self: Sampler, indices: range) -> torch.Tensor:
        calls.append(len(indices))
        if len(calls) == 4:  # two images to try the suite out for each metric, then the first snapshot's, then this
            raise RuntimeError("a kernel failed")
        return original(self, indices)

    monkeypatch.setattr(Sampler, "images", broken)
    with caplog.at_level(logging.WARNING, logger="refine"):
        folder = start.run(RunConfig(**options, **measured)).parent
    assert "network-snapshot-000000_008.pkl: RuntimeError: a kernel failed" in caplog.text
    assert len(rows(folder, "fid60_full")) == 3


def test_ctrl_c_in_a_metric_loses_the_metric_only(
    options: dict[str, Any],
    measured: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The signal comes while the second snapshot is measured: it and its state are there, and the run can go on."""
    import signal

    calls: list[int] = []
    original = Sampler.images

    def interrupted(self: Sampler, indices: range) -> torch.Tensor:
        calls.append(len(indices))
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(self, indices)

    monkeypatch.setattr(Sampler, "images", interrupted)
    with caplog.at_level(logging.INFO, logger="refine"), pytest.raises(KeyboardInterrupt):
        start.run(RunConfig(**options, **measured))
    (folder,) = Path(options["outdir"]).iterdir()
    assert "network-snapshot-000000_008.pkl; they are not recorded" in caplog.text
    assert len(rows(folder, "fid60_full")) == 1 and list(folder.glob("training-state-*.pt"))


def test_a_resumed_run_may_change_its_metrics(options: dict[str, Any], measured: dict[str, Any]) -> None:
    folder = start.run(RunConfig(**(options | {"kimg": 0.008}), metrics="none")).parent
    state = next(iter(folder.glob("training-state-*.pt")))
    config = start.resumed_config(state, {"kimg": 0.016, **measured})
    start.run(config, resume=state)
    assert len(rows(folder, "fid60_full")) == 1


def test_prefetch(options: dict[str, Any], measured: dict[str, Any]) -> None:
    given = options | measured | {"preflight": 0}
    spelt = {"tick_kimg": "tick", "snap_ticks": "snap"}
    arguments = [f"--{spelt.get(k, k).replace('_', '-')}={v}" for k, v in given.items() if v is not None]
    result = CliRunner().invoke(cli.main, [*arguments, "--prefetch"])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("with the network off: ") == 3 and "metrics fid60_full, is60" in result.stdout
    assert not Path(options["outdir"]).exists()
