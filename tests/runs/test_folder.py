"""The folder of a run: names, rows, states and pictures."""

from __future__ import annotations

import json
import re

import pytest

from refine.errors import UserError
from refine.runs.folder import RunFolder, find_state, snapshot_tag


@pytest.mark.parametrize("batch", [1, 8, 127, 128, 600, 999, 1000, 1001, 2500])
def test_no_two_moments_share_a_name(batch):
    names = [snapshot_tag(nimg, batch) for nimg in range(0, 20_000, batch)]
    files = [f"{name}.pkl" for name in names]
    assert len(set(files)) == len(files) and files == sorted(files)
    first_steps = {name[:6]: name for name in reversed(names)}
    assert all(name == kimg for kimg, name in first_steps.items())  # as the StyleGAN family has it


def test_rows_newer_than_the_state_are_cut(tmp_path):
    folder = RunFolder(tmp_path)
    for nimg in (1000, 2000, 3000):
        folder.add_stats({"Progress/cur_nimg": nimg})
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"Progress/cur_ni')  # killed while writing
    folder.cut_rows(2000)
    kept = lambda: [json.loads(line)["Progress/cur_nimg"] for line in (tmp_path / "stats.jsonl").open()]  # noqa: E731
    assert kept() == [1000, 2000]
    (tmp_path / "stats.jsonl").write_text("".join(f'{{"Progress/cur_nimg": {n}}}\n' for n in (-24, -16, -8)))
    folder.cut_rows(-16)  # a state from the warm-up
    assert kept() == [-24, -16]


def test_the_two_newest_states_are_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for nimg in (1_000, 20_000, 3_000_000, 1_000_000_000):
        folder.state_path(nimg).touch()
        folder.remove_old_states()
    assert [p.name for p in folder.states()] == ["training-state-003000.pt", "training-state-1000000.pt"]


def test_folders_are_numbered(tmp_path):
    names = [RunFolder.create(tmp_path / "out", "x").path.name for _ in range(3)]
    (tmp_path / "out" / "00041-other").mkdir()
    assert [*names, RunFolder.create(tmp_path / "out", "x").path.name] == ["00000-x", "00001-x", "00002-x", "00042-x"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        RunFolder.create(tmp_path / "file", "x")


def test_finding_states(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        find_state("latest", tmp_path)
    with pytest.raises(UserError, match="none"):
        find_state(str(tmp_path / "none"), tmp_path)
    a, b, c = (RunFolder.create(tmp_path, "x") for _ in range(3))
    with pytest.raises(UserError, match=r"training-state-\*\.pt"):
        find_state(str(a.path), tmp_path)
    expected = b.state_path(2000)
    for path in (a.state_path(1000), expected):
        path.touch()
    assert find_state("latest", tmp_path) == expected  # c has none yet
    assert find_state(str(expected), tmp_path) == expected and not c.states()
