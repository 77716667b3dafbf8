"""Detail above the teacher's resolution: what it is, and that it is kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from trainers import golden_pair, trainer_of

from refine import load_generator
from refine.networks.style_based import as_generator
from refine.pair.bridge import Bridge
from refine.pair.high_frequency import anchor_loss, high_pass
from refine.training.drift import DriftProbe

CPU = torch.device("cpu")


def test_high_pass_of_waves():
    """Waves that the teacher's grid can carry are gone, the others stay."""
    bridge = Bridge(16, 0)
    x = (torch.arange(64) + 0.5) / 64 * 2 * math.pi
    slow, fast = torch.sin(2 * x), torch.sin(24 * x)
    images = torch.stack([slow, fast])[:, None, None, :].expand(2, 1, 64, 64).double()
    residual = high_pass(images, bridge)[..., 12:-12, 12:-12]
    assert residual[0].abs().max() < 0.01
    assert (residual[1] - images[1, :, 12:-12, 12:-12]).abs().max() < 0.01
    assert not high_pass(images[..., :16, :16], bridge).any()


def test_anchor_is_zero_at_the_start_and_blind_to_what_the_teacher_sees():
    bridge, start = Bridge(8, 0), torch.randn(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    assert anchor_loss(start, start, bridge).tolist() == [0, 0, 0]
    shifted = anchor_loss(start + 0.3, start, bridge)  # a constant is seen by any teacher
    assert shifted.shape == (3,) and shifted.max() < 1e-8
    noisy = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    assert anchor_loss(noisy, start, bridge).min() > 1


def drift(**changes):
    """A 32-pixel generator, refined for a while by a 16-pixel teacher."""
    options = {"batch": 8, "glr": 1e-4, "flr": 1e-3, "kimg": 1.0, "ema_halflife_kimg": 0.05}
    pair = golden_pair("sg2ada/a_uncond32.pkl", "edm/s1_edm_ddpmpp_uncond16.pkl")
    trainer = trainer_of(pair, **(options | changes))
    probe = DriftProbe(pair.generator, trainer.bridge, 0)
    for _ in range(2):
        trainer.warm_up_step()
    for _ in range(16):
        trainer.step()
    return probe.measure(trainer.generator.network), trainer


@pytest.fixture(scope="module")
def drifts():
    options = {"auto": {}, "all": {"train_layers": "all"}, "anchored": {"anchor": 100.0}}
    return {name: drift(**changes) for name, changes in options.items()}


@pytest.mark.slow
def test_frozen_layers_keep_detail(drifts):
    """Fixed latents, constant noise: the residual changes clearly less than where everything is trained."""
    frozen, everything = drifts["auto"][0], drifts["all"][0]
    assert everything["Drift/detail"] > 1.35 * frozen["Drift/detail"] > 0
    assert frozen["Drift/image"] > 10 * frozen["Drift/detail"]  # while what the teacher sees does move


@pytest.mark.slow
def test_anchor_holds_detail(drifts):
    anchored, trainer = drifts["anchored"]
    assert anchored["Drift/detail"] < 0.7 * drifts["auto"][0]["Drift/detail"]
    assert trainer.statistics.means()["Loss/anchor"] > 0


def test_probe(fixture_path):
    gan = load_generator(str(fixture_path("sg2ada/b_cond16.pkl"))).network
    probe = DriftProbe(as_generator(gan), Bridge(16, 5), 0)
    before = probe.measure(as_generator(gan))
    assert before["Drift/parameters"] == before["Drift/image"] == 0 and "Drift/detail" not in before
    ws = gan.mapping(probe.z, probe.c)[:, 0]
    assert before["W/std"] == pytest.approx(float(ws.std(dim=0).mean()), rel=1e-4)
    moved = copy.deepcopy(gan)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1.1)
    after = probe.measure(as_generator(moved))
    assert after["Drift/parameters"] == pytest.approx(0.1, rel=1e-4) and after["Drift/image"] > 0
