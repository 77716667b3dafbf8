"""`--config=FILE`: options in JSON and YAML, what wins over what, and what is refused."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from refine.commands import run as cli
from refine.commands.config_file import read_config
from refine.config import RunConfig
from refine.errors import UserError
from refine.presets import PRESETS
from refine.runs import start


@pytest.fixture
def made(monkeypatch):
    """The options of runs that would have begun."""
    configs: list[RunConfig] = []
    monkeypatch.setattr(start, "run", lambda config, **given: configs.append(config) or "x.pkl")
    return configs


def run(*arguments: object):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_a_file_of_a_run_begins_the_same_run(pair, made, tmp_path):
    """Whatever it was made from: the file has all options."""
    first = RunConfig.from_preset("tiny", **pair, seed=3, class_map=[4, 3, 2, 1, 0], batch_gpu=8, sigma="karras")
    (tmp_path / "training_options.json").write_text(first.to_json())
    assert run(f"--config={tmp_path / 'training_options.json'}").exit_code == 0
    assert made.pop() == first
    done = run(f"--config={tmp_path / 'training_options.json'}", "--seed=4", "--batch-gpu=none", "--sigma=lognormal")
    assert done.exit_code == 0, done.output
    changed = made.pop()
    assert (changed.seed, changed.batch_gpu, str(changed.sigma)) == (4, None, "lognormal:-1.2,1.2")
    assert changed.class_map == first.class_map and changed.glr == first.glr


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(pair, made, tmp_path):
    (tmp_path / "x.yaml").write_text("glr: 1e-5\nbatch: 16\ntick: 3\nshare-forward: yes\nclass_map: 4,3,2,1,0  # all\n")
    files = [f"--{name}={value}" for name, value in pair.items()]
    assert run(*files, f"--config={tmp_path / 'x.yaml'}", "--batch=8").exit_code == 0
    config = made.pop()
    assert (config.glr, config.batch, config.tick_kimg, config.share_forward) == (1e-5, 8, 3.0, True)
    assert (
        config.class_map == (4, 3, 2, 1, 0) and config.preset == "tiny" and config.flr == PRESETS["tiny"].options["flr"]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"batch": 8}', {"batch": 8}),
        ('{\n\t"kimg": 3,\n\t"clip_grad": null\n}', {"kimg": 3.0, "clip_grad": None}),
        ("kimg: 3\nclip_grad: none", {"kimg": 3.0, "clip_grad": None}),
        ("clip_grad: null\nclass_map: [1, 0]", {"clip_grad": None, "class_map": (1, 0)}),
        ("preflight: off\nnoise_mode: none", {"preflight": False, "noise_mode": "none"}),
        ("\ufeffbatch: 8", {"batch": 8}),
        ("weighting: dmd\nbatch: 8", {"batch": 8}),
        ("{batch: 8, kimg: 1}", {"batch": 8, "kimg": 1.0}),
    ],
)
def test_forms(tmp_path, text, expected):
    (tmp_path / "x").write_text(text, encoding="utf-8")
    found = read_config(tmp_path / "x")
    assert {name: found[name] for name in expected} == expected
    if "weighting" in text:
        assert str(found["objective"]) == "ikl:weighting=dmd"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("btach: 3", ["'btach'", "batch"]),
        ("batch: 0", ["batch", "0"]),
        ("batch: many", ["batch", "'many'"]),
        ("batch: [1]", ["batch", "[1]"]),
        ("glr: .nan", ["glr", "nan"]),
        ('{"glr": NaN}', ["glr", "nan"]),
        ('{"glr": 1e999}', ["glr", "inf"]),
        ("sigma: x", ["sigma", "'x'"]),
        ("batch: 1\nbatch: 2", ["'batch'", "twice"]),
        ('{"batch": 1, "batch": 2}', ["'batch'", "twice"]),
        ("tick: 1\ntick_kimg: 2", ["tick_kimg", "twice"]),
        ("batch: 3\n kimg: [", ["neither JSON nor YAML"]),
        ('{"batch" 3}', ["line 1 column"]),
        ("just text", ["batch: 32"]),
        ("- batch", ["batch: 32"]),
        ("", ["batch: 32"]),
        ("3: 4", ["3"]),
        ("? [a, b]\n: 3", ["neither JSON nor YAML"]),
        ("!!python/object/apply:os.system [touch pwned]", ["neither JSON nor YAML"]),
        ("batch: !!python/name:os.system", ["neither JSON nor YAML"]),
        ("\x00\x01", ["neither JSON nor YAML"]),
        ("desc: &a [*a]", ["desc"]),
        ("class_map: 2020-01-01", ["class_map"]),
    ],
)
def test_refusals_name_the_file_and_run_nothing(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text(text)
    done = run("--gan=g", "--teacher=t", "--config=x.yaml")
    sentence = done.stderr.splitlines()[-1]
    assert done.exit_code == 2 and "Traceback" not in done.output and len(done.stderr.splitlines()) == 1
    assert "x.yaml" in sentence and all(word in sentence for word in words), sentence
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin").write_bytes(b"desc: caf\xe9")
    (tmp_path / "large").write_bytes(b" " * 2_000_000)
    for name in ("nowhere.json", "latin", "large", "."):
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            read_config(tmp_path / name if name != "." else tmp_path.parent / tmp_path.name)


def test_with_resume_it_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"batch": 3}))
    done = run("--resume=latest", f"--config={tmp_path / 'x.json'}")
    assert done.exit_code == 2 and "--resume" in done.stderr and "--config" in done.stderr


def test_the_home_folder(tmp_path, monkeypatch, made, pair):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "x.json").write_text(json.dumps(pair | {"outdir": "~/runs"}))
    assert run("--config=~/x.json").exit_code == 0
    assert made.pop().outdir == str(tmp_path / "runs")
