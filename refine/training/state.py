"""Everything that a run must remember, saved and restored exactly; and weights alone, for another run to start from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import networks, pickles
from refine.errors import UserError
from refine.pickles import PersistentObject
from refine.runtime import distributed
from refine.training.statistics import Averages
from refine.training.trainer import Progress, Trainer

STATE_VERSION = 3
_NETWORKS = ("generator", "generator_ema", "fake")
_STATEFUL = (*_NETWORKS, "generator_optimizer", "fake_optimizer")


def state_of(trainer: Trainer, hashes: dict[str, str], start: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """The content of a `training-state-*.pt`: tensors, numbers and text, so that it loads with weights_only=True.

    All processes have to call this.

    Args:
        trainer: in the state to be remembered.
        start: weights of the generator before the first step, where they are not those of the run's pickle.
        hashes: sha256 of the files that the run was started with, by the option that named them.
    """
    return {
        "version": STATE_VERSION,
        "hashes": hashes,
        "progress": asdict(trainer.progress),
        "averages": trainer.averages.merged(),
        "start": start,
        **{name: getattr(trainer, name).state_dict() for name in _STATEFUL},
    }


def load_state(trainer: Trainer, state: dict[str, Any], hashes: dict[str, str]) -> None:
    """The inverse of `state_of`.

    Raises:
        UserError: the state belongs to other files, or to another version of Refine.
    """
    if state.get("version") != STATE_VERSION:
        raise UserError("The training state was written by another version of Refine: resume it with that one.")
    for name, sha256 in hashes.items():
        if state["hashes"].get(name) != sha256:
            raise UserError(f"--{name} is not the file that the run was started with: put that one back.")
    trainer.progress = Progress(**state["progress"])
    trainer.averages = Averages(state["averages"] if distributed.is_first() else None)
    for name in _STATEFUL:
        getattr(trainer, name).load_state_dict(state[name])


def read_state(path: Path) -> dict[str, Any]:
    """The content of a `training-state-*.pt`.

    Raises:
        UserError: it is damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        raise UserError(f"{path} is no training state of Refine, or damaged: resume from an older one.") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise UserError(f"{path} is no training state of Refine: give a training-state-*.pt of a run.")
    return state


def load_weights(trainer: Trainer, path: Path, *, trust: bool = False) -> None:
    """Takes weights, and nothing else, from a training state or a StyleGAN pickle.

    A state gives the live generator, its average and the fake score; a pickle gives G and G_ema, or one for both.

    Raises:
        UserError: the file cannot be read, or its networks are not of the shape of the run's.
    """
    if path.suffix == ".pt":
        state = read_state(path)
        weights = {name: state[name] for name in _NETWORKS}
    else:
        pickle = pickles.load(path, trust=trust)
        live, average = (
            networks.rebuild(pickle[key], trust=trust).state_dict()
            if isinstance(pickle.get(key), PersistentObject)
            else None
            for key in ("G", "G_ema")
        )
        if not (live or average):
            raise UserError(f"{path} holds no generator to start from: give a StyleGAN pickle or a training state.")
        weights = {"generator": live or average, "generator_ema": average or live}
    for name, values in weights.items():
        try:
            getattr(trainer, name).load_state_dict(values)
        except RuntimeError as error:
            raise UserError(
                f"The weights in {path} are of another network than the run's {name.split('_')[0]}: "
                "start from a file of the same architecture."
            ) from error
    remember_start(trainer, trainer.generator.state_dict())


def remember_start(trainer: Trainer, weights: dict[str, Tensor]) -> None:
    """Anchors detail to that of these weights, where it is anchored."""
    if trainer.generator_start is not None:
        trainer.generator_start.load_state_dict(weights)
