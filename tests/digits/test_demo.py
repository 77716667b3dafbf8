"""`python -m refine demo`: the run that `make demo` makes, judged."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from refine.config import RunConfig
from refine.digits import demo, judge
from refine.runs import start


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The options of runs and the folders that were judged; no run takes place."""
    seen = []
    monkeypatch.setattr(start, "run", lambda config: seen.append(config) or tmp_path / "run" / "network.pkl")
    monkeypatch.setattr(judge, "print_judgment", lambda folder: seen.append(folder))
    return seen


def test_the_run_is_that_of_the_built_in_pair_and_is_judged(made, tmp_path):
    result = CliRunner().invoke(demo.main, [f"--outdir={tmp_path / 'runs'}", "--seed=3"])
    assert result.exit_code == 0, result.output
    outdir = str(tmp_path / "runs")
    assert made[0] == RunConfig.from_preset(gan="digits", teacher="edm-digits", outdir=outdir, seed=3)
    assert made[0].preset == "digits" and made[1:] == [tmp_path / "run"]


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
