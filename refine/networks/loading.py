"""Loading of the networks that a run works on, from anything that a user names: a path, a URL, a zoo name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from refine import networks, pickles, zoo
from refine.errors import OptionError
from refine.networks import adm, one_step, r3gan
from refine.networks.adm_settings import ADMSettings, parse_settings
from refine.networks.rebuilding import unknown_sources
from refine.networks.registry import Architecture
from refine.pickles import NetworkPickle, NetworkRecord, PickleError
from refine.pickles.finite import require_finite
from refine.pickles.layout import STATE_DICT
from refine.pickles.state_dict import StateDict

log = logging.getLogger("refine")

_GENERATOR_KEYS = ("G_ema", "G")  # StyleGAN snapshots; the moving average first
_DENOISER_KEYS = ("ema", "net")  # EDM snapshots
_GENERATOR_ATTRIBUTES = ("z_dim", "c_dim", "w_dim", "num_ws", "img_resolution", "img_channels")
_DENOISER_ATTRIBUTES = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "sigma_min",
    "sigma_max",
    "round_sigma",
)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network and its origin.

    Attributes:
        network: Network in float32, on the CPU, in evaluation mode, gradients off.
        architecture: Kind of network.
        record: Record of the network in the pickle.
        key: Entry of the pickle that the network was made from, such as "G_ema".
        pickle: Whole pickle; `pickles.save` writes it back with new weights.
    """

    network: torch.nn.Module
    architecture: Architecture
    record: NetworkRecord | StateDict
    key: str
    pickle: NetworkPickle

    @property
    def is_embedded(self) -> bool:
        """True if the network is the one that the pickle brings as source, not Refine's own."""
        network = self.network.denoiser if isinstance(self.network, one_step.OneStep) else self.network
        return not type(network).__module__.startswith("refine.")


def load_generator(spec: str, *, trust: bool = False, sigma_init: float | None = None) -> LoadedNetwork:
    """Opens a StyleGAN pickle, or that of a one-step generator, and rebuilds its generator.

    Of a StyleGAN pickle it is `G_ema` if there is one, and `G` if not; of a one-step generator it is `ema`.

    Args:
        spec: Path, http(s) URL or zoo name.
        trust: Permission to run the source embedded in the pickle, where Refine has no such network or may have
            another one; see `networks.rebuild`.
        sigma_init: Noise level of a one-step generator. None: as the file tells, and 2.5 for SiD's files, which do not
            tell it.

    Raises:
        UserError: The file cannot be downloaded or read, is not a network pickle, or has no generator with finite
            weights.
    """
    return generator_of(pickles.load(zoo.resolve(spec).path, trust=trust), sigma_init=sigma_init)


def load_teacher(
    spec: str, *, trust: bool = False, settings: ADMSettings | str | Mapping[str, Any] | None = None
) -> LoadedNetwork:
    """Opens an EDM pickle, or a state dict of guided-diffusion (ADM), and rebuilds its denoiser.

    Args:
        spec: Path, http(s) URL or zoo name.
        trust: Permission to run the source embedded in the pickle; see `load_generator`.
        settings: What the state dict does not tell, such as "num_head_channels=64,attention_order=old"; see
            `adm_settings.ADMSettings`. Files of the zoo need none. Ignored for a pickle.

    Raises:
        UserError: The file cannot be downloaded or read, is not a network pickle, has no denoiser with finite weights,
            or settings are missing or impossible.
    """
    found = zoo.resolve(spec)
    opened = pickles.load(found.path, trust=trust)
    given = parse_settings(settings or "none")
    if isinstance(opened.get(STATE_DICT), StateDict):
        given = given.or_else(published_settings(found, opened[STATE_DICT]))
    about = one_step.recorded(opened)
    if about is not None:
        raise PickleError(
            f"{opened.path}: it holds a one-step generator (sigma_init {about['sigma_init']:g}), which is no teacher: "
            "give the diffusion model that it was distilled from as --teacher, and this file as --gan"
        )
    return denoiser_of(opened, settings=given)


