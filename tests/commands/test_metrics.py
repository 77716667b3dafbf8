"""`python -m refine metrics`, with one process and with two."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from refine import zoo
from refine.commands.metrics import main
from refine.errors import UserError
from refine.files import download
from refine.files.dataset import ImageDataset
from refine.metrics.offline import network_off, prefetch

ROOT = Path(__file__).resolve().parents[2]
FindPath = Callable[[str], Path]


@pytest.fixture
def arguments(fixture_path: FindPath, data: str, detectors: dict[str, str]) -> list[str]:
    network = fixture_path("sg2ada/a_uncond32.pkl")
    return [
        f"--network={network}", f"--data={data}", "--device=cpu", *(f"--{k}={v}" for k, v in detectors.items())
    ]  # fmt: skip


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result


def rows(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_rows_go_to_stdout_and_beside_the_snapshots_of_a_run(
    arguments: list[str], fixture_path: FindPath, tmp_path: Path
) -> None:
    folder = tmp_path / "00000-run"
    folder.mkdir()
    (folder / "training_options.json").write_text("{}")
    for kimg in (4, 0):
        shutil.copy(fixture_path("sg2ada/a_uncond32.pkl"), folder / f"network-snapshot-{kimg:06d}.pkl")
    result = run(*arguments[1:], f"--network={folder}", "--metrics=fid60_full,is60")
    found = rows(result.stdout)
    assert [(row["metric"], row["snapshot_pkl"]) for row in found] == [
        (metric, f"network-snapshot-{kimg:06d}.pkl") for kimg in (0, 4) for metric in ("fid60_full", "is60")
    ]
    assert found[0]["results"] == found[2]["results"]
    kept = [json.loads(line) for line in (folder / "metric-fid60_full.jsonl").read_text().splitlines()]
    assert kept == [found[0], found[2]]
    alone = run(*arguments, "--metrics=fid60_full")
    assert rows(alone.stdout)[0]["results"] == found[0]["results"]
    assert not list(fixture_path("sg2ada/a_uncond32.pkl").parent.glob("metric-*"))


def test_pictures_and_export(arguments: list[str], fixture_path: FindPath, tmp_path: Path) -> None:
    sheet, grid, reference = tmp_path / "sheet.png", tmp_path / "grid.png", tmp_path / "ref.npz"
    before = f"--before={arguments[0].removeprefix('--network=')}"
    pictures = (f"--contact-sheet={sheet}", f"--grid={grid}", before)
    run(*arguments, "--metrics=fid60_full", *pictures, f"--export-ref={reference}", "--export-features")
    with Image.open(sheet) as image:
        assert image.size == (320, 6 * 32 + 4)
    with Image.open(grid) as image:
        assert image.size == (2 * 192 + 4, 192)
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels[:, :192], pixels[:, -192:])  # the same generator at the same latents
    assert pixels[:, :192].std() > 10
    run(*[a for a in arguments if "--data" not in a], f"--ref={reference}", "--metrics=kid60_full")
    content = {path: path.read_bytes() for path in (sheet, grid, reference)}
    for option, path in (("contact-sheet", sheet), ("grid", grid), ("export-ref", reference)):
        there = run(*arguments, "--metrics=fid60_full", f"--{option}={path}", code=2)
        assert str(path) in there.stderr and "--force" in there.stderr
    assert {path: path.read_bytes() for path in content} == content
    smaller = run(*arguments, "--metrics=is60", f"--contact-sheet={sheet}", "--force", code=2)
    assert "ask for a FID" in smaller.stderr


def test_a_data_set_is_checked_as_a_whole(data: str, tmp_path: Path) -> None:
    good = run(f"--check-data={data}")
    assert "256 images of 32x32 RGB" in good.stdout and len(good.stdout.splitlines()) == 1
    broken = tmp_path / "broken"
    shutil.unpack_archive(data, broken)
    for number in (0, 100, 250):
        (broken / f"00000/img{number:08d}.png").write_bytes(b"no image")
    bad = run(f"--check-data={broken}", code=2)
    named = [line.split()[0] for line in bad.stdout.splitlines() if "/img" in line]
    assert named == [f"{broken}/00000/img{number:08d}.png" for number in (0, 100, 250)]
    assert str(broken) in bad.stderr and "3 problems" in bad.stderr and len(bad.stderr.splitlines()) == 1
    assert "--network" in run("--metrics=fid60_full", code=2).stderr


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("--metrics=fid9x",), "There is no metric 'fid9x'"),
        (("--data=missing.zip",), "no data set missing.zip"),
        (("--detector=missing.pt",), "no file 'missing.pt'"),
        (("--fid-seeds=0",), "--fid-seeds must be a whole number from 1"),
        (("--trunc=nan",), "--trunc must be a number, not 'nan'"),
        (("--trunc=-inf",), "--trunc must be a number, not '-inf'"),
        (("--resample=foo",), "--resample must be one of lanczos"),
        (("--noise-mode=loud",), "--noise-mode must be one of random"),
        (("--batch=0",), "--batch must be a whole number from 1"),
        (("--workers=-1",), "--workers must be a whole number from 0"),
        (("--grid=x.jpgg",), "--grid must be a name that ends in .png, not 'x.jpgg'"),
        (("--export-ref=ref.pkl",), "--export-ref must be a name that ends in .npz"),
    ],
)
def test_errors_are_one_sentence(arguments: list[str], changes: tuple[str, ...], says: str) -> None:
    result = run(*arguments, "--metrics=fid60_full", *changes, code=2)
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1 and result.stdout == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("--ref=teacher",), "--teacher"),
        (("--ref=missing.npz",), "--data and --ref=missing.npz"),
        (("--metrics=none",), "--metrics=none"),
        (("--metrics=auto",), "--metrics=auto"),
        (("--before=x.pkl",), "--grid"),
        (("--export-features",), "--export-ref"),
    ],
)
def test_contradictions_are_named(arguments: list[str], changes: tuple[str, ...], says: str) -> None:
    given = arguments if "missing" in changes[0] else [a for a in arguments if "--data" not in a]
    result = run(*given, "--metrics=fid60_full", *changes, code=2)
    assert says in result.stderr and result.stdout == "" and "Traceback" not in result.stderr


def test_a_missing_reference(arguments: list[str]) -> None:
    without = [a for a in arguments if "--data" not in a]
    assert "missing.npz" in run(*without, "--metrics=fid60_full", "--ref=missing.npz", code=2).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_the_best_network_is_measured_as_the_snapshot_that_it_is(
    arguments: list[str], fixture_path: FindPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report looks for rows of snapshots. `latest` is understood as everywhere."""
    folder = tmp_path / "training-runs" / "00003-run"
    folder.mkdir(parents=True)
    (tmp_path / "training-runs" / "00002-run").mkdir()
    (folder / "training_options.json").write_text("{}")
    shutil.copy(fixture_path("sg2ada/a_uncond32.pkl"), folder / "network-snapshot-000004.pkl")
    (folder / "network-best.pkl").symlink_to("network-snapshot-000004.pkl")
    monkeypatch.chdir(tmp_path)
    for spec in (folder / "network-best.pkl", "training-runs/latest", "latest"):
        result = run(*arguments[1:], f"--network={spec}", "--metrics=is60")
        assert rows(result.stdout)[0]["snapshot_pkl"] == "network-snapshot-000004.pkl"
        assert "is60_mean" in result.stderr
    kept = (folder / "metric-is60.jsonl").read_text().splitlines()
    assert {json.loads(line)["snapshot_pkl"] for line in kept} == {"network-snapshot-000004.pkl"}


