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
from refine.networks import adm, edm, edm2, r3gan, stylegan2, stylegan3, stylegan3_options, stylegan_xl
from refine.networks.stylegan2_options import POSITIONAL_ARGUMENTS, Dialect
from refine.pickles import PickleError
from refine.pickles.finite import require_finite
from refine.pickles.records import InertType, NetworkRecord, OwnModule, PersistentObject, to_python
from refine.pickles.state_dict import StateDict
from refine.pickles.tensor_records import TensorRecord
from refine.pickles.tree import module_state, named_tensors, submodules

MAX_COUNT = 1000  # layers or blocks: twenty times the deepest published network
MAX_SIZE = 1e9  # anything else; xflip probabilities of 1e8 occur
MAX_LIST_LENGTH = 1000
FREE_ELEMENTS = 1_000_000  # elements that a network may have beyond a small multiple of those in its storages

Role = Literal["generator", "denoiser", "discriminator", "augmentation", "loss", "unknown"]
Build = Callable[[NetworkRecord], torch.nn.Module]


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


def identify(record: NetworkRecord | StateDict) -> Architecture:
    """The architecture of a record, recognized without its source; of a state dict, by its tensors."""
    if isinstance(record, StateDict):
        try:
            return Architecture(adm.shape_of(record.tensors).description, "denoiser")
        except PickleError:
            return Architecture("ADM network of another form", "unknown")
    name = record.class_name
    if name.endswith("Discriminator"):
        return Architecture("discriminator", "discriminator")
    if isinstance(record, OwnModule) and "MainLayers" in submodules(submodules(record).get("Model")):
        return Architecture("R3GAN generator", "generator", _build_r3gan)
    if name.startswith("AugmentPipe") or "augment" in name.lower():
        return Architecture("augmentation pipe", "augmentation")
    if name.endswith("Loss"):
        return Architecture("training loss", "loss")
    parts = submodules(record)
    if {"mapping", "synthesis"} <= parts.keys() and _is_stylegan_xl(record, parts):
        return Architecture("StyleGAN-XL generator", "generator", _build_stylegan_xl)
    if {"mapping", "synthesis"} <= parts.keys():
        return _identify_generator(parts["synthesis"])
    if name in edm.PRECONDITIONERS and {"enc", "dec"} <= submodules(parts.get("model")).keys():
        unet = getattr(parts["model"], "class_name", "?")
        return Architecture(f"EDM denoiser ({name} over {unet})", "denoiser", _build_denoiser)
    if name == "Precond" and "unet" in parts:
        return Architecture("EDM2 denoiser", "denoiser", _build_edm2)
    return Architecture("unknown architecture", "unknown")


def build(record: NetworkRecord, architecture: Architecture) -> torch.nn.Module:
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
    values = {name: _as_float32(record.read()) for name, record in tensors.items()}
    network.load_state_dict(values, strict=True, assign=True)


def _as_float32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _identify_generator(synthesis: Any) -> Architecture:
    blocks = submodules(synthesis)
    if "input" in blocks and any(name.startswith("L0_") for name in blocks):
        return Architecture("StyleGAN3 generator", "generator", _build_stylegan3)
    if "b4" not in blocks:
        return Architecture("unknown generator", "generator")
    # Only the stylegan3 repository's blocks choose the form of the modulated convolution by a setting.
    is_sg3 = "fused_modconv_default" in (module_state(blocks["b4"]) or {})
    repository = "stylegan3" if is_sg3 else "stylegan2-ada-pytorch"
    dialect: Dialect = "sg3" if is_sg3 else "ada"

    def build(record: NetworkRecord) -> torch.nn.Module:
        arguments = _arguments(record, POSITIONAL_ARGUMENTS[dialect])
        return stylegan2.generator_from_init_kwargs(arguments, dialect)

    return Architecture(f"StyleGAN2 generator ({repository})", "generator", build)


def _build_stylegan3(record: NetworkRecord) -> torch.nn.Module:
    return stylegan3.generator_from_init_kwargs(_arguments(record, stylegan3_options.POSITIONAL_ARGUMENTS))


