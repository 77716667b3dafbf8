"""Runs with networks of the user's own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner

import refine
from refine import load_teacher
from refine.commands import generate
from refine.commands import run as cli
from refine.config import RunConfig
from refine.contracts import GeneratorOutput
from refine.errors import OptionError, UserError
from refine.networks.plain_module import PlainModule
from refine.networks.weights_file import read_options, read_weights
from refine.pair.own import own_pair, weights_sha256
from refine.report.read import read_run
from refine.runs import start
from refine.runs.folder import RunFolder


class Generator(torch.nn.Module):
    """A small generator of 4-pixel images with 2 classes, a buffer and dropout."""

    z_dim, c_dim = 3, 2

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(), torch.nn.Linear(16, 16)
        )

    def forward(self, z, c):
        return self.layers(torch.cat([z, c], 1)).reshape(-1, 1, 4, 4)


class Teacher(torch.nn.Module):
    """A denoiser of 4-pixel images."""

    img_resolution, img_channels, label_dim = 4, 1, 2

    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Linear(2, 16)

    def forward(self, x, sigma, labels):
        mean = self.mean(labels).reshape(x.shape)
        return mean + (x - mean) / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


def networks(seed=0):
    torch.manual_seed(seed)
    return {"generator": Generator(), "teacher": Teacher()}


def config(tmp_path, **changes):
    sizes = {"batch": 8, "kimg": 0.032, "warmup_kimg": 0.016, "tick_kimg": 0.016, "snap_ticks": 1, "preflight": False}
    rates = {"glr": 1e-2, "flr": 1e-2, "ema_halflife_kimg": 0.02}
    names = {"gan": "mine", "teacher": "theirs", "outdir": str(tmp_path / "runs"), "device": "cpu"}
    return RunConfig(**(names | sizes | rates | changes))


def test_what_a_run_writes(tmp_path):
    own = networks()
    before = {name: value.clone() for name, value in own["generator"].state_dict().items()}
    snapshot = refine.run(config(tmp_path, preflight=True), **own)
    folder = snapshot.parent
    assert (folder.name, snapshot.name) == ("00000-mine-theirs-ikl-batch8", "network-snapshot-000000_032.safetensors")
    assert own["generator"].training and all(
        torch.equal(value, before[name]) for name, value in own["generator"].state_dict().items()
    )
    stored = json.loads((folder / "training_options.json").read_text())
    assert read_options(snapshot) == stored and stored["gan"] == "mine"
    first = read_weights(folder / "network-snapshot-000000.safetensors")
    assert all(torch.equal(first[key][name], value) for key in ("G", "G_ema") for name, value in before.items())
    last = read_weights(snapshot)
    assert not torch.equal(last["G"]["layers.0.weight"], before["layers.0.weight"])
    assert not torch.equal(last["G"]["layers.0.weight"], last["G_ema"]["layers.0.weight"])
    assert torch.equal(last["G"]["layers.1.running_mean"], before["layers.1.running_mean"])
    assert [path.suffix for path in RunFolder(folder).snapshots()] == [".safetensors"] * 3
    assert (folder / "network-best.safetensors").resolve().parent == folder
    assert len(read_run(folder).snapshots) == 3 and snapshot.name in (folder / "report.html").read_text()


def test_resuming_changes_nothing(tmp_path):
    whole = read_weights(refine.run(config(tmp_path, kimg=0.064), **networks()))
    part = refine.run(config(tmp_path, outdir=str(tmp_path / "part")), on_tick=lambda row: True, **networks())
    (state,) = part.parent.glob("training-state-*.pt")
    other = networks() | {"generator": Generator()}  # its weights come from the state
    again = start.resumed_config(state, {"kimg": 0.064})
    resumed = refine.run(again, resume=state, **other)
    assert resumed.parent == part.parent
    found = read_weights(resumed)
    assert all(torch.equal(found[key][name], value) for key in whole for name, value in whole[key].items())
    assert read_options(resumed)["kimg"] == 0.064


def test_resuming_with_other_networks(tmp_path, pair):
    own = networks()
    snapshot = refine.run(config(tmp_path, kimg=0.016), **own)
    (state,) = snapshot.parent.glob("training-state-*.pt")
    again = start.resumed_config(state, {"kimg": 0.032})
    with pytest.raises(OptionError, match="teacher"):
        refine.run(again, resume=state, **(own | {"teacher": Teacher()}))

    class Wider(Generator):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(UserError, match="more"):
        refine.run(again, resume=state, **(own | {"generator": Wider()}))


def test_starting_from_a_snapshot(tmp_path):
    snapshot = refine.run(config(tmp_path, kimg=0.016), **networks())
    second = refine.run(config(tmp_path, init=str(snapshot), kimg=0.016), **networks(1))
    expected = read_weights(snapshot)
    first = read_weights(second.parent / "network-snapshot-000000.safetensors")
    assert all(torch.equal(first[key][name], value) for key in expected for name, value in expected[key].items())


def test_measured_with_the_teacher_as_it_is(tmp_path):
    """Metrics, a plain function as teacher, several averages, and a generator without classes."""

    class Unconditional(torch.nn.Module):
        z_shape = (1, 16, 16)

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, z):
            return self.layer(z)

    def teacher(x, sigma):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    teacher.img_resolution, teacher.img_channels = 16, 1
    measured = {"metrics": "fid400_full", "data": "digits-test.zip", "detector": "digits-detector.pt"}
    options = config(tmp_path, objective="sds", snap_ticks=2, ema_more="0.5", **measured)
    snapshot = refine.run(options, generator=Unconditional(), teacher=teacher)
    rows = RunFolder(snapshot.parent).metric_rows("fid400_full")
    assert len(rows) == 2 and rows[-1]["snapshot_pkl"] == snapshot.name
    assert (snapshot.parent / "network-average-000000_032-0.5.safetensors").is_file()
    network = refine.load_weights(Unconditional(), snapshot)
    again = refine.evaluate(network, "fid400_full", "digits-test.zip", detector="digits-detector.pt", device="cpu")
    assert again[0]["results"]["fid400_full"] == pytest.approx(rows[-1]["results"]["fid400_full"], rel=1e-6)
    with pytest.raises(OptionError, match="ikl"):
        refine.run(config(tmp_path), generator=Unconditional(), teacher=teacher)


def test_contracts_of_the_users_own(tmp_path):
    class Contract(PlainModule):
        steps = 0

        def __call__(self, *args, **options):
            return GeneratorOutput(super().__call__(*args, **options).images, torch.ones(1, 1))

        def resolution_of(self, parameter):
            return 4 if "layers.3" in parameter else None

        def after_step(self, w_mean):
            Contract.steps += 1

    own = networks()
    start_weights = own["generator"].state_dict()["layers.0.weight"].clone()
    snapshot = refine.run(
        config(tmp_path, train_layers="4"), generator=Contract(own["generator"]), teacher=own["teacher"]
    )
    weights = read_weights(snapshot)["G"]
    assert torch.equal(weights["layers.0.weight"], start_weights) and Contract.steps == 4
    assert not torch.equal(weights["layers.3.weight"], own["generator"].layers[3].weight)


SOURCE = """
import torch

