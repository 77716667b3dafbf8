"""`python refine.py`: what it says of a pair, and where it stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine.commands import run as cli
from refine.config import GROUPS, RunConfig
from refine.runs.writer import Writer

ROOT = Path(__file__).resolve().parents[2]


def run(*args: object):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def test_pair_is_described(fixture_path):
    gan, teacher = fixture_path("sg2ada/b_cond16.pkl"), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    result = run("--gan", gan, "--teacher", teacher, "-n")
    assert result.exit_code == 0, result.stderr
    assert "StyleGAN2 generator (stylegan2-ada-pytorch), 16x16x3, 5 classes, 37,158 parameters" in result.stdout
    assert "EDMPrecond over SongUNet" in result.stdout
    assert "The teacher sees the generator's images as they are, with classes." in result.stdout
    assert '"objective": "sim' in result.stdout  # the options follow


def test_missing_files_are_asked_for(fixture_path):
    result = run("--gan", fixture_path("sg2ada/b_cond16.pkl"))
    assert result.exit_code == 2 and "Give --teacher, the EDM pickle" in result.stderr and "--help" in result.stderr
    result = run()
    assert result.exit_code == 2 and "Give --teacher" in result.stderr


def test_class_map(fixture_path):
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    assert run(*pair, "-n", "--class-map=4,3,2,1,0").exit_code == 0
    result = run(*pair, "-n", "--class-map=4,3")
    assert result.exit_code == 2 and "--class-map has 2 entries" in result.stderr and "5 classes" in result.stderr
    result = run(*pair, "-n", "--class-map=a")
    assert result.exit_code == 2 and "--class-map" in result.stderr


def test_generator_above_the_teachers_resolution(fixture_path):
    gan, teacher = fixture_path("sg2ada/a_uncond32.pkl"), fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")
    result = run("--gan", gan, "--teacher", teacher, "--dry-run")
    assert result.exit_code == 0
    assert "The teacher sees the generator's images reduced to 16x16 (lanczos), without classes." in result.stdout


def test_pair_that_does_not_fit(fixture_path):
    teacher = fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    result = run("--gan", fixture_path("sg2ada/d_gray16.pkl"), "--teacher", teacher, "-n")
    assert result.exit_code == 2 and "1 channel " in result.stderr and " 3: " in result.stderr
    result = run("--gan", fixture_path("sg2ada/a_uncond32.pkl"), "--teacher", teacher, "-n")
    assert result.exit_code == 2 and "5 classes" in result.stderr


def test_as_a_script():
    command = [sys.executable, str(ROOT / "refine.py")]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "--teacher" in result.stdout
    result = subprocess.run([*command, "--gna=x"], capture_output=True, text=True)
    assert result.returncode == 2 and "--gan" in result.stderr and "Traceback" not in result.stderr


def test_help_is_as_documented():
    """After a change of options, refresh it: COLUMNS=102 python refine.py --help > docs/help.txt, and read it."""
    command = [sys.executable, str(ROOT / "refine.py"), "--help"]
    environment = {**os.environ, "COLUMNS": "102", "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert result.stdout == (ROOT / "docs" / "help.txt").read_text(encoding="utf-8")
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_every_option_of_a_run_has_a_spelling():
    typed = {name for parameter in cli.main.params for name in parameter.opts}
    for option in RunConfig.options():
        assert set(option.flags) <= typed and option.help.endswith(".") and option.group in GROUPS, option.name
        assert option.metavar, option.name


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("--gna=x", "--gan"), ("--dryrun", "--dry-run"), ("--batch_gpu=2", "--batch-gpu"), ("--kimgs=3", "--kimg")],
)
def test_typos_get_a_suggestion(typo, meant):
    result = run(typo)
    assert result.exit_code == 2 and "Did you mean" in result.stderr and meant in result.stderr


def test_both_spellings_of_tick_and_snap(fixture_path):
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    for names in (("--tick=3", "--snap=7"), ("--tick-kimg=3", "--snap-ticks=7")):
        result = run(*pair, "-n", *names)
        assert '"tick_kimg": 3.0' in result.stdout and '"snap_ticks": 7' in result.stdout
        assert "a snapshot every 21 kimg, 6 of" in result.stdout


def test_plan_is_what_a_run_does(fixture_path, tmp_path):
    """Steps, snapshots and states as counted beforehand."""
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    options = ("--outdir", tmp_path, "--batch=4", "--kimg=0.042", "--warmup-kimg=0.01", "--tick=0.008", "--snap=2")
    plan = run(*pair, *options, "-n").stdout
    assert list(tmp_path.iterdir()) == []
    assert "0.042 kimg in 11 steps of 4 images, after 0.01 kimg of warm-up (3 steps)" in plan
    assert "a snapshot every 0.016 kimg, 4 of 521 kB each" in plan
    saved = []
    original = Writer.save

    def save(self, *, snapshot=False, state=False):
        saved.extend([self.trainer.progress.step] * snapshot)
        original(self, snapshot=snapshot, state=state)

    try:
        Writer.save = save
        assert run(*pair, *options, "--preflight=0").exit_code == 0
    finally:
        Writer.save = original
    assert saved == [0, 4, 8, 11]


def test_gpus(monkeypatch):
    result = run("--gan=x", "--teacher=y", "--gpus=4")
    assert result.exit_code == 2 and "torchrun --standalone --nproc_per_node=4 refine.py" in result.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes run" in run("--gan=x", "--teacher=y", "--gpus=1").stderr
    assert "--gpus" not in run("--gan=/nowhere", "--teacher=/nowhere.pkl", "--gpus=2").stderr


def test_none_undoes_what_a_preset_says(fixture_path):
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    result = run(*pair, "-n", "--preset=released", "--ema-rampup=none", "--share-forward=1", "--batch-gpu=none")
    assert '"ema_rampup": null' in result.stdout and '"share_forward": true' in result.stdout
    assert '"fake_augment": 0.12' in result.stdout and "Preset released" in result.stdout


def test_a_watch_over_metrics_that_are_not_measured(pair):
    """On a CPU nothing is measured unless asked for, so nothing would ever stop."""
    options = [f"--{name}={value}" for name, value in pair.items()]
    for more in ([], ["--dry-run"]):
        result = run(*options, "--stop-if-worse=2", "--device=cpu", *more)
        assert result.exit_code == 2 and "--stop-if-worse=2" in result.stderr and "--metrics=auto" in result.stderr


def test_dry_run_with_preflight(fixture_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    result = run(*pair, "--dry-run", "--preflight", "--device=cpu")
    assert result.exit_code == 0 and "Preflight: " in result.stdout and "16 images" in result.stdout
    assert list(tmp_path.iterdir()) == []
    result = run("--resume=latest", "--init=x")
    assert result.exit_code == 2 and "--init begins one" in result.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys, refine.commands.run; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_custom_ops(fixture_path, monkeypatch):
    from stylegan_ops import dispatch
    from stylegan_ops.build import BuildError

    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    assert run(*pair, "-n", "--custom-ops=off").exit_code == 0 and dispatch.mode() == "off"
    assert run(*pair, "-n", "--custom-ops=maybe").exit_code == 2

    def fail(device):
        raise BuildError("There is no compiler", "install one")

    monkeypatch.setattr(dispatch, "load", fail)
    result = run(*pair, "-n", "--custom-ops=on", "--device=cpu")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "There is no compiler" in result.stderr
