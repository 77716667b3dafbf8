"""Records of a run's provenance."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

import refine
from refine.errors import UserError
from refine.pair.preflight import Preflight
from refine.runs.provenance import add_session, cpu_name, git_commit, session, write_preflight


def test_sessions_are_rows(tmp_path):
    for cur_nimg in (0, 4000):
        add_session(tmp_path, session(torch.device("cpu"), 2, {"gan": "ab"}, cur_nimg))
    rows = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [row["cur_nimg"] for row in rows] == [0, 4000]
    row = rows[0]
    assert row["refine"] == refine.__version__ and row["torch"] == torch.__version__
    assert row["device"] == "cpu" and row["gpu"] is None and row["num_processes"] == 2
    assert row["sha256"] == {"gan": "ab"} and row["cpu"] and row["cores"] >= 1 and row["memory_gb"] > 0


def test_the_commit_of_a_checkout(tmp_path):
    assert git_commit(tmp_path) is None
    (tmp_path / "a.txt").write_text("a")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    for arguments in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "a"], ["tag", "v1"]):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    commit = git_commit(tmp_path)
    assert commit is not None and re.fullmatch(r"[0-9a-f]{7,}", commit)
    (tmp_path / "a.txt").write_text("b")
    assert git_commit(tmp_path) == commit + "+"


def test_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert git_commit(tmp_path) is None  # not a repository after all
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path) is None


def test_the_processor_has_a_name(monkeypatch):
    assert cpu_name()
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: (_ for _ in ()).throw(OSError()))
    assert cpu_name()


def test_the_preflight(tmp_path):
    found = Preflight(
        sigmas=(0.1, 1.0),
        generator_loss=(0.5, 0.6),
        teacher_loss=(0.1, 0.3),
        generator_range=(0.0, 0.5),
        teacher_range=(0.1, 0.5),
        findings=("domain",),
        warnings=("Warning: The pair does not fit.",),
        num_images=16,
        recognized=False,
    )
    write_preflight(tmp_path, found)
    read = json.loads((tmp_path / "preflight.json").read_text())
    assert read["sigmas"] == [0.1, 1.0] and read["warnings"] == ["Warning: The pair does not fit."]
    assert read["verdict"] == "Warning: The pair does not fit."


def test_where_nothing_can_be_written(tmp_path):
    with pytest.raises(UserError, match="missing"):
        add_session(tmp_path / "missing", {})
