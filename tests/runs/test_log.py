"""`log.txt` has what the terminal said, from the first line on, and the report shows its warnings."""

from __future__ import annotations

import logging

import pytest

from refine.config import RunConfig
from refine.errors import UserError
from refine.runs import start
from refine.runs.folder import RunFolder
from refine.runs.log import IN_LOG, RunLog


def config(pair, tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.008, "warmup_kimg": 0, "tick_kimg": 0.008, "preflight": False, "device": "cpu"}
    return RunConfig(**pair, outdir=str(tmp_path / "runs"), **(sizes | changes))


def test_notes_on_classes_and_warnings_are_in_the_log_and_in_the_report(pair, tmp_path, fixture_path, monkeypatch):
    detector = str(fixture_path("metrics/tiny_inception_s.pt"))
    monkeypatch.setattr("refine.metrics.suite.Suite.measure", lambda *args: 1 / 0)
    options = {"objective": "sds", "metrics": "is20", "detector": detector}
    folder = start.run(config(pair, tmp_path, **options)).parent
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("classes 0-4 are", "has no entropy", "ZeroDivisionError"):
        found = [line for line in lines if part in line]
        assert found and all(line.startswith("Warning: ") for line in found), (part, lines)
        assert part in page, part
    assert sum("Run directory" in line for line in lines) == 1 and lines.index(found[0]) > 0


def test_images_beyond_their_range_are_warned_of_once(pair, tmp_path):
    """Finite ones, that is; the others end the run."""
    folder = start.run(config(pair, tmp_path, kimg=0.024, warmup_kimg=0.008, glr=100.0)).parent
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    (warning,) = [line for line in lines if line.startswith("Warning: ") and "--glr" in line]
    assert warning.removeprefix("Warning: ") in (folder / "report.html").read_text(encoding="utf-8")
    ticks = [line.split()[3] for line in lines if line.startswith("tick ")]
    assert ticks == ["0.008", "0.016", "0.024"]  # three digits, which tell them apart


def test_an_error_that_ends_the_run_is_the_last_line(pair, tmp_path):
    def fail(row):
        raise UserError("on_tick failed with http://me:s3cret@x/y.pkl: mend it.")

    with pytest.raises(UserError):
        start.run(config(pair, tmp_path), on_tick=fail)
    (folder,) = (tmp_path / "runs").iterdir()
    last = (folder / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith("Error: on_tick failed") and "s3cret" not in last
    assert "on_tick failed" in (folder / "report.html").read_text(encoding="utf-8")


def test_lines_from_before_the_folder_come_first_and_none_twice(tmp_path):
    logger = logging.getLogger("refine.test")
    logger.setLevel(logging.DEBUG)
    with RunLog(logger, is_writer=True) as log:
        logger.info("early\nline")
        logger.debug("detail")
        log.use(RunFolder(tmp_path))
        logger.warning("late")
        logger.info("said", extra=IN_LOG)
    logger.warning("after")
    assert (tmp_path / "log.txt").read_text().splitlines() == ["early line", "Warning: late"]
    with RunLog(logger, is_writer=False) as log:
        log.use(RunFolder(tmp_path))
        logger.warning("other rank")
    assert "other" not in (tmp_path / "log.txt").read_text() and not logger.handlers
