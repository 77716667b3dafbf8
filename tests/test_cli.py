"""`python refine.py`: what it says of a pair, and where it stops."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from refine import cli

ROOT = Path(__file__).resolve().parents[1]


def run(*args: object):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def test_pair_is_described(fixture_path):
    gan, teacher = fixture_path("sg2ada/b_cond16.pkl"), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    result = run("--gan", gan, "--teacher", teacher, "-n")
    assert result.exit_code == 0, result.stderr
    assert "StyleGAN2 generator (stylegan2-ada-pytorch), 16x16x3, 5 classes, 37,158 parameters" in result.stdout
    assert "EDMPrecond over SongUNet" in result.stdout
    assert "The teacher sees the generator's images as they are, with classes." in result.stdout
    assert '"weighting": "uniform"' in result.stdout  # the options follow


def test_missing_files_are_asked_for(fixture_path):
    result = run("--gan", fixture_path("sg2ada/b_cond16.pkl"))
    assert result.exit_code == 2 and "Give --teacher" in result.stderr
    result = run("--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    assert result.exit_code == 2 and "Give --gan" in result.stderr


def test_class_map(fixture_path):
    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    assert run(*pair, "-n", "--class-map=4,3,2,1,0").exit_code == 0
    result = run(*pair, "-n", "--class-map=4,3")
    assert result.exit_code == 2 and "has 2 entries and the generator 5 classes" in result.stderr
    result = run(*pair, "-n", "--class-map=a")
    assert result.exit_code == 2 and "must be class numbers" in result.stderr


def test_generator_above_the_teachers_resolution(fixture_path):
    gan, teacher = fixture_path("sg2ada/a_uncond32.pkl"), fixture_path("edm/s1_edm_ddpmpp_uncond16.pkl")
    result = run("--gan", gan, "--teacher", teacher, "--dry-run")
    assert result.exit_code == 0
    assert "The teacher sees the generator's images reduced to 16x16 (lanczos), without classes." in result.stdout


def test_pair_that_does_not_fit(fixture_path):
    teacher = fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")
    result = run("--gan", fixture_path("sg2ada/d_gray16.pkl"), "--teacher", teacher, "-n")
    assert result.exit_code == 2 and "draws 1 channels and the teacher sees 3" in result.stderr
    result = run("--gan", fixture_path("sg2ada/a_uncond32.pkl"), "--teacher", teacher, "-n")
    assert result.exit_code == 2 and "knows 5 classes and the generator none" in result.stderr


def test_as_a_script():
    command = [sys.executable, str(ROOT / "refine.py")]
    result = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and "--teacher" in result.stdout
    result = subprocess.run([*command, "--gna=x"], capture_output=True, text=True)
    assert result.returncode == 2 and "--gan" in result.stderr and "Traceback" not in result.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys, refine.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_custom_ops(fixture_path, monkeypatch):
    from stylegan_ops import select
    from stylegan_ops.build import BuildError

    pair = ("--gan", fixture_path("sg2ada/b_cond16.pkl"), "--teacher", fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    before = select.mode()
    try:
        assert run(*pair, "-n", "--custom-ops=off").exit_code == 0 and select.mode() == "off"
        assert run(*pair, "-n", "--custom-ops=maybe").exit_code == 2

        def fail(device):
            raise BuildError("There is no compiler", "install one")

        monkeypatch.setattr(select, "load", fail)
        result = run(*pair, "-n", "--custom-ops=on", "--device=cpu")
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "There is no compiler" in result.stderr
    finally:
        select.set_mode(before)
