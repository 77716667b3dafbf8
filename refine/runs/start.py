"""What a run is made of: device, networks and names, from its options."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from refine.config import RunConfig
from refine.diffusion import augment
from refine.errors import OptionError, UserError
from refine.networks.loading import LoadedNetwork
from refine.pair.bridge import Shape, make_bridge
from refine.pair.freeze import select_layers
from refine.runs.folder import RunDir
from refine.training.trainer import Trainer

# Options that a resumed run may change; how many images fit into memory is the machine's matter.
RESUMABLE_CHANGES = (
    *("kimg", "tick_kimg", "snap_ticks", "batch_gpu"),
    *("metrics", "data", "ref", "detector", "vgg", "metric_every"),
)


def choose_device(name: str, index: int | None = None) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `mps`; of several GPUs the one with that index.

    Raises:
        UserError: this machine does not have it.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device={name} is not available to PyTorch here; --device=auto takes what is there.")
    if name != "cuda" or index is None:
        return torch.device(name)
    if index >= torch.cuda.device_count():
        raise UserError(
            f"Process {index} of this machine has no GPU: there are {torch.cuda.device_count()}; "
            f"start torchrun with --nproc_per_node={torch.cuda.device_count()}."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def would_use_cuda(device: str) -> bool:
    """Whether `choose_device` gives a CUDA device."""
    return device in ("auto", "cuda") and torch.cuda.is_available()


def make_trainer(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork, device: torch.device) -> Trainer:
    """Copies of the networks, joined by a bridge, on the device.

    Raises:
        UserError: the pair does not fit.
    """
    if not (hasattr(gan.network, "mapping") and hasattr(gan.network, "synthesis")):
        raise UserError(
            f"{gan.pickle.path} holds a {gan.record.class_name} that is not made of a mapping and a synthesis network, "
            "as StyleGAN's are: it cannot be refined."
        )
    bridge = make_bridge(shape_of(gan), shape_of(teacher), config.resample, config.class_map)
    if config.anchor and bridge.img_resolution == shape_of(gan).img_resolution:
        raise UserError("--anchor holds detail that the teacher cannot see, and this one sees all: leave it out.")
    map_augment = getattr(getattr(teacher.network, "model", None), "map_augment", None)
    if config.fake_augment and getattr(map_augment, "in_features", 0) != augment.NUM_LABELS:
        raise UserError(
            f"--fake-augment needs a teacher that was trained with EDM's {augment.NUM_LABELS} augmentation labels, and "
            f"{teacher.pickle.path} was not: use --fake-augment=0."
        )
    generator, generator_ema = (copy.deepcopy(gan.network).to(device) for _ in range(2))
    denoiser, fake = (copy.deepcopy(teacher.network).to(device) for _ in range(2))
    select_layers(generator, config.train_layers, bridge.img_resolution)
    return Trainer(config, generator, generator_ema, denoiser, fake, bridge, device)


def shape_of(loaded: LoadedNetwork) -> Shape:
    """What the bridge has to know of a network."""
    network: Any = loaded.network
    num_classes = network.c_dim if hasattr(network, "c_dim") else network.label_dim
    return Shape(int(network.img_resolution), int(network.img_channels), int(num_classes))


def run_name(config: RunConfig, gan: LoadedNetwork, teacher: LoadedNetwork) -> str:
    """`<gan>-<teacher>-<objective>-batch<N>[-desc]`, from the names of the files."""
    names = [pickle.path.stem for pickle in (gan.pickle, teacher.pickle)]
    parts = [*names, config.objective, f"batch{config.batch}", *([config.desc] if config.desc else [])]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "_" for c in part) for part in parts)


def lasting(spec: str, *, folders: bool = False) -> str:
    """A path that also holds from another folder; others as they are. Folders only where one may be meant."""
    path = Path(spec).expanduser()
    return str(path.resolve()) if path.is_file() or (folders and path.is_dir()) else spec


def with_lasting_paths(config: RunConfig) -> RunConfig:
    """The options, such that a run can be resumed from another folder."""
    changed: dict[str, Any] = {
        name: lasting(config[name], folders=name == "data")
        for name in ("gan", "teacher", "data", "ref", "detector", "vgg")
        if config[name] is not None
    }
    return replace(config, **changed)


def resumed_config(state: Path, changes: dict[str, Any]) -> RunConfig:
    """The stored options of the run that a state lies in, with those changed that may change.

    Raises:
        UserError: an option that decides what the run does would change.
    """
    config = RunConfig.from_dict(RunDir(state.parent).read_options())
    changes = {
        name: lasting(value, folders=name == "data") if isinstance(value, str) else value
        for name, value in changes.items()
    }
    changed = replace(config, **changes)
    fixed = [n for n in changes if n not in RESUMABLE_CHANGES and changed[n] != config[n]]
    if fixed:
        raise OptionError(f"{{{fixed[0]}}} cannot change in a resumed run: leave it out.")
    return changed
