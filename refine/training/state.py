"""Training states, saved and restored exactly; and weights alone, for another run to start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import networks, pickles
from refine.errors import UserError
from refine.pickles import PersistentObject
from refine.runtime import distributed
from refine.training.statistics import RunningMeans
from refine.training.trained import Progress
from refine.training.trainer import Trainer

STATE_VERSION = 4
OLD_VERSION = 3  # one entry for each tensor of each network, by name; written until November 2026


def state_of(trainer: Trainer, digests: Mapping[str, str], start: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Content of a `training-state-*.pt`: tensors, numbers and text, so that it loads with weights_only=True.

    All processes have to call this.

    Args:
        trainer: Trainer in the state to be remembered.
        digests: SHA-256 of the files that the run was started with, by the option that named them.
        start: Weights of the generator before the first step, where they are not those of the run's pickle.
    """
    return {
        "version": STATE_VERSION,
        "digests": dict(digests),
        "progress": asdict(trainer.progress),
        "statistics": trainer.statistics.merged(),
        "start": start,
        "networks": {trained.name: trained.state_dict() for trained in trainer.networks},
    }


def load_state(trainer: Trainer, state: dict[str, Any], digests: Mapping[str, str]) -> None:
    """The inverse of `state_of`.

    Raises:
        UserError: The state belongs to other files.
    """
    for name, sha256 in digests.items():
        if state["digests"].get(name) != sha256:
            raise UserError(f"--{name} is not the file that the run was started with: put that file back.")
    trainer.progress = Progress(**state["progress"])
    trainer.statistics = RunningMeans(state["statistics"] if distributed.is_first() else None)
    for trained in trainer.networks:
        trained.load_state_dict(state["networks"][trained.name])


def read_state(path: Path) -> dict[str, Any]:
    """Content of a `training-state-*.pt`, of this version or the one before.

    Raises:
        UserError: The file is damaged, something else, or of an unknown version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        raise UserError(f"{path} is no training state of Refine, or damaged: resume from an older one.") from error
    if not isinstance(state, dict) or "progress" not in state:
        raise UserError(f"{path} is no training state of Refine: give a training-state-*.pt of a run.")
    if state.get("version") == OLD_VERSION:
        state = _from_version_3(state)
    if state.get("version") != STATE_VERSION:
        raise UserError(f"{path} was written by another version of Refine: resume it with that version.")
    return state


def _from_version_3(state: dict[str, Any]) -> dict[str, Any]:
    generator = {
        "module": state["generator"],
        "average": state["generator_ema"],
        "optimizer": state["generator_optimizer"],
    }
    return {
        "version": STATE_VERSION,
        "digests": state["hashes"],
        "progress": state["progress"],
        "statistics": state["averages"],
        "start": state["start"],
        "networks": {
            "generator": generator,
            "fake_score": {"module": state["fake"], "optimizer": state["fake_optimizer"]},
        },
    }


def load_weights(trainer: Trainer, path: Path, *, trust: bool = False) -> None:
    """Takes weights, and nothing else, from a training state or a StyleGAN pickle.

    A state gives the live generator, its average and the fake score; a pickle gives G and G_ema, or one for both.

    Raises:
        UserError: The file cannot be read, or its networks are not of the shape of the run's.
    """
    if path.suffix == ".pt":
        stored = read_state(path)["networks"]
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
        stored = {"generator": {"module": live or average, "average": average or live}}
    for trained in trainer.networks:
        if trained.name in stored:
            try:
                trained.load_weights(stored[trained.name])
            except RuntimeError as error:
                raise UserError(
                    f"The weights in {path} are of another network than the run's {trained.title}: "
                    "start from a file of the same architecture."
                ) from error
    remember_start(trainer, trainer.generator.module.state_dict())


def remember_start(trainer: Trainer, weights: Mapping[str, Tensor]) -> None:
    """Anchors detail to that of these weights, where it is anchored."""
    if trainer.generator_start is not None:
        trainer.generator_start.module.load_state_dict(dict(weights))
