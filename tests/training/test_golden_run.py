"""Ten steps of the golden pair in float64, against a stored run: the mathematics did not change by accident.

What is drawn comes from NumPy here, whose numbers are the same on every CPU. A change that is meant is recorded by
running this file as a module, `tests.training.test_golden_run`. The stored run is our own; that it is right is shown
elsewhere.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainers import golden_pair, modules, trainer_of

from refine.objectives import IKL, OBJECTIVES, ikl
from refine.training import trainer
from refine.training.inputs import draw
from refine.training.statistics import RunningMeans

FIXTURES = Path(__file__).parents[1] / "fixtures"
STORED = FIXTURES / "golden_run.json"


def numpy_draw(shape, sigma, fake_sigma, seed, stream, step):
    """`inputs.draw` with NumPy's numbers."""
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(f"{stream}/{step}".encode())]))
    normal = lambda *size: torch.from_numpy(rng.standard_normal(size))  # noqa: E731
    u = torch.from_numpy(rng.uniform(size=[2, shape.batch]))
    pixels = shape.batch, shape.img_channels, shape.img_resolution, shape.img_resolution
    c = torch.eye(shape.c_dim, dtype=torch.float64)[torch.from_numpy(rng.integers(shape.c_dim, size=shape.batch))]
    return replace(
        draw(shape, sigma, fake_sigma, seed, stream, step),
        z=normal(shape.batch, *shape.z_shape),
        c=c,
        sigma=sigma.quantile(u[0]) if sigma else torch.empty(0),
        fake_sigma=fake_sigma.quantile(u[1]) if fake_sigma else torch.empty(0),
        noise=normal(*pixels),
        fake_noise=normal(*pixels),
    )


def golden_run(monkeypatch, **changes):
    """Losses and norms of each step, and the norm of every tensor at the end."""
    monkeypatch.setattr(trainer, "draw", numpy_draw)
    options = {
        "batch": 6, "glr": 1e-3, "flr": 1e-3, "kimg": 0.12, "ema_halflife_kimg": 0.02, "noise_mode": "const",
        "fake_dropout": False, "batch_gpu": None, "fake_steps": 2, "lr_rampup_kimg": 0.03, "lr_decay": "cosine",
        "clip_grad": 50.0, "sigma": "lognormal:0,1.2->lognormal:-1,1.2", "share_forward": True,
    }  # fmt: skip
    run = trainer_of(golden_pair(double=True), **(options | changes))
    for _ in range(3):
        run.warm_up_step()
    steps = []
    for _ in range(10):
        run.statistics = RunningMeans()
        run.step()
        names = ("Loss/fake", "Score/gap", "Gradient/fake_norm", "Gradient/generator_norm")
        means = run.statistics.means()
        steps.append({name: means[name] for name in names})
    tensors = {
        f"{name}.{key}": float(value.double().norm())
        for name, module in modules(run).items()
        for key, value in module.state_dict().items()
    }
    return {"steps": steps, "tensors": tensors}


def difference(a, b):
    """The largest relative difference of all numbers."""
    pairs = [(x[name], y[name]) for x, y in zip(a["steps"], b["steps"], strict=True) for name in x]
    pairs += [(a["tensors"][name], b["tensors"][name]) for name in a["tensors"]]
    assert a["tensors"].keys() == b["tensors"].keys()
    return max(abs(x - y) / max(abs(y), 1e-12) for x, y in pairs)


@pytest.fixture(scope="module")
def stored():
    return json.loads(STORED.read_text())


def test_ten_steps_are_as_stored(monkeypatch, stored):
    assert difference(golden_run(monkeypatch), stored) < 1e-6


class WrongSign(IKL):
    def loss(self, scores):
        return -super().loss(scores)


class WrongScore(IKL):
    """The fake score in the teacher's place."""

    def loss(self, scores):
        return super().loss(replace(scores, teacher=scores.fake, fake=scores.teacher))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"objective": "ikl:weighting=score"}, marks=pytest.mark.slow),
        {"sigma": "lognormal:0,1.2->lognormal:-0.99,1.2"},
        pytest.param({"fake_sigma": "lognormal:-1.2,1.21"}, marks=pytest.mark.slow),
        {"share_forward": False},
        WrongSign,
        pytest.param(WrongScore, marks=pytest.mark.slow),
    ],
)
def test_a_change_of_the_mathematics_is_noticed(monkeypatch, stored, change):
    if isinstance(change, type):
        monkeypatch.setitem(OBJECTIVES, "ikl", change)
        change = {}
    assert difference(golden_run(monkeypatch, **change), stored) > 1e-4


def test_a_wrong_weight_of_the_fake_loss_is_noticed(monkeypatch, stored):
    right = ikl.fake_score_loss
    monkeypatch.setattr(ikl, "fake_score_loss", lambda *args: right(*args) * 1.001)
    assert difference(golden_run(monkeypatch), stored) > 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        STORED.write_text(json.dumps(golden_run(patch), indent=1) + "\n")
    print(f"wrote {STORED}")