def published_settings(found: zoo.ResolvedFile, state_dict: StateDict) -> ADMSettings:
    """Settings of the zoo for a file that was taken from it, or has the name and image size of one of its files.

    Args:
        found: File of the state dict.
        state_dict: Its tensors.

    Raises:
        PickleError: The network is of a kind that Refine does not rebuild.
    """
    entry = found.entry or zoo.find_file(found.path)
    known = parse_settings(entry.settings if entry else "none")
    if entry is not None and found.entry is None:
        with pickles.about(found.path):
            size = adm.shape_of(state_dict.tensors).image_size
        if size != known.image_size:
            return ADMSettings()
        log.info("%s has the name of %s in the zoo: taking its settings, %s", found.path, entry.name, known)
    return known


def save(loaded: LoadedNetwork, path: str | os.PathLike[str]) -> None:
    """Writes the pickle that a network came in, with the weights that the network has now.

    Everything else in the pickle stays as it was, so that the repositories that opened the original open the new one.

    Args:
        loaded: Result of `load_generator` or `load_teacher`.
        path: File to write; it appears complete or not at all.

    Raises:
        UserError: The file cannot be written, or a weight is not finite.
    """
    weights, pickle = loaded.network.state_dict(), loaded.pickle
    require_finite(weights, f"the network that would be written to {os.fspath(path)}")
    if isinstance(loaded.network, one_step.OneStep):
        pickle = one_step.described(pickle, loaded.network.sigma_init)
    pickles.save(pickle, Path(path), {loaded.key: weights})


def generator_of(
    network_pickle: NetworkPickle, keys: Sequence[str] = _GENERATOR_KEYS, *, sigma_init: float | None = None
) -> LoadedNetwork:
    """Rebuilds the generator of an open pickle.

    Args:
        network_pickle: Result of `pickles.load`.
        keys: Entries to look for, the preferred one first.
        sigma_init: Noise level of a one-step generator; see `load_generator`.

    Raises:
        UserError: The pickle holds no generator with finite weights under these keys.
    """
    is_gan = any(isinstance(network_pickle.get(key), NetworkRecord) for key in keys)
    denoiser = None if is_gan else _denoiser_key(network_pickle)
    if denoiser and (sigma_init is not None or one_step.holds_one_step(network_pickle)):
        return as_one_step(denoiser_of(network_pickle), sigma_init)
    loaded = _load(network_pickle, keys, "generator", _GENERATOR_ATTRIBUTES)
    if sigma_init is not None:
        raise OptionError(
            f"{{sigma_init={sigma_init:g}}} is the noise level of a one-step generator, and {network_pickle.path} "
            f"holds a {loaded.architecture.name}: leave it out."
        )
    return loaded


def as_one_step(loaded: LoadedNetwork, sigma_init: float | None = None) -> LoadedNetwork:
    """A loaded denoiser as a one-step generator; the two share their weights.

    Args:
        loaded: Result of `load_teacher`.
        sigma_init: Noise level; None: as the file tells, else 2.5.

    Raises:
        UserError: The network does not know the noise level.
    """
    about = one_step.recorded(loaded.pickle)
    if sigma_init is None and about is None:
        sigma_init = one_step.DEFAULT_SIGMA_INIT
        if one_step.holds_one_step(loaded.pickle):
            log.info(
                f"{loaded.pickle.path} does not tell the noise level of its one-step generator: taking "
                f"sigma_init {sigma_init:g}, which SiD's scripts take; --sigma-init gives another"
            )
    elif sigma_init is None and about is not None:
        sigma_init = float(about["sigma_init"])
    assert sigma_init is not None
    architecture = replace(loaded.architecture, name=f"one-step generator, {loaded.architecture.name}")
    return replace(loaded, network=one_step.OneStep(loaded.network, sigma_init).eval(), architecture=architecture)


def _denoiser_key(network_pickle: NetworkPickle) -> str | None:
    """The entry of a pickle's denoiser; None if there is none."""
    records = {key: network_pickle.get(key) for key in _DENOISER_KEYS}
    return next(
        (
            key
            for key, record in records.items()
            if isinstance(record, NetworkRecord) and networks.identify(record).role in ("denoiser", "unknown")
        ),
        None,
    )


