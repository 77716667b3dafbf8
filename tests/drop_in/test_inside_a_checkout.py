"""Refine copied into a StyleGAN or EDM repository runs beside that repository's `torch_utils` and `dnnlib`."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from public_names import NAMES, REPOSITORIES, write_stand_ins

import dnnlib
from refine import load_gan
from torch_utils import persistence

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
GAN, TEACHER = FIXTURES / "sg2ada" / "b_cond16.pkl", FIXTURES / "edm" / "s4_sid_ddpmpp_cond16.pkl"
TINY = ["--batch=4", "--kimg=0.008", "--warmup-kimg=0.004", "--tick-kimg=0.004", "--glr=1e-3", "--device=cpu"]

# Runs commands in the way of `python -m`, and looks whose modules were used and whether they are as they were.
WATCH = """
import importlib, itertools, pathlib, runpy, sys
here = pathlib.Path.cwd()
sys.path[0] = str(here)
theirs = {name: importlib.import_module(name) for name in sys.argv[1].split(",")}
before = {name: dict(vars(module)) for name, module in theirs.items()}
for is_separator, command in itertools.groupby(sys.argv[2:], lambda argument: argument == "--"):
    if is_separator:
        continue
    sys.argv = list(command)
    run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
    try:
        run(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in ("refine", "stylegan_ops", "torch_utils", "dnnlib"):
        assert here in pathlib.Path(module.__file__).parents, (name, module.__file__)
for name, module in theirs.items():
    assert sys.modules[name] is module and dict(vars(module)) == before[name], name
"""

# What `--trust-pickle` leads to: the stand-in is called, and says so by failing.
TRUST = """
from refine import pickles
from refine.pickles import trusted
record = pickles.load({gan!r}, trust=True)["G_ema"]
try:
    trusted.instantiate(record)
except pickles.PickleError as error:
    print(error)
"""


def give_source(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
    assert meta.module_src == "# source removed\n"  # that of the pickle it came from, as it was
    meta.module_src = (ROOT / "tests" / "support" / "embedded_stylegan2.py").read_text(encoding="utf-8")
    return meta


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_refine_runs_on_their_modules(repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the snapshot that it writes there opens with plain `pickle.load` under our `torch_utils`."""
    write_stand_ins(repository, tmp_path)
    shutil.copy(ROOT / "refine.py", tmp_path)
    for package in ("refine", "stylegan_ops"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "watch.py").write_text(WATCH)
    (tmp_path / "trust.py").write_text(TRUST.format(gan=str(GAN)))

    commands = [
        ["refine.inspect", str(GAN)],
        ["refine.py", f"--gan={GAN}", f"--teacher={TEACHER}", *TINY],
        ["trust.py"],
    ]
    arguments = [part for command in commands for part in ("--", *command)]
    result = subprocess.run(
        [sys.executable, "watch.py", ",".join(["torch_utils", *NAMES[repository]]), *arguments],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    (snapshot,) = tmp_path.glob("training-runs/*/network-snapshot-*.pkl")
    for printed in (
        "StyleGAN2 generator (stylegan2-ada-pytorch)",
        str(snapshot.name),
        "NotImplementedError: _reconstruct_persistent_obj of a stand-in",
    ):
        assert printed in result.stdout

    monkeypatch.setattr(persistence, "_import_hooks", [give_source])
    with snapshot.open("rb") as file:
        plain = pickle.load(file)
    refined, original = load_gan(str(snapshot)).network, load_gan(str(GAN)).network
    z = torch.from_numpy(np.random.RandomState(0).randn(3, refined.z_dim).astype(np.float32))
    c = torch.eye(refined.c_dim)[:3]
    expected = refined(z, c, truncation_psi=0.7, noise_mode="const")
    image = plain["G_ema"](z, c, truncation_psi=0.7, noise_mode="const")
    assert (image - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (expected - original(z, c, truncation_psi=0.7, noise_mode="const")).abs().max() > 1e-4
    assert list(plain) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    assert plain["D"](image, c).shape == (3, 1)
