"""The command that repeats a run."""

from __future__ import annotations

import json
import shlex

import pytest
from click.testing import CliRunner

from refine.config import RunConfig
from refine.presets import PRESETS, Preset
from refine.report.command import changed_options, command
from refine.report.read import read_run

PAIR = {"gan": "digits", "teacher": "edm-digits"}


def stored(**options):
    """Contents of `training_options.json`."""
    return json.loads(RunConfig(**(PAIR | options)).to_json())


def words(options):
    return shlex.split(command(options).replace("\\\n", ""))


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize("conditional", [True, False])
def test_a_preset_is_named_and_not_repeated(name, conditional):
    """Options that depend on labels are repeated: the folder does not tell whether there were any."""
    options = stored(**PRESETS[name].options_for(conditional), preset=name)
    assert set(changed_options(options)) - set(PRESETS[name].unconditional) == {"gan", "teacher", "preset"}
    assert set(PRESETS[name].unconditional) <= set(changed_options(options))


def test_only_what_differs():
    options = stored(**PRESETS["digits"].options_for(True), preset="digits") | {
        "seed": 7,
        "class_map": [0, 1],
        "clip_grad": 1.5,
        "preflight": False,
        "ema_rampup": 0.05,  # the preset has none
        "desc": "it's mine",
    }
    found = {"--gan=digits", "--teacher=edm-digits", "--preset=digits", "--seed=7", "--class-map=0,1"}
    found |= {"--clip-grad=1.5", "--preflight=0", "--ema-rampup=0.05", "--desc=it's mine"}
    assert words(options)[:2] == ["python", "refine.py"]
    assert set(words(options)[2:]) == found
    assert len(command(options).splitlines()) == 1 + len(found)  # one option a line


def test_none_is_said_where_the_preset_has_a_value(monkeypatch):
    """If only without labels, too: the options do not say whether the pair had them."""
    monkeypatch.setitem(PRESETS, "tiny", Preset("", {"ema_rampup": None}, {"ema_rampup": 0.05}))
    options = stored(ema_rampup=None, preset="tiny")
    assert "--ema-rampup=none" in words(options)


@pytest.mark.parametrize("preset", [None, "of another version"])
def test_without_a_preset_everything_that_one_may_set_is_named(preset):
    """The command line would choose a preset by itself."""
    options = stored() | {"preset": preset}
    changed = changed_options(options)
    of_presets = {name for p in PRESETS.values() for name in (*p.options, *p.unconditional)}
    assert {name for name in of_presets if options[name] is not None} <= set(changed)


def test_options_of_other_versions_stay(rundir):
    assert "--novel=3" in words(stored() | {"novel": 3, "gone": None})
    assert not any("gone" in word for word in words(stored() | {"gone": None}))


def test_the_command_does_the_same_again(fixture_path, tmp_path):
    from refine import run
    from refine.commands.run import main

    pair = {"gan": fixture_path("sg2ada/b_cond16.pkl"), "teacher": fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")}
    sizes = {"batch": 8, "kimg": 0.048, "warmup_kimg": 0.016, "tick_kimg": 0.016, "device": "cpu", "glr": 1e-3}
    config = RunConfig(**{n: str(p) for n, p in pair.items()}, outdir=str(tmp_path), ema_rampup=None, **sizes)
    first = read_run(run(config).parent)
    result = CliRunner().invoke(main, words(first.options)[2:])
    assert result.exit_code == 0, result.output
    second = read_run(next(path for path in tmp_path.iterdir() if path.name.startswith("00001-")))
    assert second.options | {"preset": None} == first.options | {"preset": None}
    assert second.series("Score/gap") == first.series("Score/gap") != []