def _is_stylegan_xl(record: NetworkRecord, parts: Mapping[str, Any]) -> bool:
    mapping, synthesis = parts["mapping"], parts["synthesis"]
    if not (isinstance(mapping, PersistentObject) and isinstance(synthesis, PersistentObject)):
        return False
    is_theirs = "rand_embedding" in mapping.init_kwargs or "embed_proj" in submodules(mapping)
    return "layer_names" in synthesis.attributes and (is_theirs or record.class_name == "SuperresGenerator")


def _build_stylegan_xl(record: NetworkRecord) -> torch.nn.Module:
    """Each layer from its own record: the arguments of generator and synthesis network may be those of the stem."""
    parts = submodules(record)
    mapping, synthesis = parts["mapping"], parts["synthesis"]
    assert isinstance(mapping, PersistentObject) and isinstance(synthesis, PersistentObject)
    names = stylegan_xl.check_names(_attribute(synthesis, "layer_names"))
    layers = {name: _recorded(synthesis, name) for name in ("input", *names)}
    first = _recorded(mapping, "fc0")
    embedding = named_tensors(mapping).get("embed.weight")
    plain = {name: _attribute(record, name) for name in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels")}
    return stylegan_xl.Generator(
        stylegan_xl.GeneratorOptions(
            **plain,
            output_scale=_attribute(synthesis, "output_scale"),
            mapping=stylegan_xl.MappingOptions(
                embedding_dim=embedding.shape[1] if embedding is not None and len(embedding.shape) == 2 else 0,
                num_layers=_attribute(mapping, "num_layers"),
                lr_multiplier=first.get("lr_multiplier", 1),
                w_avg_beta=_attribute(mapping, "w_avg_beta"),
            ),
            input=stylegan_xl.input_options(layers.pop("input")),
            layers=tuple((name, stylegan_xl.layer_options(name, layer)) for name, layer in layers.items()),
        )
    )


def _attribute(record: NetworkRecord, name: str) -> Any:
    if name not in record.attributes:
        raise PickleError(f"{record.class_name} has no attribute {name}")
    value = to_python(record.attributes[name])
    _require_modest(value, name)
    return value


def _recorded(parent: NetworkRecord, name: str) -> dict[str, Any]:
    """Keyword constructor arguments of a child; positional ones, of fully connected layers, are told by shapes."""
    child = submodules(parent).get(name)
    if not isinstance(child, PersistentObject):
        raise PickleError(f"{parent.class_name} has no layer {name[:40]}")
    _require_modest(child.init_kwargs, name)
    return child.init_kwargs


def _build_r3gan(record: NetworkRecord) -> torch.nn.Module:
    shapes = {name: tensor.shape for name, tensor in named_tensors(record).items()}
    _require_modest(shapes, record.class_name)
    stages = submodules(submodules(submodules(record)["Model"])["MainLayers"]).values()
    kinds = [(module_state(stage) or {}).get("DataType") for stage in stages]
    low_precision = [isinstance(kind, InertType) and kind.global_name == "bfloat16" for kind in kinds]
    attributes = {name: record.attributes.get(name) for name in ("z_dim", "c_dim", "img_resolution")}
    return r3gan.Generator(r3gan.options_from_shapes(shapes, attributes, low_precision))


def _build_denoiser(record: NetworkRecord) -> torch.nn.Module:
    parameters = inspect.signature(edm.PRECONDITIONERS[record.class_name]).parameters
    order = tuple(name for name in parameters if name != "model_kwargs")
    return edm.denoiser_from_init_kwargs(record.class_name, _arguments(record, order))


def _build_edm2(record: NetworkRecord) -> torch.nn.Module:
    return edm2.denoiser_from_init_kwargs(_arguments(record, ("img_resolution", "img_channels", "label_dim")))


def _arguments(record: NetworkRecord, order: tuple[str, ...]) -> dict[str, Any]:
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
