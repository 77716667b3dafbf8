"""States and weights: what is remembered, and what another run may start from."""

from __future__ import annotations

import pytest
import torch

from refine import load_gan, load_teacher, pickles
from refine.config import RunConfig
from refine.errors import UserError
from refine.runs.start import make_trainer
from refine.training.state import load_state, load_weights, read_state, state_of

CPU = torch.device("cpu")


@pytest.fixture
def make(fixture_path):
    def trainer(**changes):
        pair = {
            "gan": str(fixture_path("sg2ada/b_cond16.pkl")),
            "teacher": str(fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")),
        }
        config = RunConfig(**(pair | {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0} | changes))
        return make_trainer(config, load_gan(config.gan), load_teacher(config.teacher), CPU)

    return trainer


def tensors(trainer, *names):
    return [value for name in names for value in getattr(trainer, name).state_dict().values()]


def test_a_state_holds_tensors_numbers_and_text(make, tmp_path):
    trainer = make()
    trainer.warm_up_step()
    trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(trainer, {"gan": "1", "teacher": "2"}), path)
    other = make()
    load_state(other, read_state(path), {"gan": "1", "teacher": "2"})
    assert other.progress == trainer.progress
    for a, b in ((trainer, other), (other, trainer)):
        a.step()
        b.step()
    names = ("generator", "generator_ema", "fake")
    assert all(torch.equal(a, b) for a, b in zip(tensors(trainer, *names), tensors(other, *names), strict=True))


def test_weights_of_a_state(make, tmp_path):
    trainer = make()
    trainer.warm_up_step()
    trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(trainer, {}), path)
    other = make()
    load_weights(other, path)
    names = ("generator", "generator_ema", "fake")
    assert all(torch.equal(a, b) for a, b in zip(tensors(trainer, *names), tensors(other, *names), strict=True))
    assert other.progress.step == 0 and not other.generator_optimizer.adam.state


def test_weights_of_a_pickle(make, fixture_path, tmp_path):
    origin = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    trainer = make()
    with torch.no_grad():
        for name, network in (("generator", trainer.generator), ("generator_ema", trainer.generator_ema)):
            for parameter in network.parameters():
                parameter.add_(1.0 if name == "generator" else 2.0)
    networks = {"G": trainer.generator.state_dict(), "G_ema": trainer.generator_ema.state_dict()}
    pickles.save(origin, tmp_path / "moved.pkl", networks)
    other = make()
    load_weights(other, tmp_path / "moved.pkl")
    for name in ("generator", "generator_ema"):
        assert all(torch.equal(a, b) for a, b in zip(tensors(trainer, name), tensors(other, name), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other.fake.parameters(), other.teacher.parameters(), strict=True))


def test_weights_that_do_not_fit(make, fixture_path, tmp_path):
    with pytest.raises(UserError, match="of another network than the run's generator"):
        load_weights(make(), fixture_path("sg2ada/a_uncond32.pkl"))
    with pytest.raises(UserError, match="holds no generator to start from"):
        load_weights(make(), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="is no training state of Refine"):
        load_weights(make(), tmp_path / "other.pt")


def test_options_that_the_pair_cannot_have(make, fixture_path):
    with pytest.raises(UserError, match="--anchor holds detail"):
        make(anchor=1.0)
    with pytest.raises(UserError, match="--fake-augment needs a teacher"):
        make(
            gan=str(fixture_path("sg2ada/a_uncond32.pkl")),
            teacher=str(fixture_path("edm/s6_iddpm_adm_uncond16.pkl")),
            fake_augment=0.1,
        )
