"""Registry of the networks that Refine rebuilds from the records of a pickle.

A class name alone is ambiguous (Generator exists in StyleGAN2 and StyleGAN3 form, and twice within StyleGAN2), and the
embedded source is never consulted: the record's children and settings tell.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from refine.errors import UserError
from refine.networks import adm, edm, edm2, stylegan2
from refine.networks.stylegan2_options import POSITIONAL_ARGUMENTS, Dialect
from refine.pickles import PickleError
from refine.pickles.finite import require_finite
from refine.pickles.records import PersistentObject
from refine.pickles.state_dict import StateDict
from refine.pickles.tensor_records import TensorRecord
from refine.pickles.tree import module_state, named_tensors, submodules

MAX_COUNT = 1000  # layers or blocks: twenty times the deepest published network
MAX_SIZE = 1e9  # anything else; xflip probabilities of 1e8 occur
MAX_LIST_LENGTH = 1000
FREE_ELEMENTS = 1_000_000  # elements that a network may have beyond a small multiple of those in its storages

Role = Literal["generator", "denoiser", "discriminator", "augmentation", "loss", "unknown"]
Build = Callable[[PersistentObject], torch.nn.Module]


@dataclass(frozen=True)
class Architecture:
    """The kind of network that a record describes.

    Attributes:
        name: Name for people, such as "StyleGAN2 generator (stylegan2-ada-pytorch)".
        role: Purpose.
        build: Constructor of Refine's own network from a record's constructor arguments; None where Refine has no such
            network, and the record only travels from the source pickle to the written one.
    """

    name: str
    role: Role
    build: Build | None = None


def identify(record: PersistentObject | StateDict) -> Architecture:
    """The architecture of a record, recognized without its source; of a state dict, by its tensors."""
    if isinstance(record, StateDict):
        try:
            return Architecture(adm.shape_of(record.tensors).description, "denoiser")
        except PickleError:
            return Architecture("ADM network of another form", "unknown")
    name = record.class_name
    if name.endswith("Discriminator"):
        return Architecture("discriminator", "discriminator")
    if name.startswith("AugmentPipe") or "augment" in name.lower():
        return Architecture("augmentation pipe", "augmentation")
    if name.endswith("Loss"):
        return Architecture("training loss", "loss")
    parts = submodules(record)
    if {"mapping", "synthesis"} <= parts.keys():
        return _identify_generator(parts["synthesis"])
    if name in edm.PRECONDITIONERS and {"enc", "dec"} <= submodules(parts.get("model")).keys():
        unet = getattr(parts["model"], "class_name", "?")
        return Architecture(f"EDM denoiser ({name} over {unet})", "denoiser", _build_denoiser)
    if name == "Precond" and "unet" in parts:
        return Architecture("EDM2 denoiser", "denoiser", _build_edm2)
    return Architecture("unknown architecture", "unknown")


def build(record: PersistentObject, architecture: Architecture) -> torch.nn.Module:
    """Refine's own network with a record's weights: float32, on the CPU.

    Args:
        record: A network of a pickle.
        architecture: Architecture of the record, with a `build` that is not None.

    Raises:
        PickleError: The constructor arguments are impossible, the record's tensors are not those of its architecture,
            or some are not finite.
    """
    assert architecture.build is not None
    try:
        with torch.device("meta"):
            network = architecture.build(record)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise PickleError(f"{record.class_name} cannot be built from its constructor arguments: {error}") from error
    load_strictly(network, named_tensors(record), record.class_name)
    return network


def load_strictly(network: torch.nn.Module, tensors: Mapping[str, TensorRecord], what: str) -> None:
    """Gives a network made on the meta device its weights, in float32.

    Args:
        network: A network without weights.
        tensors: Parameters and buffers by name.
        what: Name of the network, for messages.

    Raises:
        PickleError: A tensor is missing, unknown, of another shape or not finite; the message names the first one.
    """
    expected = network.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise PickleError(f"{what}: the pickle has no tensor {name}, expected with shape {tuple(value.shape)}")
        if tensors[name].shape != tuple(value.shape):
            raise PickleError(
                f"{what}: {name} has shape {tensors[name].shape} in the pickle, {tuple(value.shape)} expected"
            )
    for name in (name for name in tensors if name not in expected):
        raise PickleError(f"{what}: the pickle has a tensor {name}, {tensors[name].shape}, which is not expected")
    # A few weights may be shared; a small file whose tensors all look at one storage would become a large network.
    stored = {id(record.storage): record.storage.blob.num_elements for record in tensors.values()}
    if sum(record.num_elements for record in tensors.values()) > 4 * sum(stored.values()) + FREE_ELEMENTS:
        raise PickleError(f"{what}: its tensors are views of far smaller storages, which no network's are")
    require_finite(tensors, what)
    values = {name: record.read() for name, record in tensors.items()}
    values = {name: value.float() if value.is_floating_point() else value for name, value in values.items()}
    network.load_state_dict(values, strict=True, assign=True)


def _identify_generator(synthesis: Any) -> Architecture:
    blocks = submodules(synthesis)
    if "input" in blocks and any(name.startswith("L0_") for name in blocks):
        # StyleGAN3's place: refine/networks/stylegan3.py, built here as the others are.
        return Architecture("StyleGAN3 generator", "generator")
    if "b4" not in blocks:
        return Architecture("unknown generator", "generator")
    # Only the stylegan3 repository's blocks choose the form of the modulated convolution by a setting.
    is_sg3 = "fused_modconv_default" in (module_state(blocks["b4"]) or {})
    repository = "stylegan3" if is_sg3 else "stylegan2-ada-pytorch"
    dialect: Dialect = "sg3" if is_sg3 else "ada"

    def build(record: PersistentObject) -> torch.nn.Module:
        arguments = _arguments(record, POSITIONAL_ARGUMENTS[dialect])
        return stylegan2.generator_from_init_kwargs(arguments, dialect)

    return Architecture(f"StyleGAN2 generator ({repository})", "generator", build)


def _build_denoiser(record: PersistentObject) -> torch.nn.Module:
    parameters = inspect.signature(edm.PRECONDITIONERS[record.class_name]).parameters
    order = tuple(name for name in parameters if name != "model_kwargs")
    return edm.denoiser_from_init_kwargs(record.class_name, _arguments(record, order))


def _build_edm2(record: PersistentObject) -> torch.nn.Module:
    return edm2.denoiser_from_init_kwargs(_arguments(record, ("img_resolution", "img_channels", "label_dim")))


def _arguments(record: PersistentObject, order: tuple[str, ...]) -> dict[str, Any]:
    """The constructor arguments by name, none of them large enough to keep a constructor busy forever."""
    if len(record.init_args) > len(order):
        raise PickleError(f"{record.class_name} was constructed with {len(record.init_args)} positional arguments")
    arguments = dict(zip(order, record.init_args, strict=False)) | record.init_kwargs
    _require_modest(arguments, record.class_name)
    return arguments


def _require_modest(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _require_modest(item, str(key))
    elif isinstance(value, (list, tuple)):
        if len(value) > MAX_LIST_LENGTH:
            raise PickleError(f"the constructor argument {name} has {len(value)} entries, which is not plausible")
        for item in value:
            _require_modest(item, name)
    elif isinstance(value, (int, float)):
        limit = MAX_COUNT if name.startswith("num_") else MAX_SIZE
        if not (value == math.inf or -limit <= value <= limit):
            raise PickleError(f"the constructor argument {name}={value!r:.40} is not plausible")
