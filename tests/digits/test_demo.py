"""`python -m refine demo`: the run that `make demo` makes, judged."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
from click.testing import CliRunner

from refine.config import RunConfig
from refine.digits import demo, judge
from refine.runs import start
from refine.runtime import launch


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The options of runs and the folders that were judged; no run takes place, and no process starts."""
    seen = []
    monkeypatch.setattr(launch, "suitable_processes", lambda device, at_most: 1)
    monkeypatch.setattr(start, "run", lambda config: seen.append(config) or tmp_path / "run" / "network.pkl")
    monkeypatch.setattr(judge, "print_judgment", lambda folder: seen.append(folder))
    return seen


def test_the_run_is_that_of_the_built_in_pair_and_is_judged(made, tmp_path):
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'runs'}", "--seed=3"])
    assert result.exit_code == 0, result.output
    outdir = str(tmp_path / "runs")
    assert made[0] == RunConfig.from_preset(gan="digits", teacher="edm-digits", outdir=outdir, seed=3)
    assert made[0].preset == "digits" and made[1:] == [tmp_path / "run"]


def test_the_long_one_differs_in_its_length_alone(made, tmp_path):
    for options in ([], ["--long"]):
        assert CliRunner().invoke(demo.main, [f"--outdir={tmp_path}", *options]).exit_code == 0
    assert replace(made[2], kimg=made[0].kimg) == made[0] and made[2].kimg == demo.LONG_KIMG > 2 * made[0].kimg


def test_other_processes_do_the_same_and_only_the_first_judges(made, monkeypatch, tmp_path):
    """With two cores: the command of process 1, and what it does itself."""
    commands = []
    monkeypatch.setattr(launch, "suitable_processes", lambda device, at_most: at_most)
    monkeypatch.setattr(launch, "processes_beside", lambda count, command: commands.append(command) or nullcontext())
    assert CliRunner().invoke(demo.main, [f"--outdir={tmp_path}", "--seed=2", "--long"]).exit_code == 0
    ((program, *command),) = commands
    assert program == sys.executable and command[:3] == ["-m", "refine", "demo"] and len(made) == 2
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert CliRunner().invoke(demo.main, command[3:]).exit_code == 0
    assert made[2:] == [made[0]]


def test_an_interrupted_run_is_not_judged(made, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "run", interrupted)
    result = CliRunner().invoke(demo.main, [])
    assert result.exit_code == 130 and made == [] and "Traceback" not in result.output


@pytest.mark.parametrize("option", ["--seed=-1", "--seed=x", "--sed=1"])
def test_refusals(made, option):
    result = CliRunner().invoke(demo.main, [option])
    assert result.exit_code == 2 and option.split("=")[0][:5] in result.stderr and made == []
