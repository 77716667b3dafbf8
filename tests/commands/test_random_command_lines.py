"""Three hundred random command lines of all verbs but `run`: each does its work or says in one sentence why not.

Thirty of them in the fast tests, the others in `make test-extra`; `test_option_combinations.py` has those of `run`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import pickles
from refine.__main__ import VERBS, main
from refine.networks.weights_file import write_weights

Values = tuple[list[str], list[str]]  # such as make sense alone, and such as do not

GENERATOR = [
    *(["in.pkl"] * 4 + ["uncond.pkl", "gray.pkl", "run", "latest", "runs/latest", "nan.pkl", "g.pkl"]),
    *(["own.safetensors"] * 2),
]
NO_GENERATOR = [
    "teacher.pkl",
    "nowhere.pkl",
    "",
    ".",
    "empty",
    "text.txt",
    "cut.pkl",
    "sg3.pkl",
    "~/x.pkl",
    "ftp://x/y.pkl",
]
NETWORK: Values = (GENERATOR, NO_GENERATOR)
SEEDS: Values = (["0", "0-2", "1,1,3"], ["", "x", "3-1", "-1", "0-99999999999", "4294967296", "1.5"])
TRUNC: Values = (["1", "0.7", "0", "-0.5"], ["nan", "inf", "-inf", "x", "", "1e39", "1e999"])
DEVICE: Values = (["cpu", "auto"], ["tpu", "", "cuda", "CPU"])
FLAG: Values = ([""], [])
PICTURE: Values = (["new.png"], ["mine.png", "x.jpgg", "nowhere/x.png", ".", "", "in.pkl"])

SIGMA: Values = (["2.5"], ["0", "nan", "x", ""])
OWN: Values = (["net.py:make"], ["net.py", "nowhere.py:make", "net.py:other", ""])
NETWORK_OF_OWN = """
import torch

def make():
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    network.z_shape = (1, 32, 32)
    return network
