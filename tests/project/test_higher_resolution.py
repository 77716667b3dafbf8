"""A generator of twice its teacher's resolution, by the command line: what moves, what stays, what the teacher sees."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.studies import higher_resolution
from refine import load_generator, pickles
from refine.commands import run as cli
from refine.digits.digits import FOLDER
from refine.digits.judge import first_images
from refine.digits.make.__main__ import save_teacher
from refine.digits.make.teacher import TeacherOptions, make_network
from refine.files.image_grid import layout_of
from refine.networks.edm import EDMPrecond

SHORT = ["--batch=4", "--warmup-kimg=0.004", "--tick=0.004", "--glr=1e-3", "--preflight=0", "--device=cpu"]
TINY = TeacherOptions(resolution=8, model_channels=8, channel_mult=(1, 2), attn_resolutions=())


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """An untrained teacher of digits at 8 pixels."""
    torch.manual_seed(0)
    save_teacher(make_network(TINY).eval(), tmp_path / "teacher.pkl")
    return tmp_path / "teacher.pkl"


def call(*args: str) -> None:
    result = CliRunner().invoke(cli.main, list(args))
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_frozen_layers_by_the_command_line(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, resumed, with an anchor: mapping and the 16-pixel block keep every bit, all the rest moves."""
    seen = set()
    original = EDMPrecond.forward

    def forward(self, x, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen.add(tuple(x.shape[1:]))
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(EDMPrecond, "forward", forward)
    pair = ("--gan=digits", f"--teacher={teacher}", f"--outdir={tmp_path / 'runs'}", "--anchor=0.1")
    call(*pair, *SHORT, "--kimg=0.008")
    (folder,) = (tmp_path / "runs").iterdir()
    call(f"--resume={folder}", "--kimg=0.012")
    assert seen == {(1, 8, 8)}

    snapshot = folder / "network-snapshot-000000_012.pkl"
    start = {
        name: tensor.read()
        for name, tensor in pickles.named_tensors(pickles.load(FOLDER / "digits.pkl")["G_ema"]).items()
    }
    for key in ("G", "G_ema"):
        after = {n: tensor.read() for n, tensor in pickles.named_tensors(pickles.load(snapshot)[key]).items()}
        moved = {name for name, value in after.items() if not torch.equal(value, start[name])}
        trained = {name for name in start if name.startswith(("synthesis.b4.", "synthesis.b8."))}
        fixed = {name for name in trained if name.endswith((".noise_const", ".resample_filter"))}
        assert moved == trained - fixed, key

    network = load_generator(str(snapshot)).network
    assert network(torch.randn(3, network.z_dim), torch.eye(10)[:3]).shape == (3, 1, 16, 16)
    layout = layout_of(Image.open(folder / "fakes000000_012.png"))
    assert layout.columns % 10 == 0 and layout.tile == 64
    rows = [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["Drift/detail"] > 0 and rows[-1]["Loss/anchor"] > 0  # fed by layers that move


@pytest.mark.slow
def test_the_example(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The benchmark behind docs/higher-resolution.md, cut short, with an untrained teacher in its folder."""
    folder = tmp_path / "example"
    folder.mkdir()
    teacher.rename(folder / "edm-digits-8px.pkl")
    monkeypatch.setitem(higher_resolution.COMMON, "warmup_kimg", 0.032)
    name = "stopped early: frozen above 8"
    monkeypatch.setattr(sys, "argv", ["", f"--outdir={folder}", "--samples=100", "--kimg=0.064", name])
    printed = []
    for _ in range(2):
        higher_resolution.main()
        printed.append(capsys.readouterr().out)
    assert "CPU s" in printed[0] and "CPU s" not in printed[1]  # the second time it only measures
    first, second = ([line for line in text.splitlines() if line.startswith("|")] for text in printed)
    assert first == second
    assert [line.split("|")[1].strip() for line in first[2:]] == [
        *("real training images", "the teacher, at 8", "stopped early", f"{name}, seed 0")
    ]
    before = first_images(next(folder.glob("*/fakes_init.png")))
    assert Image.open(folder / "stopped-early.png").size == (2 * before.width + 16, before.height)
