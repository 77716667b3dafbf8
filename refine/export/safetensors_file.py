"""safetensors: the generator's tensors under the names of the checkpoint, and nothing that could be executed.

https://github.com/huggingface/safetensors. The header says what the network is: its class and the arguments of its
constructor, as JSON.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from refine.errors import UserError
from refine.export.agreement import Probe, images_of_network
from refine.files.jsonl import to_json
from refine.networks.loading import LoadedNetwork
from refine.networks.one_step import OneStep


def write(loaded: LoadedNetwork, file: BinaryIO) -> None:
    """Writes the generator's state dict."""
    record: Any = loaded.record
    tensors = {name: tensor.contiguous().clone() for name, tensor in loaded.network.state_dict().items()}
    about = {
        "format": "pt",
        "class_name": record.class_name,
        "architecture": loaded.architecture.name,
        "init_args": to_json(record.init_args, default=str),
        "init_kwargs": to_json(record.init_kwargs, default=str),
        "source": loaded.pickle.path.name,
    }
    if isinstance(loaded.network, OneStep):
        about["sigma_init"] = repr(loaded.network.sigma_init)
    file.write(safetensors.torch.save(tensors, metadata=about))


def read(path: Path, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a file.

    Args:
        path: A .safetensors file.
        ours: Not needed: the file has the names of our tensors.

    Raises:
        UserError: It is not such a file.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is not a safetensors file that can be read ({error}).") from error


def images(path: Path, loaded: LoadedNetwork, probe: Probe) -> Tensor:
    """Images of the network with the file's tensors."""
    network = copy.deepcopy(loaded.network)
    for tensor in network.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else 0)  # so that nothing of the original remains
    network.load_state_dict(read(path, {}), strict=True)
    return probe.images(images_of_network(network))
