"""Spatial features of an Inception network, for the sFID: an activation in the middle of a TorchScript module.

Nash et al., arXiv 2103.03841, and its published values take the layer called mixed_6/conv, after its rectifier, at 17 x
17 positions, and its first 7 channels. A TorchScript module returns its last layer only, so the operators that it runs
are watched: the one that is given this layer's weight begins the layer, and the next rectifier of its result ends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NUM_CHANNELS = 7
# The layer in the network as TensorFlow and the StyleGAN suite name it, and as torchvision does.
LAYER = re.compile(r"(.*\.)?(mixed_6\.conv|Mixed_6d\.branch1x1)(\.conv)?\.weight")


def spatial_weight(module: Any) -> Tensor | None:
    """Weight of the layer that the spatial features come from; None if the module has no such layer."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    found = [tensor for name, tensor in tensors if LAYER.fullmatch(name) and tensor.ndim == 4]
    return found[0] if len(found) == 1 and len(found[0]) >= NUM_CHANNELS else None


def spatial_features(module: Any, weight: Tensor, images: Tensor) -> Tensor:
    """Features [N, H * W * 7] of uint8 images [N, 3, H', W'], position by position.

    Args:
        module: TorchScript module that is called with `return_features=True`.
        weight: Result of `spatial_weight`.
        images: Images on the module's device.

    Raises:
        RuntimeError: The layer was not seen at work.
    """
    with torch.no_grad(), torch.jit.optimized_execution(False), _Watch(weight) as watch:
        module(images, return_features=True)
    if watch.activation is None or watch.activation.ndim != 4 or len(watch.activation) != len(images):
        raise RuntimeError("its layer mixed_6/conv was not seen at work")
    return watch.activation[:, :NUM_CHANNELS].permute(0, 2, 3, 1).flatten(1)


class _Watch(TorchDispatchMode):
    """Follower of one layer's result through the operators that come after it, up to a rectifier."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight.data_ptr()
        self._result: Tensor | None = None
        self.activation: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.activation is None:
            given = {x.data_ptr() for x in args if isinstance(x, Tensor)}
            first = result[0] if isinstance(result, (tuple, list)) and result else result  # batch_norm returns three
            follows = self._weight in given or (self._result is not None and self._result.data_ptr() in given)
            if isinstance(first, Tensor) and first.ndim == 4 and follows and first.data_ptr() != self._weight:
                self._result = first
                if "relu" in str(func):
                    self.activation = first.clone()
        return result