class Generator(torch.nn.Module):
    z_dim = 3
    c_dim = 10

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer = torch.nn.Linear(13, 256)

    def forward(self, z, c):
        return self.layer(torch.cat([z, c], 1)).reshape(-1, 1, 16, 16)
"""


def test_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    words = ["--gan=mine.py:Generator", "--teacher=edm-digits", "--batch=4", "--kimg=0.008", "--warmup-kimg=0.004"]
    words += ["--tick=0.004", "--outdir=runs", "--device=cpu", "--metrics=none", "--preflight=0"]
    refused = CliRunner().invoke(cli.main, words)
    assert refused.exit_code and "--trust-pickle" in refused.output
    planned = CliRunner().invoke(cli.main, [*words, "--trust-pickle", "-n"])
    assert planned.exit_code == 0 and "Generator" in planned.output, planned.output
    done = CliRunner().invoke(cli.main, [*words, "--trust-pickle"])
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == "00000-mine-edm-digits-sim-batch4"
    assert (folder / "network-snapshot-000000_008.safetensors").is_file()
    monkeypatch.chdir("/")
    again = ["--resume", str(folder), "--kimg=0.012", "--trust-pickle"]
    resumed = CliRunner().invoke(cli.main, again)
    assert resumed.exit_code == 0, (resumed.output, resumed.exception)
    assert (folder / "network-snapshot-000000_012.safetensors").is_file()
    words = ["--seeds=0", "--class=1", f"--outdir={tmp_path / 'images'}", "--device=cpu", "--trust-pickle"]
    drawn = CliRunner().invoke(generate.main, [f"--network={folder}", *words])
    assert drawn.exit_code == 0 and (tmp_path / "images" / "seed0000.png").is_file(), drawn.output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generator": lambda z, c: z}, ["z_dim"]),
        ({"generator": 5}, ["5"]),
        ({"teacher": 5}, ["5"]),
        ({"teacher": lambda x, sigma: x}, ["img_resolution"]),
    ],
)
def test_unusable_networks(change, words):
    own = networks() | change
    with pytest.raises(UserError) as caught:
        own_pair(own["generator"], own["teacher"])
    assert all(word in str(caught.value) for word in words), caught.value


def test_unusable_generators():
    class Odd(Generator):
        img_channels, img_resolution = 1, 8

    with pytest.raises(UserError, match=r"\[1, 1, 4, 4\].*\[1, 1, 8, 8\]"):
        own_pair(Odd(), Teacher())
    Odd.forward = lambda self, z, c: z.cuda_nonsense
    with pytest.raises(UserError, match="cuda_nonsense"):
        own_pair(Odd(), Teacher())

    def function(z, c):
        return torch.zeros(len(z), 1, 4, 4)

    function.z_dim = 3
    with pytest.raises(UserError, match="parameters"):
        own_pair(function, Teacher())


def test_digests_of_weights():
    own = networks()
    pair = own_pair(gan=own["generator"], teacher=own["teacher"])
    assert pair.digests == {"teacher weights": weights_sha256(own["teacher"])}
    assert pair.name == "Generator-Teacher" and pair.snapshot_suffix == ".safetensors"
    changed = networks()["teacher"]
    assert weights_sha256(changed) == weights_sha256(own["teacher"])
    changed.mean.bias.data[3] += 1e-6
    assert weights_sha256(changed) != weights_sha256(own["teacher"])


def test_pickles_beside_own_networks(pair, tmp_path):
    """A pickle refined by a function keeps its form; a loaded teacher counts as its file."""

    class Blur(torch.nn.Module):
        img_resolution, img_channels = 16, 3

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, sigma):
            return self.scale * x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    snapshot = refine.run(config(tmp_path, gan=pair["gan"], kimg=0.008), teacher=Blur())
    assert snapshot.suffix == ".pkl" and refine.load_generator(snapshot).key == "G_ema"
    assert snapshot.parent.name == "00000-b_cond16-theirs-ikl-batch8"
    teacher = load_teacher("edm-digits")
    own = own_pair(refine.load_generator("digits"), teacher)
    assert own.gan_file is not None and own.teacher_file is teacher and own.digests.keys() == {"gan", "teacher"}
    assert math.isfinite(own.teacher.sigma_data)