def test_data_named_inside_a_pickle_is_told_and_not_opened(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, fixture_path: FindPath
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(ImageDataset, "__init__", lambda self, path, **_: opened.append(str(path)))
    teacher = f"--teacher={fixture_path('edm/s1_edm_ddpmpp_uncond16.pkl')}"
    without = [a for a in arguments if "--data" not in a]
    result = run(*without, teacher, "--metrics=fid10_full", "--ref-images=4", "--batch=4")
    assert "trained on datasets/tiny-uncond32.zip" in result.stderr and opened == []
    assert rows(result.stdout)[0]["metric"] == "fid10_full_at16_teacher"


# -- prefetch -----------------------------------------------------------------------------------------


def test_prefetch_proves_that_no_network_is_needed(arguments: list[str]) -> None:
    result = run(*arguments, "--metrics=fid60_full", "--prefetch")
    assert "with the network off" in result.stdout and "tiny_inception_s.pt" in result.stdout


def test_prefetch_notices_what_asks_the_network_again() -> None:
    calls: list[int] = []

    def get() -> int:
        calls.append(1)
        if len(calls) == 2:
            socket.create_connection(("localhost", 9))
        return 7

    with pytest.raises(UserError, match="over the network again"):
        prefetch(get)
    assert prefetch(lambda: 7) == 7


def test_network_off_is_off_and_on_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    before = socket.socket.connect
    with network_off():
        for attempt in (
            lambda: socket.create_connection(("127.0.0.1", 9)),
            lambda: socket.socket().connect(("127.0.0.1", 9)),
            lambda: socket.getaddrinfo("localhost", 80),
            lambda: zoo.resolve("https://example.org/never-downloaded.pt"),
        ):
            with pytest.raises((OSError, UserError), match=r"switched off|Cannot download"):
                attempt()
    assert socket.socket.connect is before


# -- two processes ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_give_what_one_gives(arguments: list[str], tmp_path: Path) -> None:
    names = "fid71_full,kid71_full,pr1k3_full,is71,ppl2_wend9"
    one = run(*arguments, f"--metrics={names}", "--batch=16").stdout
    two = torchrun(*arguments, f"--metrics={names}", "--batch=7")
    assert two.returncode == 0, two.stderr
    expected, found = rows(one), rows(two.stdout)
    assert [row["metric"] for row in found] == names.split(",") and all(row["num_gpus"] == 2 for row in found)
    for a, b in zip(expected, found, strict=True):
        tolerance = (
            {"rel": 3e-3} if "ppl" in a["metric"] else {"rel": 1e-4, "abs": 2e-3 if "pr" in a["metric"] else 1e-4}
        )
        assert b["results"] == pytest.approx(a["results"], **tolerance)


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(arguments: list[str], data: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.unpack_archive(data, broken)
    (broken / "00000/img00000250.png").write_bytes(b"no image")
    result = torchrun(*[a for a in arguments if "--data" not in a], f"--data={broken}", "--metrics=fid20_full")
    assert result.returncode != 0 and "img00000250.png" in result.stderr


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*command, "-m", "refine", "metrics", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_images_in_files(arguments: list[str], data: str, tmp_path: Path) -> None:
    """A data set compared with itself; fewer images than there are are a random choice; they can be smaller."""
    stored = arguments[1:]
    (row,) = rows(run(*stored, f"--images={data}", "--metrics=fid256_full").stdout)
    assert abs(row["results"]["fid256_full"]) < 1e-6 and row["snapshot_pkl"] == Path(data).name
    known = row["provenance"]["images"]
    assert known["num_images"] == 256 and len(known["sha256"]) == 64 and "truncation_psi" not in row["provenance"]
    drawn = [
        rows(run(*stored, f"--images={data}", "--metrics=is100", f"--metric-seed={seed}").stdout)[0]["results"]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    files = ImageDataset(data)
    small = tmp_path / "small"
    small.mkdir()
    for index in range(60):
        image = Image.fromarray(files.image(index).transpose(1, 2, 0)).resize((16, 16), Image.Resampling.LANCZOS)
        image.save(small / f"{index}.png")
    (row,) = rows(run(f"--images={data}", f"--data={small}", *stored[1:], "--metrics=fid60_full").stdout)
    assert list(row["results"]) == ["fid60_full_at16"]


def test_images_in_files_that_cannot_be_measured(arguments: list[str], data: str) -> None:
    stored = [*arguments[1:], f"--images={data}"]
    assert "257" in run(*stored, "--metrics=fid257_full", code=2).stderr
    assert "fid85_full" in run(*stored, "--metrics=fid200_full", "--fid-seeds=3", code=2).stderr
    assert "ppl2_wend20" in run(*stored, "--metrics=ppl2_wend20", code=2).stderr
    for wrong in (arguments[0], "--trunc=0.5", "--noise-mode=const", arguments[0].replace("network", "before")):
        assert wrong.partition("=")[0] in run(*stored, wrong, "--metrics=fid60_full", code=2).stderr
    assert "nowhere" in run(*arguments[1:], "--images=nowhere", "--metrics=fid60_full", code=2).stderr
