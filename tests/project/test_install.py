"""Installed, as a wheel and in place, Refine has all its files and works from other folders."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("refine", "stylegan_ops", "torch_utils", "dnnlib")
FILES = ("pyproject.toml", "README.md", "LICENSE", "refine.py")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="paths of a POSIX environment")]


def call(*command: object, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=clean)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The checkout under its usual name."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / "refine" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path / "refine")
    return tmp_path / "refine"


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The bin folder of a virtual environment that sees the packages of this one, but not this checkout."""
    pytest.importorskip("setuptools", minversion="77")
    venv.create(tmp_path / "venv", with_pip=False)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return tmp_path / "venv" / "bin"


def install(environment: Path, *what: object, cwd: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall")
    call(environment / "python", "-m", "pip", "install", *options, *what, cwd=cwd)


def test_wheel(clone: Path, environment: Path, tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path / "wheels")
    call(environment / "python", "-m", "pip", "wheel", ".", *options, cwd=clone)
    (wheel,) = (tmp_path / "wheels").iterdir()
    files = {path.relative_to(clone).as_posix() for name in PACKAGES for path in (clone / name).rglob("*")}
    files = {name for name in files if (clone / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert shipped == files  # the built-in pair, kernels' sources, templates: everything, and nothing else
    assert len(files) > 200 and "refine/digits/digits.pkl" in files

    install(environment, wheel, cwd=tmp_path)
    shutil.rmtree(clone)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "--seed" in call(environment / "refine", "demo", "--help", cwd=elsewhere)
    assert "edm-digits" in call(environment / "refine", "zoo", "--kind=denoiser", cwd=elsewhere)
    assert "StyleGAN2 generator" in call(environment / "refine", "inspect", "digits", cwd=elsewhere)
    plan = call(
        environment / "python", "-m", "refine", "run", "--gan=digits", "--teacher=edm-digits", "-n", cwd=elsewhere
    )
    assert "Preset digits" in plan and list(elsewhere.iterdir()) == []
    kernels = "import stylegan_ops, pathlib; print(*pathlib.Path(stylegan_ops.__file__).parent.rglob('*.cpp'))"
    assert "bias_act.cpp" in call(environment / "python", "-c", kernels, cwd=elsewhere)


def test_a_script_beside_the_clone(clone: Path, environment: Path) -> None:
    """Python takes the clone's folder, which has the package's name, for a package where it finds no better one."""
    install(environment, "--editable", clone, cwd=clone.parent)
    script = clone.parent / "script.py"
    script.write_text("import refine\nfrom refine import RunConfig\nprint(refine.__file__, refine.__version__)\n")
    for cwd in (clone.parent, clone, clone.parent.parent):
        assert str(clone / "refine" / "__init__.py") in call(environment / "python", script, cwd=cwd)
    assert "Refine" in call(environment / "python", "-m", "refine", "--version", cwd=clone.parent)
    assert "digits" in call(environment / "refine", "zoo", cwd=clone.parent)
