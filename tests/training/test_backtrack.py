"""Intermediate teachers from the warm-up: which are kept, when each is followed, and that a resumed run agrees."""

from __future__ import annotations

import pytest
import torch
from trainers import golden_pair, trainer_of

from refine.config import TrainingOptions
from refine.errors import OptionError
from refine.training.backtrack import SHARE, Backtrack, NoBacktrack
from refine.training.memory import estimate_memory
from refine.training.state import load_state, read_state, state_of
from refine.training.statistics import RunningMeans


def make(**changes):
    options = {"batch": 4, "glr": 1e-3, "flr": 1e-3, "kimg": 0.064, "warmup_kimg": 0.032, "noise_mode": "const"}
    return trainer_of(golden_pair(), **(options | {"backtrack": 3} | changes))


def state(network):
    return {name: tensor.clone() for name, tensor in network.module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def warm_up(trainer):
    """All 8 steps; states of the fake score after each."""
    states = []
    for _ in range(8):
        trainer.warm_up_step()
        states.append(state(trainer.fake_score))
    return states


def test_states_are_kept_at_even_places_and_followed_in_reverse():
    """Three of 32 images are those after 8, 16 and 24; a quarter of 16 steps is 4."""
    trainer = make()
    assert type(trainer.backtrack) is Backtrack and trainer.guide is trainer.teacher
    teacher = state(trainer.teacher)
    states = warm_up(trainer)
    kept = trainer.backtrack.state_dict()
    assert len(kept) == 3 and all(same(a, states[i]) for a, i in zip(kept, (1, 3, 5), strict=True))
    followed = []
    for _ in range(5):
        trainer.statistics = RunningMeans()
        guide = state(trainer.guide)
        followed.append(next(i for i, each in enumerate([teacher, *kept]) if same(guide, each)))
        trainer.step()
        assert ("Divergence/nats" in trainer.statistics.means()) == (followed[-1] == 0)  # only of the teacher itself
    assert SHARE == 0.25 and followed == [3, 3, 2, 1, 0]
    assert same(state(trainer.teacher), teacher) and trainer.backtrack.state_dict() == []


def test_the_generator_follows_the_intermediate_teacher():
    """With the fake score's last state in the teacher's place there is nothing to follow."""
    trainer = make(fake_dropout=False)
    warm_up(trainer)
    trainer.backtrack.load_state_dict([state(trainer.fake_score)])
    trainer.statistics = RunningMeans()
    trainer.move_generator()
    assert trainer.statistics.means()["Score/gap"] == 0
    trainer.backtrack.load_state_dict([])
    trainer.statistics = RunningMeans()
    trainer.move_generator()
    assert trainer.statistics.means()["Score/gap"] > 0


FORMS = [
    pytest.param(c, marks=pytest.mark.slow) for c in ({"objective": "sid", "checkpoint": True}, {"share_unet": True})
]


@pytest.mark.parametrize("changes", [{}, *FORMS])
def test_goes_on_as_if_never_stopped(changes, tmp_path):
    """Stopped in the warm-up and again while an intermediate teacher is followed."""
    whole, current = make(**changes), make(**changes)
    warm_up(whole)
    for _ in range(6):
        whole.step()
    for index in range(8 + 6):
        (current.warm_up_step if index < 8 else current.step)()
        if index in (4, 9):
            path = tmp_path / "training-state-000000.pt"
            torch.save(state_of(current, {}), path)
            current = make(**changes)
            load_state(current, read_state(path), {})
    for a, b in zip(whole.networks, current.networks, strict=True):
        assert same(state(a), state(b))


def test_nothing_is_kept_where_nothing_was_asked_for():
    trainer = make(backtrack=0)
    assert type(trainer.backtrack) is NoBacktrack
    warm_up(trainer)
    assert trainer.backtrack.state_dict() == [] and trainer.guide is trainer.teacher


def test_memory_counts_the_path():
    with_path, without = (estimate_memory(make(backtrack=count)) for count in (3, 0))
    one = sum(p.nbytes for p in make(backtrack=0).teacher.module.parameters())
    assert with_path.parameters - without.parameters == one and with_path.state - without.state == 3 * one


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": "sds"}, "objective=sds"),
        ({"warmup_kimg": 0.0}, "warmup_kimg=0"),
        ({"objective": "f:kl"}, "objective=f"),
        ({"gan_weight": 0.5}, "gan_weight=0.5"),
    ],
)
def test_what_it_cannot_go_with(changes, named):
    with pytest.raises(OptionError) as raised:
        TrainingOptions(backtrack=2, **changes)
    assert "backtrack=2" in str(raised.value).replace("{", "").replace("}", "") and named in str(raised.value)
