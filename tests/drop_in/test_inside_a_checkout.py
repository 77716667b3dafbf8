"""Refine copied into a StyleGAN or EDM repository runs beside that repository's `torch_utils` and `dnnlib`."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from public_names import NAMES, REPOSITORIES, write_stand_ins

import dnnlib
from refine import load_generator, pickles
from refine.__main__ import main
from torch_utils import persistence

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
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
record = pickles.load("network.pkl", trust=True)["G_ema"]
try:
    trusted.instantiate(record)
except pickles.PickleError as error:
    print(error)
"""


def give_source(meta: dnnlib.EasyDict) -> dnnlib.EasyDict:
    assert meta.module_src == "# source removed\n"  # that of the pickle it came from, as it was
    meta.module_src = (ROOT / "tests" / "support" / "embedded_stylegan2.py").read_text(encoding="utf-8")
    return meta


def commands(heading: str) -> list[str]:
    """The commands under a heading of docs/drop-in.md."""
    document = (ROOT / "docs" / "drop-in.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", document, flags=re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    return block.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_commands_of_the_document(repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refine runs on their modules; the snapshot that it writes opens with plain `pickle.load` under ours."""
    (tmp_path / "refine").symlink_to(ROOT)
    checkout = tmp_path / repository
    write_stand_ins(repository, checkout)
    (checkout / "watch.py").write_text(WATCH)
    (checkout / "trust.py").write_text(TRUST)
    shutil.copy(FIXTURES / "sg2ada" / "b_cond16.pkl", checkout / "network.pkl")
    shutil.copy(FIXTURES / "edm" / "s4_sid_ddpmpp_cond16.pkl", checkout / "teacher.pkl")

    copy, refine, their_own = commands(repository)
    assert copy.startswith("cp ") and refine.startswith("python refine.py ") and "--network=SNAPSHOT" in their_own
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(arguments: list[str]) -> str:
        result = subprocess.run(
            arguments, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    call(shlex.split(copy))
    to_run = [["refine", "inspect", "network.pkl"], [*shlex.split(refine)[1:], *TINY], ["trust.py"]]
    arguments = [part for command in to_run for part in ("--", *command)]
    printed = call([sys.executable, "watch.py", ",".join(["torch_utils", *NAMES[repository]]), *arguments])
    snapshot = sorted(checkout.glob("training-runs/*/network-snapshot-*.pkl"))[-1]
    for expected in (
        "StyleGAN2 generator (stylegan2-ada-pytorch)",
        str(snapshot.name),
        "NotImplementedError: _reconstruct_persistent_obj of a stand-in",
    ):
        assert expected in printed
    assert_opens_with_plain_pickle(snapshot, monkeypatch)

    (copy,) = commands("Our `torch_utils` and `dnnlib` inside their checkout")
    call(shlex.split(copy))
    check = (
        "import dnnlib, torch_utils.misc, torch_utils.ops.bias_act as ops, torch;"
        "print(next(iter(torch_utils.misc.InfiniteSampler([1]))), dnnlib.util.format_time(61), torch_utils.__file__);"
        "print(ops.bias_act(torch.ones(1, 1)).item())"
    )
    assert call([sys.executable, "-c", check]).split() == [
        *("0", "1m", "01s", str(checkout / "torch_utils" / "__init__.py"), "1.0")
    ]


def assert_opens_with_plain_pickle(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "_import_hooks", [give_source])
    with snapshot.open("rb") as file:
        plain = pickle.load(file)
    refined, original = (
        load_generator(str(snapshot)).network,
        load_generator(str(snapshot.parents[2] / "network.pkl")).network,
    )
    z = torch.from_numpy(np.random.RandomState(0).randn(3, refined.z_dim).astype(np.float32))
    c = torch.eye(refined.c_dim)[:3]
    expected = refined(z, c, truncation_psi=0.7, noise_mode="const")
    image = plain["G_ema"](z, c, truncation_psi=0.7, noise_mode="const")
    assert (image - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (expected - original(z, c, truncation_psi=0.7, noise_mode="const")).abs().max() > 1e-4
    assert list(plain) == ["training_set_kwargs", "G", "D", "G_ema", "augment_pipe"]
    assert plain["D"](image, c).shape == (3, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_commands_for_images_blends_and_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, on a generator without classes and one that differs from it."""
    shutil.copy(FIXTURES / "sg2ada" / "a_uncond32.pkl", tmp_path / "network.pkl")
    network_pickle = pickles.load(tmp_path / "network.pkl")
    tensors = {name: record.read() + 0.01 for name, record in pickles.named_tensors(network_pickle["G_ema"]).items()}
    tensors |= {name: tensor - 0.01 for name, tensor in tensors.items() if name.endswith("resample_filter")}
    pickles.save(network_pickle, tmp_path / "SNAPSHOT", {"G_ema": tensors})
    monkeypatch.chdir(tmp_path)
    seen = []
    for command in commands("Images, blends, other formats"):
        _, _, _, *arguments = shlex.split(command)
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, (command, done.output)
        seen.append(arguments[0])
    assert len(seen) >= 8
    assert len(list(Path("compared").glob("seed*.png"))) == 36
    back = pickles.named_tensors(pickles.load("back.pkl")["G_ema"])
    assert all(torch.equal(record.read(), tensors[name]) for name, record in back.items())