def denoiser_of(
    network_pickle: NetworkPickle,
    keys: Sequence[str] = _DENOISER_KEYS,
    settings: ADMSettings | None = None,
) -> LoadedNetwork:
    """Rebuilds the denoiser of an open pickle or state dict; see `generator_of`.

    Args:
        network_pickle: Result of `pickles.load`.
        keys: Entries to look for, the preferred one first.
        settings: What a state dict does not tell; see `load_teacher`.

    Raises:
        UserError: The pickle holds no denoiser with finite weights under these keys.
    """
    state_dict = network_pickle.get(STATE_DICT)
    if isinstance(state_dict, StateDict):
        with pickles.about(network_pickle.path):
            network = adm.build(state_dict.tensors, settings or ADMSettings())
            if isinstance(network, adm.ConsistencyFunction):
                raise PickleError("preconditioning=consistency makes a generator of it, and a denoiser is needed")
        return LoadedNetwork(network, networks.identify(state_dict), state_dict, STATE_DICT, network_pickle)
    return _load(network_pickle, keys, "denoiser", _DENOISER_ATTRIBUTES)


def _load(network_pickle: NetworkPickle, keys: Sequence[str], role: str, attributes: tuple[str, ...]) -> LoadedNetwork:
    key = next((key for key in keys if isinstance(network_pickle.get(key), NetworkRecord)), None)
    if key is None:
        raise _what_it_is_instead(network_pickle, role)
    with pickles.about(network_pickle.path):
        record = network_pickle[key]
        architecture = networks.identify(record)
        if architecture.role not in (role, "unknown"):
            raise PickleError(f"it holds a {architecture.name} as {key!r}, where a {role} is expected")
        network = networks.rebuild(record, trust=network_pickle.trusted)
        missing = [name for name in attributes if not hasattr(network, name)]
        if isinstance(network, r3gan.Generator):  # without w
            missing = []
        if missing:
            raise PickleError(f"its {record.class_name} has no {', '.join(missing)}, so it cannot be used as a {role}")
    _note_unknown_source(network_pickle, record, architecture)
    return LoadedNetwork(network, architecture, record, key, network_pickle)


def _note_unknown_source(network_pickle: NetworkPickle, record: NetworkRecord, architecture: Architecture) -> None:
    """Logs a line if a fork may have changed what the network computes, and the two have not been compared."""
    unknown = unknown_sources(record)
    if unknown and not network_pickle.trusted:
        log.info(
            "%s: the source embedded for %s (sha256 %s...) is not a published one that Refine knows, so Refine's own "
            "%s is used with its weights. If a fork changed the network, its images differ: --trust-pickle compares",
            *(network_pickle.path, record.class_name, unknown[0][:16], architecture.name),
        )


def _what_it_is_instead(network_pickle: NetworkPickle, wanted: str) -> PickleError:
    path = network_pickle.path
    if STATE_DICT in network_pickle:
        name = networks.identify(network_pickle[STATE_DICT]).name
        return PickleError(f"{path}: it holds an {name}, where a {wanted} is needed (refine.py takes it as --teacher)")
    records = {key: record for key, record in network_pickle.items() if isinstance(record, NetworkRecord)}
    roles = {key: networks.identify(record).role for key, record in records.items()}
    same = [key for key, role in roles.items() if role == wanted]
    if same:
        entries = ", ".join(repr(key)[:40] for key in same[:10])
        expected = " or ".join(_GENERATOR_KEYS if wanted == "generator" else _DENOISER_KEYS)
        return PickleError(f"{path}: it holds several {wanted}s ({entries}): save one of them as {expected}")
    other = "denoiser" if wanted == "generator" else "generator"
    if other in roles.values():
        found, option = {
            "denoiser": (
                "an EDM denoiser",
                "as --teacher; without --gan it is distilled into a one-step generator, and one that is a one-step "
                "generator already needs its --sigma-init",
            ),
            "generator": ("a StyleGAN generator", "as --gan"),
        }[other]
        return PickleError(f"{path}: it holds {found}, where a {wanted} is needed (refine.py takes it {option})")
    entries = ", ".join(repr(key)[:40] for key in list(network_pickle)[:10])
    return PickleError(f"{path}: it holds no {wanted}; its entries are {entries}")
