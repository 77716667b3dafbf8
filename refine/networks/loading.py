"""From what a user names (a path, a URL, a zoo name) to the network that a run works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from refine import networks, pickles, zoo
from refine.networks import Architecture
from refine.pickles import NetworkPickle, PersistentObject, PickleError

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
    """A network and where it came from.

    Attributes:
        network: float32, on the CPU, in evaluation mode, gradients off.
        architecture: what it is.
        record: its description in the pickle.
        key: the pickle's entry that it was made from, such as "G_ema".
        pickle: the whole pickle; `pickles.save` writes it back with new weights.
    """

    network: torch.nn.Module
    architecture: Architecture
    record: PersistentObject
    key: str
    pickle: NetworkPickle


def load_gan(spec: str, *, trust: bool = False) -> LoadedNetwork:
    """Opens a StyleGAN pickle and rebuilds its generator, `G_ema` where there is one.

    Args:
        spec: path, http(s) URL or zoo name.
        trust: run the source embedded in the pickle where Refine has no network of its own.

    Raises:
        UserError: the file cannot be had, is no network pickle, or holds no generator.
    """
    network_pickle = pickles.load(zoo.resolve(spec).path, trust=trust)
    return _load(network_pickle, _GENERATOR_KEYS, "generator", _GENERATOR_ATTRIBUTES)


def load_teacher(spec: str, *, trust: bool = False) -> LoadedNetwork:
    """Opens an EDM pickle and rebuilds its denoiser.

    Args:
        spec: path, http(s) URL or zoo name.
        trust: run the source embedded in the pickle where Refine has no network of its own.

    Raises:
        UserError: the file cannot be had, is no network pickle, or holds no denoiser.
    """
    network_pickle = pickles.load(zoo.resolve(spec).path, trust=trust)
    return _load(network_pickle, _DENOISER_KEYS, "denoiser", _DENOISER_ATTRIBUTES)


def _load(
    network_pickle: NetworkPickle, keys: tuple[str, ...], role: str, attributes: tuple[str, ...]
) -> LoadedNetwork:
    with pickles.about(network_pickle.path):
        key = next((key for key in keys if isinstance(network_pickle.get(key), PersistentObject)), None)
        if key is None:
            raise PickleError(_what_it_is_instead(network_pickle, role))
        record = network_pickle[key]
        architecture = networks.identify(record)
        if architecture.role not in (role, "unknown"):
            raise PickleError(f"it holds a {architecture.name} as {key!r}, where a {role} is expected")
        network = networks.rebuild(record, trust=network_pickle.trusted)
        missing = [name for name in attributes if not hasattr(network, name)]
        if missing:
            raise PickleError(f"its {record.class_name} has no {', '.join(missing)}, so it cannot be used as a {role}")
    return LoadedNetwork(network, architecture, record, key, network_pickle)


def _what_it_is_instead(network_pickle: NetworkPickle, wanted: str) -> str:
    roles = {
        networks.identify(record).role for record in network_pickle.values() if isinstance(record, PersistentObject)
    }
    if wanted == "generator" and "denoiser" in roles:
        return "it holds an EDM denoiser, not a generator: give it as --teacher, and the StyleGAN pickle as --gan"
    if wanted == "denoiser" and "generator" in roles:
        return "it holds a StyleGAN generator, not a denoiser: give it as --gan, and the EDM pickle as --teacher"
    entries = ", ".join(repr(key)[:40] for key in list(network_pickle)[:10])
    return f"it holds no {wanted}; its entries are {entries}"
