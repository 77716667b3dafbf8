"""Two hundred random command lines, sensible and not: each ends in a run or in one clear sentence.

Twenty of them in the fast tests, the others in `make test-extra`.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

import pytest
from click.testing import CliRunner

from refine import pickles
from refine.commands import dry_run
from refine.commands import run as cli
from refine.config import RunConfig
from refine.runs import evaluation as measuring
from refine.runs import grids

# For each option, values that make sense alone, and values that do not.
VALUES: dict[str, tuple[list[str], list[str]]] = {
    "gan": (["sg2ada/b_cond16.pkl"] * 6 + ["sg2ada/a_uncond32.pkl", "sg2ada/d_gray16.pkl"], ["none.pkl", "cifar11"]),
    "teacher": (["edm/s4_sid_ddpmpp_cond16.pkl"] * 6 + ["edm/s1_edm_ddpmpp_uncond16.pkl"], ["sg2ada/b_cond16.pkl"]),
    "sigma-init": (["none"], ["0", "x", "2.5"]),
    "gan-dropout": (["0", "1"], ["2"]),
    "preset": (["tiny", "small", "medium", "released"], ["smal", ""]),
    "guide": (["edm/s4_sid_ddpmpp_cond16.pkl"], ["nowhere.pkl", "sg2ada/b_cond16.pkl"]),
    "guidance": (["1", "1.7"], ["-1", "nan", "x"]),
    "guide-fake": (["0", "1"], ["maybe"]),
    "teacher-settings": (["none"], ["num_heads", "num_heads=x", "heads=3"]),
    "init": (["sg2ada/b_cond16.pkl"], ["nowhere.pt", "edm/s1_edm_ddpmpp_uncond16.pkl"]),
    "class-map": (["4,3,2,1,0", "0,0,0,0,0"], ["1,2", "a", "", "9,9,9,9,9", "-1,0,1,2,3"]),
    "preflight": (["0", "false", "no"], ["maybe"]),
    "desc": (["x", "a b/c", "ä", "-"], []),
    "tick": (["0.004", "1"], ["0", "-1", "nan"]),
    "tick-kimg": (["0.002"], ["inf", "x"]),
    "snap": (["1", "3"], ["0", "1.5"]),
    "stop-if-worse": (["none"], ["0", "x"]),
    "stop-if-flat": (["none", "5"], ["0", "x"]),
    "objective": (
        ["ikl", "ikl:dmd", "ikl:weighting=score", "sds", "sid", "fisher"],
        ["ikl:dmdd", "UNIFORM", "ikl:x=1"],
    ),
    "gan-weight": (["0", "0.1"], ["-1", "nan"]),
    "ratio-samples": (["16"], ["0", "-5"]),
    "ratio-refresh": (["0", "1"], ["2"]),
    "rlr": (["1e-3"], ["0", "nan"]),
    "backtrack": (["0", "2"], ["-1", "x"]),
    "wandb": (["0"], ["maybe"]),
    "fake-steps": (["1", "2"], ["0", "-3", "1e3"]),
    "compile": (["0"], ["maybe"]),
    "cuda-graphs": (["0", "1"], ["2"]),
    "checkpoint": (["0", "1"], ["2"]),
    "share-forward": (["0", "1", "true"], ["2"]),
    "share-unet": (["0", "1"], ["2"]),
    "fake-dropout": (["0", "1"], [""]),
    "fake-augment": (["0", "0.12", "1"], ["1.1", "-0.1"]),
    "paired-dropout": (["0", "1"], ["on/off"]),
    "noise-mode": (["random", "const", "none"], ["None"]),
    "sigma": (
        ["lognormal", "lognormal:0,1", "karras:0.01,10,7", "lognormal:1,1->lognormal:-1,1", "karras"],
        ["lognormal:0,-1", "karras:2,1,7", "lognormal->karras", "x:1", "lognormal:nan", "lognormal:1,2,3", "a->b->c"],
    ),
    "fake-sigma": (["lognormal", "karras"], ["", "karras:0,1"]),
    "batch": (["2", "3", "4"], ["0", "two", "-2"]),
    "batch-gpu": (["1", "2", "none"], ["0", "7"]),
    "glr": (["1e-4", "0.01"], ["0", "-1", "nan"]),
    "flr": (["1e-4"], ["inf"]),
    "lr-rampup-kimg": (["0", "0.01"], ["-1"]),
    "lr-decay": (["none", "cosine"], ["linear"]),
    "beta1": (["0", "0.9"], ["1", "-0.1"]),
    "beta2": (["0.999"], ["1.5"]),
    "clip-grad": (["1", "none"], ["0", "-1"]),
    "ema-halflife-kimg": (["0", "0.01"], ["-1"]),
    "ema-more": (["none", "0.01,power:0.1"], ["x", "power:1"]),
    "ema-rampup": (["0.05", "none"], ["0"]),
    "train-layers": (["auto", "all", "4,8", "16"], ["top", "3", "", "128"]),
    "anchor": (["0", "0.1"], ["-1", "x"]),
    "resample": (["lanczos", "bicubic", "box"], ["nearest"]),
    "metrics": (["none", "auto", "is20", "fid20_full,kid20_full"], ["fid9x", "fid"]),
    "data": (["metrics/dataset_s32.zip"], ["nowhere.zip"]),
    "ref": (["auto", "teacher"], ["nowhere.npz", "data"]),
    "detector": (["metrics/tiny_inception_s.pt"], ["nowhere.pt"]),
    "vgg": (["metrics/tiny_vgg_s.pt"], []),
    "metric-seed": (["0", "3"], ["-1"]),
    "fid-seeds": (["1", "3"], ["0"]),
    "bootstrap": (["0", "10"], ["-1", "5", "x"]),
    "metric-every": (["1", "2"], ["0", "x"]),
    "precision": (["auto", "fp32", "bf16"], ["fp8"]),
    "device": (["cpu", "auto"], ["tpu"]),
    "seed": (["0", "7"], ["-1", "x", "4294967296"]),
    "custom-ops": (["auto", "off"], ["yes"]),
    "gpus": (["1"], ["0", "4"]),
    "resume": ([], ["latest", "/nowhere", ""]),
    "kimgs": ([], ["1"]),  # a typo
}
FAST, ALL = range(20), range(200)
LENGTH = ["--kimg=0.004", "--warmup-kimg=0.002"]  # a step or two


def command_line(seed: int, fixtures: Path) -> list[str]:
    """Some options with mostly sensible values, always a pair."""
    rng = random.Random(seed)
    chosen = {"gan", "teacher", *rng.sample(sorted(VALUES), rng.choice([0, 1, 2, 3, 5, 8]))}
    if rng.random() < 0.8:
        chosen.discard("resume")
    line = [*LENGTH, "--batch=2", "--preflight=0", *([] if "ratio-samples" in chosen else ["--ratio-samples=8"])]
    for name in sorted(chosen):
        good, bad = VALUES[name]
        value = rng.choice(bad if not good or (bad and rng.random() < 0.12) else good)
        path = fixtures / value
        line.append(f"--{name}={path if value.endswith(('.pkl', '.zip', '.pt')) and path.is_file() else value}")
    rng.shuffle(line)
    return [*line, *(["--dry-run"] if rng.random() < 0.4 else [])]


@pytest.mark.parametrize("seeds", [FAST, pytest.param(ALL[len(FAST) :], marks=pytest.mark.slow)])
def test_every_combination_ends_well(seeds, fixture_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("REFINE_DETECTOR", str(fixture_path("metrics/tiny_inception_s.pt")))
    monkeypatch.setattr(measuring, "DEFAULT", "fid20_full")  # fifty thousand images are not what is tested here
    monkeypatch.setattr(pickles, "load", lru_cache(pickles.load))  # a fifth of the time, and not what is tested here
    monkeypatch.setattr(dry_run, "seconds_per_image", lambda *args: (0.01, 0.02))  # test_dry_run.py takes these steps
    monkeypatch.setattr(grids, "MAX_IMAGES_ON_CPU", 10)
    fixtures = fixture_path("sg2ada/b_cond16.pkl").parents[1]
    ends = {0: 0, 2: 0}
    for seed in seeds:
        line = command_line(seed, fixtures)
        before = {path.name for path in tmp_path.glob("training-runs/*")}
        result = CliRunner().invoke(cli.main, line, prog_name="refine.py")
        what = f"refine.py {' '.join(line)}\n{result.output}"
        assert result.exit_code in ends, what
        assert result.exception is None or isinstance(result.exception, SystemExit), what
        ends[result.exit_code] += 1
        new = [path for path in tmp_path.glob("training-runs/*") if path.name not in before]
        if result.exit_code == 2:
            (sentence,) = [text for text in result.stderr.splitlines() if text.startswith("Error: ")]
            assert "Traceback" not in result.output and 20 < len(sentence) < 400, what
            assert new == [], what  # nothing is left of a run that did not begin
        elif "--dry-run" in line:
            assert new == [] and "Plan " in result.stdout and '"preset"' in result.stdout, what
        else:
            assert "Refined generator: " in result.stdout, what
            assert len(new) == 1 and list(new[0].glob("network-snapshot-*.pkl")), what
    assert min(ends.values()) > len(seeds) / 5  # else one of the two ways is hardly tried


def test_all_options_are_tried():
    names = {flag.removeprefix("--") for option in RunConfig.options() for flag in option.flags}
    assert names - {"kimg", "warmup-kimg", "outdir", "snap-ticks"} <= VALUES.keys()