"""

OPTIONS: dict[str, dict[str, Values]] = {
    "generate": {
        "sigma-init": SIGMA, "gan": OWN,
        "network": NETWORK, "seeds": SEEDS, "trunc": TRUNC, "device": DEVICE, "force": FLAG, "trust-pickle": FLAG,
        "class": (["0", "4", "0,2", "all", "1-3"], ["5", "-1", "x", "", "99999999999999999999", "0.5"]),
        "label": (["0,1,0,0,0", "labels.npy", "labels.npz"], ["1,2", "x", "", "nan,0,0,0,0", "text.npy", "z.npy"]),
        "latents": (["z.npy", "z.npz"], ["labels.npy", "nowhere.npy", "text.npy", "pickled.npy", "", "in.pkl", "."]),
        "projected-w": (["w.npz"], ["z.npy", "nowhere.npz", "text.npy"]),
        "noise-mode": (["const", "none", "random"], ["loud", ""]),
        "translate": (["0.1,-0.2"], ["0.1", "x,y", "1,2,3", "nan,0", ""]), "rotate": (["30", "-400"], ["x", "inf", ""]),
        "noise-seed": (["3"], ["-1", "x", "99999999999999999999999"]),
        "outdir": (["out", "out/deep", "there"], ["text.txt", "", "text.txt/x"]),
        "compare": NETWORK,
        "video": (["new.mp4"], ["mine.mp4", "x.avi", "nowhere/x.mp4", ""]),
        "frames": (["2"], ["0", "x"]),
        "fps": (["5"], ["0", "1000000"]),
    },
    "blend": {
        "sigma-init": SIGMA,
        "from": NETWORK, "to": NETWORK, "seeds": SEEDS, "trunc": TRUNC, "device": DEVICE, "force": FLAG,
        "alpha": (["0.5", "0,1", "0.25"], ["2", "nan", "x", "", "-0.1"]),
        "out": (["new.pkl"], ["in.pkl", "mine.pkl", "x.md", "nowhere/x.pkl", ".", ""]),
    },
    "export": {
        "sigma-init": SIGMA, "gan": OWN,
        "network": NETWORK, "force": FLAG, "trust-pickle": FLAG,
        "format": (["safetensors", "pkl-ema", "rosinality", "pkl"], ["pt", ""]),
        "out": (["new.safetensors", "new.pkl", "new.pt"], ["in.pkl", "mine.pkl", "x", "nowhere/x.pkl", ".", ""]),
        "like": NETWORK,
    },
    "inspect": {
        "": (["in.pkl", "teacher.pkl", "sg3.pkl", "own.safetensors", "run", "digits"], [*NO_GENERATOR[1:7], "nan.pkl"]),
        "json": FLAG, "extract-source": (["sources"], ["text.txt", ""]), "trust-pickle": FLAG, "debg": ([], [""]),
    },
    "metrics": {
        "sigma-init": SIGMA, "gan": OWN, "guide": (["teacher.pkl"], ["nowhere.pkl", "in.pkl"]),
        "guidance": (["1", "2"], ["-1", "x"]), "teacher-settings": (["none"], ["num_heads=x"]),
        "network": (["uncond.pkl"] * 9 + GENERATOR, NO_GENERATOR), "trunc": TRUNC, "device": DEVICE, "force": FLAG,
        "data": (["data.zip"] * 3, ["nowhere.zip", "text.txt", "empty", "in.pkl", ""]),
        "ref": (["auto", "data", "teacher"], ["nowhere.npz", "text.txt", "in.pkl", ""]),
        "teacher": (["teacher.pkl"], ["in.pkl", "nowhere.pkl"]),
        "metrics": (["is20", "fid20_full", "kid20_full,pr1k3_full"], ["fid", "none", "auto", "", "fid1_full"]),
        "detector": (["detector.pt"] * 3, ["vgg.pt", "nowhere.pt", "text.txt", "in.pkl"]),
        "vgg": (["vgg.pt"], ["text.txt"]), "check-data": (["data.zip", "empty", "run"], ["nowhere", "text.txt", ""]),
        "images": (["data.zip", "there"], ["nowhere", "empty", ""]),
        "batch": (["8"], ["0", "x"]), "workers": (["0", "1"], ["-1"]), "mirror": (["0", "1"], ["maybe"]),
        "noise-mode": (["random", "const"], ["loud"]), "resample": (["box"], ["nearest", ""]),
        "metric-seed": (["3"], ["-1", "2147483648"]), "fid-seeds": (["1"], ["0"]),
        "bootstrap": (["0", "10"], ["3", "x"]), "kid-subsets": (["3"], ["0"]), "kid-subset-size": (["10"], ["1"]),
        "neighbors": PICTURE,
        "ref-images": (["20"], ["1", "-5"]),
        "class-map": (["4,3,2,1,0"], ["a", "1"]),
        "grid": PICTURE, "contact-sheet": PICTURE, "before": NETWORK,
        "export-ref": (["new.npz"], ["mine.npz", "x.pkl"]), "export-features": FLAG,
    },
    "report": {
        "": (["run", "latest", "runs/latest"], ["nowhere", "empty", "text.txt", ""]),
        "out": (["new.html"], ["mine.html", "x.txt", "nowhere/x.html"]), "force": FLAG,
    },
    "zoo": {
        "": (["ffhq", "edm"], ["qqqqq", "--"]), "kind": (["detector"], ["x"]), "json": FLAG,
        "fetch": (["digits", "digits-detector.pt"], ["nowhere", "", "ftp://x/y"]),
    },
    "profile": {
        "sigma-init": SIGMA,
        "gan": (["in.pkl"], ["teacher.pkl", "nowhere.pkl"]), "teacher": (["teacher.pkl"], ["in.pkl", "nowhere.pkl"]),
        "batch": (["2"], ["0", "x", "-1"]), "batch-gpu": (["1", "2"], ["3", "0"]), "precision": (["fp32"], ["fp8"]),
        "rounds": (["1"], ["0", "-1"]), "operators": (["3", "0"], ["-1"]), "threads": (["1"], ["0", "-1", "x"]),
        "device": (["cpu"], ["tpu"]), "objective": (["ikl", "sds"], ["kl"]), "gan-weight": (["0"], ["-1", "x"]),
    },
}  # fmt: skip
NEEDED = {
    "generate": ("network", "seeds", "outdir", "class"), "blend": ("from", "to"), "report": ("",), "zoo": (),
    "export": ("network", "format", "out"), "inspect": ("",), "profile": ("gan", "teacher", "batch", "rounds"),
    "metrics": ("network", "data", "detector", "vgg", "metrics", "device"),
}  # fmt: skip
FAST, ALL = range(30), range(300)


@pytest.fixture
def files(fixture_path, tmp_path, monkeypatch, golden) -> Path:
    """A folder with networks, arrays, a data set, a run, and files of the user's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("REFINE_DETECTOR", str(fixture_path("metrics/tiny_inception_s.pt")))
    monkeypatch.setenv("REFINE_VGG", str(fixture_path("metrics/tiny_vgg_s.pt")))
    monkeypatch.setenv("STYLEGAN_OPS", "off")  # nothing is compiled anew for this cache
    monkeypatch.setattr(pickles, "load", lru_cache(pickles.load))  # most of the time, and not what is tested here
    copies = {
        "in.pkl": "sg2ada/b_cond16.pkl", "uncond.pkl": "sg2ada/a_uncond32.pkl", "gray.pkl": "sg2ada/d_gray16.pkl",
        "teacher.pkl": "edm/s4_sid_ddpmpp_cond16.pkl", "sg3.pkl": "sg3/s2_stylegan3t_uncond32.pkl",
        "data.zip": "metrics/dataset_s32.zip", "detector.pt": "metrics/tiny_inception_s.pt",
        "vgg.pt": "metrics/tiny_vgg_s.pt",
    }  # fmt: skip
    for name, source in copies.items():
        (tmp_path / name).write_bytes(fixture_path(source).read_bytes())
    pickle_ = pickles.load(tmp_path / "in.pkl")
    weights = {name: record.read() for name, record in pickles.named_tensors(pickle_["G_ema"]).items()}
    weights["synthesis.b4.conv1.weight"][0] = float("nan")
    pickles.save(pickle_, tmp_path / "nan.pkl", {"G_ema": weights})
    alone = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    del alone.root["G_ema"]
    pickles.save(alone, tmp_path / "g.pkl", {})
    (tmp_path / "net.py").write_text(NETWORK_OF_OWN)
    own = torch.nn.Conv2d(1, 1, 3, padding=1).state_dict()
    write_weights(tmp_path / "own.safetensors", own, own, json.dumps({"gan": "net.py:make"}))
    (tmp_path / "cut.pkl").write_bytes((tmp_path / "in.pkl").read_bytes()[:5000])
    (tmp_path / "text.txt").write_text("mine")
    for suffix in ("png", "pkl", "mp4", "npz", "html"):
        (tmp_path / f"mine.{suffix}").write_text("mine")
    np.save(tmp_path / "z.npy", np.random.RandomState(0).randn(2, 32))
    np.savez(tmp_path / "z.npz", z=np.random.RandomState(0).randn(2, 32))
    np.save(tmp_path / "labels.npy", np.eye(5)[:2])
    np.savez(tmp_path / "labels.npz", label=np.eye(5)[3])
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps({}))
    np.savez(tmp_path / "w.npz", w=golden("sg2ada/b_cond16")["ws_rand"])
    for folder in ("empty", "there", "home", "runs/00000-a", "training-runs/00000-a", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for run in ("runs/00000-a", "training-runs/00000-a", "run"):
        (tmp_path / run / "network-snapshot-000000.pkl").write_bytes((tmp_path / "in.pkl").read_bytes())
        (tmp_path / run / "training_options.json").write_text(json.dumps({"gan": "in.pkl", "teacher": "teacher.pkl"}))
        (tmp_path / run / "stats.jsonl").write_text(json.dumps({"Progress/cur_nimg": 0, "Loss/fake": 1.0}) + "\n")
    (tmp_path / "there" / "seed0000.png").write_text("mine")
    return tmp_path


def command_line(seed: int) -> list[str]:
    """A verb and some of its options, most of them sensible."""
    rng = random.Random(seed)
    verb = rng.choices(list(OPTIONS), weights=[8, 3, 4, 3, 6, 2, 2, 1])[0]
    options = OPTIONS[verb]
    # Fifty thousand images are not what is tested here.
    chosen = {name for name in NEEDED[verb] if name == "metrics" or rng.random() < 0.95}
    chosen |= set(rng.sample(sorted(options), min(rng.choice([0, 0, 1, 2, 4]), len(options))))
    line = []
    for name in sorted(chosen):
        good, bad = options[name]
        value = rng.choice(bad if not good or (bad and rng.random() < 0.12) else good)
        is_flag = (good, bad) == FLAG or name == "debg"
        line.append(value if name == "" else f"--{name}" if is_flag else f"--{name}={value}")
    rng.shuffle(line)
    return [verb, *line]


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file but those of caches."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "cache" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): digest(path, identity(path)) for path in paths}


def identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@cache
def digest(path: Path, version: tuple[int, ...]) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


COMPLETE: dict[str, Callable[[Path], object]] = {
    ".png": lambda path: Image.open(path).load(),
    ".pkl": lambda path: pickles.load(path),
    ".npz": lambda path: dict(np.load(path)),
    ".html": lambda path: path.read_text(encoding="utf-8").rindex("</html>"),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
}


@pytest.mark.parametrize("seeds", [FAST, pytest.param(ALL[len(FAST) :], marks=pytest.mark.slow)])
def test_every_command_line_ends_well(seeds, files):
    ends = {0: 0, 2: 0}
    for seed in seeds:
        line = command_line(seed)
        before = contents(files)
        result = CliRunner().invoke(main, line, prog_name="python -m refine")
        what = f"{seed}: refine {' '.join(line)}\n{result.output}"
        assert result.exit_code in ends, what
        assert result.exception is None or isinstance(result.exception, SystemExit), what
        assert "Traceback" not in result.output, what
        ends[result.exit_code] += 1
        after = contents(files)
        new = {name for name in after if after[name] != before.get(name)}
        assert before.keys() <= after.keys() and not any(".tmp" in name or ".refine-" in name for name in after), what
        lost = {name for name in new if name in before}
        allowed = {name for name in lost if name.endswith((".jsonl", "report.html"))}
        assert lost == allowed or "--force" in line, what
        assert not lost & {"in.pkl", "uncond.pkl", "gray.pkl", "g.pkl", "nan.pkl"}, what
        if result.exit_code == 2:
            errors = [text for text in result.stderr.splitlines() if text.startswith("Error: ")]
            assert len(errors) == 1 and 12 < len(errors[0]) < 900, what
        for name in new:
            check = COMPLETE.get(Path(name).suffix)
            if check is not None:
                check(files / name)
            (files / name).unlink()
            if name in before:
                (files / name).write_text("mine")
    assert min(ends.values()) > len(seeds) / 6, ends  # else one of the two ways is hardly tried


def test_all_verbs_and_options_are_tried():
    from click import Option

    for verb in VERBS.keys() - {"run", "doctor", "demo"}:
        command = main.get_command(None, verb)
        names = {max(p.opts, key=len).removeprefix("--") for p in command.params if isinstance(p, Option)}
        assert names - {"debug", "prefetch", "trust-detector", "trust-pickle", "help"} <= OPTIONS[verb].keys(), verb
