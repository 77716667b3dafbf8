"""Images decoded by other processes are those decoded here, in their order, and errors still name the file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refine.errors import UserError
from refine.files import decoding as reading
from refine.files.dataset import ImageDataset
from refine.files.decoding import MANY_PIXELS, MOST_WORKERS, read_batches, suitable_workers

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, count: int = 12, broken: int | None = None) -> Path:
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue()
            archive.writestr(f"img{number:02d}.png", data[:-30] if number == broken else data)
    return path


@pytest.mark.slow
def test_two_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrored items, odd batches, parts of a batch; then a damaged image."""
    monkeypatch.setattr(reading, "PART_BYTES", 3 * 8 * 8 * 2)  # two images
    dataset = ImageDataset(write(tmp_path / "data.zip", broken=11), xflip=True)
    order = [3, 0, 15, 7, 22, 1, 2, 9]
    expected = [np.stack([dataset.image(i) for i in order[first : first + 5]]) for first in (0, 5)]
    batches = read_batches(dataset, [*order, 4, 10, 11], 5, workers=2)
    for images in expected[:1]:
        np.testing.assert_array_equal(next(batches), images)
    np.testing.assert_array_equal(next(batches)[:3], expected[1])
    with pytest.raises(UserError) as caught:
        next(batches)
    message = str(caught.value)
    assert "data.zip/img11.png is damaged" in message and "\n" not in message and "worker" not in message


class Ended:
    """Workers that somebody ends after two parts."""

    def __init__(self, source: Any) -> None:
        self.source, self.count = source, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.count += 1
        if self.count > 2:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore")
        return self.source[self.count - 1]


@pytest.mark.parametrize("start", ["ended", "refused"])
def test_it_goes_on_without_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, start: str
) -> None:
    def refuse(source: Any, workers: int) -> Any:
        raise OSError("Resource temporarily unavailable")

    monkeypatch.setattr(reading, "start_workers", refuse if start == "refused" else lambda source, _: Ended(source))
    dataset = ImageDataset(write(tmp_path / "data.zip"))
    with caplog.at_level("INFO", logger="refine"):
        found = np.concatenate(list(read_batches(dataset, range(12), 3, workers=2)))
    np.testing.assert_array_equal(found, np.stack([dataset.image(i) for i in range(12)]))
    assert len(caplog.records) == 1 and "continuing in this one" in caplog.text and "more" not in caplog.text


def test_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "num_cores", lambda: 6)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (suitable_workers(MANY_PIXELS - 1), suitable_workers(MANY_PIXELS)) == (0, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # torchrun's, each with its own part of the images
    assert suitable_workers(MANY_PIXELS) == 3
    for cores, expected in ((1, 0), (3, 0), (200, MOST_WORKERS)):
        monkeypatch.setattr(reading, "num_cores", lambda cores=cores: cores)
        assert suitable_workers(MANY_PIXELS) == expected


def test_few_images_need_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(reading, "start_workers")
    dataset = ImageDataset(write(tmp_path / "data.zip"))
    assert [len(batch) for batch in read_batches(dataset, range(12), 5)] == [5, 5, 2]


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """The processes do not run the user's script again, as those that are started afresh do."""
    write(tmp_path / "data.zip")
    script = tmp_path / "script.py"
    script.write_text(
        "from refine.files.dataset import ImageDataset\n"
        "from refine.files.decoding import read_batches\n"
        "print('once', flush=True)\n"
        f"for batch in read_batches(ImageDataset({str(tmp_path / 'data.zip')!r}), range(12), 6, workers=1):\n"
        "    print(batch.shape)\n"
    )
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert result.returncode == 0 and result.stdout.split("\n") == ["once", *["(6, 3, 8, 8)"] * 2, ""], result.stderr
