"""State dicts: tensors by name in a file of `torch.save`, without a network around them.

The one kind that Refine makes networks of is that of ADM (guided-diffusion and its descendants). Other kinds are
recognized by the names of their tensors, so that a message can say what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refine.pickles.errors import PickleError
from refine.pickles.tensor_records import ParameterRecord, TensorRecord

# Of every U-Net of guided-diffusion and consistency_models.
UNET_NAMES = frozenset(
    {
        *("time_embed.0.weight", "time_embed.2.weight", "input_blocks.0.0.weight", "out.0.weight", "out.2.weight"),
        *("middle_block.0.in_layers.0.weight", "middle_block.1.qkv.weight", "output_blocks.0.0.in_layers.0.weight"),
    }
)
MAX_PLACES = 1000  # values that are looked at in search of a state dict
MAX_NAMES = 100_000
FREE_ELEMENTS = 1_000_000  # elements that a network may have beyond a small multiple of those in its storages
WRAPPER = "module."  # prefix of every name where DataParallel was around the network

_PIXELS = "Refine needs a diffusion model of pixels, such as an EDM pickle or a state dict of guided-diffusion (ADM)"
# Part of a name -> the end of a sentence that begins with the file; the first that occurs decides.
_KINDS = {
    "lora_": f"holds LoRA weights, a change of another model and not a model of its own: {_PIXELS}",
    "lora.": f"holds LoRA weights, a change of another model and not a model of its own: {_PIXELS}",
    "first_stage_model.": f"is a latent diffusion model, which denoises the code of an autoencoder: {_PIXELS}",
    "model.diffusion_model.": f"is a latent diffusion model, which denoises the code of an autoencoder: {_PIXELS}",
    "transformer_blocks.": f"is a latent diffusion model, which denoises the code of an autoencoder: {_PIXELS}",
    "x_embedder.": f"is a diffusion transformer (DiT), which denoises the code of an autoencoder: {_PIXELS}",
    "quant_conv.": f"is an autoencoder, such as the first stage of a latent diffusion model: {_PIXELS}",
    "down_blocks.": f"holds the weights of a network of the diffusers library, which Refine does not read: {_PIXELS}",
    "all_modules.": f"is a network of score_sde_pytorch, which Refine does not read: {_PIXELS}",
    "temb.dense.": f"is a DDPM network in the names of pytorch_diffusion, which Refine does not read: {_PIXELS}",
    "map_layer0.": "holds the weights of an EDM network without the network: give the .pkl that EDM writes",
}
_OPTIMIZER = "is the state of an optimizer, not a network: give the file of the weights next to it, such as ema_*.pt"
_CLASSIFIER = (
    "is a classifier of guided-diffusion, which guides a diffusion model and is none: give the diffusion model itself, "
    "such as 256x256_diffusion.pt"
)


@dataclass(frozen=True)
class StateDict:
    """Tensors of a network by name.

    Attributes:
        tensors: Records of the tensors, whose data are still in the file.
    """

    tensors: Mapping[str, TensorRecord]

    class_name = "state dict"


def holds_unet(value: Any) -> bool:
    """True if a value, or one directly below it, is the state dict of an ADM U-Net."""
    return bool(list(_unets(value)))


def state_dict_of(value: Any) -> StateDict | None:
    """The ADM U-Net of a file; None if it has none.

    Args:
        value: Top-level value of the file, as records.

    Raises:
        PickleError: There are several, none of which is called an average (`ema`), or tensors are views of far smaller
            storages.
    """
    found = dict(_unets(value))
    averages = [key for key in found if "ema" in key.lower()]
    if not found:
        return None
    if len(found) > 1 and len(averages) != 1:
        names = ", ".join(repr(key)[:40] for key in list(found)[:5])
        raise PickleError(f"holds several networks ({names}): save one of them as a file of its own")
    tensors = found[averages[0] if averages else next(iter(found))]
    # A few weights may be shared; a small file whose tensors all look at one storage would become a large network.
    stored = {id(record.storage): record.storage.blob.num_elements for record in tensors.values()}
    if sum(record.num_elements for record in tensors.values()) > 4 * sum(stored.values()) + FREE_ELEMENTS:
        raise PickleError("has tensors that are views of far smaller storages, which no network's are; refused")
    return StateDict({name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()})


def names_in(value: Any) -> Iterator[str]:
    """Names in a value and up to two levels below it: of tensors and of the dicts that hold them."""
    level = [value]
    for _ in range(3):
        dicts = [item for item in level if isinstance(item, dict)][:MAX_PLACES]
        for each in dicts:
            yield from (key for key in each if isinstance(key, str))
        level = [item for each in dicts for item in each.values()][:MAX_NAMES]


def explain_names(names: Iterable[str]) -> str | None:
    """The end of a sentence that begins with a file of tensors: its kind and the remedy; None if it is unknown.

    Args:
        names: Names of the tensors.
    """
    known = set(names)
    text = "\n".join(known)
    if {"state", "param_groups"} <= known:
        return _OPTIMIZER
    for part, sentence in _KINDS.items():
        if part in text:
            return sentence
    if "input_blocks.0.0.weight" in text and "output_blocks." not in text and "time_embed." in text:
        return _CLASSIFIER
    return None


def _unets(value: Any) -> Iterator[tuple[str, dict[str, TensorRecord]]]:
    """Every ADM U-Net at the top or directly below it, by its key."""
    if not isinstance(value, dict):
        return
    for key, item in [("", value), *list(value.items())[:MAX_PLACES]]:
        tensors = _tensors(item)
        if tensors is not None and {name.removeprefix(WRAPPER) for name in tensors} >= UNET_NAMES:
            yield str(key), tensors


def _tensors(value: Any) -> dict[str, TensorRecord] | None:
    """A dict of tensors by name; None for any other value."""
    if not isinstance(value, dict):
        return None
    found = {}
    for name, item in value.items():
        tensor = item.args[0] if isinstance(item, ParameterRecord) and item.args else item
        if not isinstance(name, str) or not isinstance(tensor, TensorRecord):
            return None
        found[name] = tensor
    return found or None
