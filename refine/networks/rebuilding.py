"""Choice between Refine's own network and the one that a pickle brings as source.

Without the user's trust nothing embedded runs, and Refine's own network is the only one. With it, the embedded source
runs where it could be another network than Refine's: where Refine has none, where Refine's does not fit the record, and
where the source is not a published one, if the two then differ at fixed inputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from refine.errors import UserError
from refine.networks.registry import Architecture, build, identify
from refine.networks.sampling import label, latent
from refine.pickles import PickleError
from refine.pickles.errors import NonFiniteError
from refine.pickles.finite import require_finite
from refine.pickles.known_sources import KNOWN_SOURCES
from refine.pickles.records import NetworkRecord, PersistentObject
from refine.pickles.tree import walk

log = logging.getLogger("refine")

TOLERANCE = 1e-3  # of the largest value; two implementations of one network differ by 1e-5
TRUST_HINT = (
    "if you know and trust its author, --trust-pickle (in Python trust=True) runs the source that travels inside the "
    "pickle"
)


def rebuild(record: NetworkRecord, *, trust: bool = False) -> torch.nn.Module:
    """The network of a record: float32, on the CPU, in evaluation mode, gradients off.

    With `trust`, one line tells which of the two networks is used wherever the embedded source had to be asked.

    Args:
        record: A network of a pickle.
        trust: Permission to run the embedded source where Refine has no such network, or may have another one.

    Raises:
        PickleError: The architecture is unknown, the record's tensors are not those of its architecture, or some are
            not finite.
    """
    architecture = identify(record)
    asks_source = trust and bool(unknown_sources(record))
    ours: torch.nn.Module | None = None
    if architecture.build is None:
        reason = f"{record.class_name} ({architecture.name}) is not one of the networks that Refine rebuilds"
    else:
        try:
            ours, reason = build(record, architecture), ""
        except NonFiniteError:
            raise
        except UserError as error:
            reason = str(error).rstrip(".")
    if ours is None and not trust:
        hint = f"; {TRUST_HINT}" if architecture.build is None or unknown_sources(record) else ""
        raise PickleError(reason + hint)
    if ours is None:
        network = _embedded(record)
        log.warning("%s: using the network that the pickle brings (%s)", record.class_name, reason)
    elif asks_source:
        network = _compared(record, architecture, ours)
    else:
        network = ours
    return network.eval().requires_grad_(False)


def unknown_sources(record: NetworkRecord) -> list[str]:
    """SHA-256 of each source embedded in a record that is not a published one; sorted."""
    found = {value.source_sha256 for value in walk(record) if isinstance(value, PersistentObject)}
    return sorted(found - KNOWN_SOURCES.keys())


def _embedded(record: NetworkRecord) -> torch.nn.Module:
    # Imported here: nothing on the ordinary path can even reach the code that runs embedded source.
    from refine.pickles import trusted

    network = trusted.instantiate(record)
    if not isinstance(network, torch.nn.Module):
        raise PickleError(f"{record.class_name} is not a torch module, so it cannot be used as a network")
    require_finite(dict(network.named_parameters()), record.class_name)  # a buffer may be a mask of infinities
    return network


def _compared(record: NetworkRecord, architecture: Architecture, ours: Any) -> torch.nn.Module:
    """Refine's network where the embedded source computes the same, the embedded one where it does not."""
    name = record.class_name
    try:
        theirs = _embedded(record).eval().requires_grad_(False)
    except PickleError as error:
        log.warning("%s: using Refine's own network, not compared with the embedded source (%s)", name, error)
        return ours
    if architecture.role == "generator":
        w_avg = getattr(ours.mapping, "w_avg", None)
        outputs: Callable[[Any], Tensor] = partial(_images, truncation_psi=1.0 if w_avg is None else 0.7)
    else:
        outputs = _estimates
    difference = _difference(outputs, ours.eval(), theirs)
    if difference is None:
        log.warning("%s: using the network that the pickle brings: it has another interface than the original", name)
        return theirs
    if difference <= TOLERANCE:
        log.warning("%s: using Refine's own network; the embedded source computes the same (%.1e)", name, difference)
        return ours
    log.warning(
        "%s: using the network that the pickle brings; it does not compute what the original does (differs by %.1e)",
        *(name, difference),
    )
    return theirs


def _difference(outputs: Callable[[Any], Tensor], ours: Any, theirs: Any) -> float | None:
    """Largest difference over the largest value; None where `theirs` cannot be called as `ours`."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        expected = outputs(ours)
        try:
            found = outputs(theirs)
        except Exception:  # foreign code can fail in any way
            return None
        if found.shape != expected.shape:
            return float("inf")
        difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-8))
        return difference if difference == difference else float("inf")


def _images(generator: Any, truncation_psi: float) -> Tensor:
    """Images of two seeds, with stored noise, and with drawn noise and truncation."""
    classes = [seed % generator.c_dim if generator.c_dim else None for seed in range(2)]
    z = torch.cat([latent(seed, generator.z_dim) for seed in range(2)])
    c = torch.cat([label(generator.c_dim, index) for index in classes])
    torch.manual_seed(0)
    images = [generator(z, c, truncation_psi=1, noise_mode="const")]
    images.append(generator(z, c, truncation_psi=truncation_psi, noise_mode="random"))
    return torch.cat(images).float()


def _estimates(denoiser: Any) -> Tensor:
    """Estimates of two noise images at a low and a high noise level."""
    torch.manual_seed(0)
    shape = [2, denoiser.img_channels, denoiser.img_resolution, denoiser.img_resolution]
    sigma = torch.tensor([0.3, 10.0])
    x = torch.randn(shape) * sigma[:, None, None, None]
    labels = torch.eye(denoiser.label_dim)[:2] if denoiser.label_dim else None
    return denoiser(x, sigma, labels).float()
