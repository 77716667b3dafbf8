"""States and weights: what is remembered, and what another run may start from."""

from __future__ import annotations

import pytest
import torch
from forge import described
from trainers import golden_pair, modules, trainer_of

from refine import pickles
from refine.errors import OptionError, UserError
from refine.training.state import load_state, load_weights, read_state, state_of


def make(gan="sg2ada/b_cond16.pkl", teacher="edm/s4_sid_ddpmpp_cond16.pkl", **changes):
    return trainer_of(golden_pair(gan, teacher), **({"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 1.0} | changes))


def tensors(trainer, *names):
    return [value for name in names for value in modules(trainer)[name].state_dict().values()]


def test_a_state_holds_tensors_numbers_and_text(tmp_path):
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


def test_weights_of_a_state(tmp_path):
    trainer = make()
    trainer.warm_up_step()
    trainer.step()
    path = tmp_path / "training-state-000000.pt"
    torch.save(state_of(trainer, {}), path)
    other = make()
    load_weights(other, path)
    names = ("generator", "generator_ema", "fake")
    assert all(torch.equal(a, b) for a, b in zip(tensors(trainer, *names), tensors(other, *names), strict=True))
    assert other.progress.step == 0 and not other.generator.optimizer.adam.state


def test_weights_of_a_pickle(fixture_path, tmp_path):
    origin = pickles.load(fixture_path("sg2ada/b_cond16.pkl"))
    trainer = make()
    with torch.no_grad():
        for name in ("generator", "generator_ema"):
            network = modules(trainer)[name]
            for parameter in network.parameters():
                parameter.add_(1.0 if name == "generator" else 2.0)
    networks = {
        "G": modules(trainer)["generator"].state_dict(),
        "G_ema": modules(trainer)["generator_ema"].state_dict(),
    }
    pickles.save(origin, tmp_path / "moved.pkl", networks)
    other = make()
    load_weights(other, tmp_path / "moved.pkl")
    for name in ("generator", "generator_ema"):
        assert all(torch.equal(a, b) for a, b in zip(tensors(trainer, name), tensors(other, name), strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip(other.fake_score.module.parameters(), other.teacher.module.parameters(), strict=True)
    )


def test_weights_of_a_network_from_torch_save(fixture_path, tmp_path):
    """As PTI and other tuning tools write it: a .pt that is not a training state."""
    torch.save(described(fixture_path("sg2ada/b_cond16.pkl"))["G_ema"], tmp_path / "model.pt")
    trainer = make()
    with torch.no_grad():
        trainer.generator.module.mapping.w_avg.add_(1)
    load_weights(trainer, tmp_path / "model.pt")
    expected = pickles.named_tensors(pickles.load(fixture_path("sg2ada/b_cond16.pkl"))["G_ema"])
    for name in ("generator", "generator_ema"):
        state = modules(trainer)[name].state_dict()
        assert all(torch.equal(state[key], record.read()) for key, record in expected.items())


def test_a_state_is_not_taken_for_a_network(tmp_path):
    """The sentence says what the file is good for."""
    torch.save(state_of(make(), {}), tmp_path / "training-state-000000.pt")
    with pytest.raises(UserError, match=r"training-state-000000\.pt.*--resume"):
        pickles.load(tmp_path / "training-state-000000.pt")


def test_weights_that_do_not_fit(fixture_path, tmp_path):
    with pytest.raises(UserError, match=r"a_uncond32\.pkl.*generator.*architecture"):
        load_weights(make(), fixture_path("sg2ada/a_uncond32.pkl"))
    with pytest.raises(UserError, match=r"s4_sid_ddpmpp_cond16\.pkl.*StyleGAN pickle"):
        load_weights(make(), fixture_path("edm/s4_sid_ddpmpp_cond16.pkl"))
    torch.save({"a": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt.*training-state-\*\.pt"):
        load_weights(make(), tmp_path / "other.pt")


def test_options_that_the_pair_cannot_have():
    with pytest.raises(OptionError, match=r"\banchor\b"):
        make(anchor=1.0)
    with pytest.raises(OptionError, match=r"fake_augment\b.*\b9\b.*s6_iddpm_adm_uncond16\.pkl.*fake_augment=0"):
        make(
            gan="sg2ada/a_uncond32.pkl",
            teacher="edm/s6_iddpm_adm_uncond16.pkl",
            fake_augment=0.1,
        )
