"""Training states, saved and restored exactly, and the loading of weights alone to start another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refine import networks, pickles
from refine.errors import OptionError, UserError
from refine.networks import one_step, weights_file
from refine.pickles import NetworkPickle, NetworkRecord
from refine.runtime import distributed
from refine.training.statistics import RunningMeans
from refine.training.trained import Progress
from refine.training.trainer import Trainer

STATE_VERSION = 4
OLD_VERSION = 3  # one entry for each tensor of each network, by name; written until November 2026


def state_of(trainer: Trainer, digests: Mapping[str, str], start: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Content of a `training-state-*.pt`: only tensors, numbers and text, so that it loads with weights_only=True.

    All processes have to call this.

    Args:
        trainer: Trainer in the state to save.
        digests: SHA-256 of the run's files, keyed by the option that names the file.
        start: Weights of the generator before the first step; None if they are in the run's pickle.
    """
    return {
        "version": STATE_VERSION,
        "digests": dict(digests),
        "progress": asdict(trainer.progress),
        "statistics": trainer.statistics.merged(),
        "start": start,
        "networks": {trained.name: trained.state_dict() for trained in trainer.networks},
        "backtrack": trainer.backtrack.state_dict(),
    }


def load_state(trainer: Trainer, state: dict[str, Any], digests: Mapping[str, str]) -> None:
    """Restores a state that `state_of` returned.

    Args:
        trainer: Trainer of the same options.
        state: State to restore.
        digests: SHA-256 of the run's files, keyed by the option that names the file; with ` weights` behind the option,
            of the weights of a network without a file.

    Raises:
        UserError: A file is not the one that the run was started with.
    """
    for name, sha256 in digests.items():
        if state["digests"].get(name) != sha256:
            option, _, what = name.partition(" ")
            what = "network" if what else "file"
            raise OptionError(
                f"{{{option}}} is not the {what} that the run was started with: give the original {what}."
            )
    trainer.progress = Progress(**state["progress"])
    trainer.statistics = RunningMeans(state["statistics"] if distributed.is_rank0() else None)
    for trained in trainer.networks:
        trained.load_state_dict(state["networks"][trained.name])
    trainer.backtrack.load_state_dict(state.get("backtrack", []))


def read_state(path: Path) -> dict[str, Any]:
    """Reads a `training-state-*.pt` of this or the previous version.

    Raises:
        UserError: The file is corrupted, is not a training state, or has an unknown version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in many ways
        raise UserError(
            f"{path} is not a training state of Refine, or is corrupted: resume from an older state."
        ) from error
    if not isinstance(state, dict) or "progress" not in state:
        raise UserError(f"{path} is not a training state of Refine: give a training-state-*.pt from a run's folder.")
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
    """Loads weights, and nothing else, from a training state or a StyleGAN pickle.

    A state provides the live generator, its moving average and the fake score; a pickle, or a snapshot of a network
    without a pickle, provides G and G_ema, or one of them for both. For a one-step generator these are net and ema.

    Args:
        trainer: Trainer whose networks receive the weights.
        path: Training state (`.pt`), StyleGAN pickle, file of `torch.save` with a generator, or `.safetensors`.
        trust: Permission to run source code embedded in the pickle, for networks that Refine does not know.

    Raises:
        UserError: The file cannot be read, or its networks have another architecture than the run's.
    """
    stored = _stored_weights(trainer, path, trust)
    for trained in trainer.networks:
        if trained.name in stored:
            try:
                trained.load_weights(stored[trained.name])
            except RuntimeError as error:
                raise UserError(
                    f"The weights in {path} do not fit the run's {trained.title}: give a file of the same architecture."
                ) from error
    remember_start(trainer, trainer.generator.module.state_dict())


def _stored_weights(trainer: Trainer, path: Path, trust: bool) -> dict[str, Any]:
    """Weights in a file, as `TrainedNetwork.load_weights` takes them, by the name of the network."""
    if path.suffix == weights_file.SUFFIX:
        found: dict[str, Any] = weights_file.read_weights(path)
        live, average = found.get(weights_file.LIVE), found[weights_file.AVERAGE]
        return {"generator": {"module": live or average, "average": average}}
    try:
        pickle = pickles.load(path, trust=trust)
    except UserError:
        if path.suffix != ".pt":
            raise
        stored: dict[str, Any] = read_state(path)["networks"]
        return stored
    generator: Any = trainer.generator.module
    is_one_step = isinstance(generator, one_step.OneStep)
    if is_one_step:
        _require_sigma(pickle, generator.sigma_init)
    live, average = (
        networks.rebuild(pickle[key], trust=trust).state_dict() if isinstance(pickle.get(key), NetworkRecord) else None
        for key in ((one_step.LIVE, one_step.AVERAGE) if is_one_step else ("G", "G_ema"))
    )
    if not (live or average):
        kind = "the pickle of a one-step generator" if is_one_step else "a StyleGAN pickle"
        raise UserError(f"{path} contains no generator to start from: give {kind} or a training state.")
    return {"generator": {"module": live or average, "average": average or live}}


def _require_sigma(pickle: NetworkPickle, sigma_init: float) -> None:
    """Refuses a one-step generator of another noise level."""
    about = one_step.recorded(pickle)
    if about is not None and about["sigma_init"] != sigma_init:
        raise OptionError(
            f"The one-step generator in {pickle.path} has sigma_init {about['sigma_init']:g}, and the run "
            f"{{sigma_init={sigma_init:g}}}: use {{sigma_init={about['sigma_init']:g}}}."
        )


def remember_start(trainer: Trainer, weights: Mapping[str, Tensor]) -> None:
    """Sets the weights of the starting generator that `--anchor` compares with, if the run has one."""
    if trainer.generator_start is not None:
        trainer.generator_start.module.load_state_dict(dict(weights))
