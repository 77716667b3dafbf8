"""Search for weights that are not finite: a network with a single NaN makes only black images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from refine.pickles.errors import NonFiniteError
from refine.pickles.tensor_records import TensorRecord

MAX_READ_PER_STORED = 4  # values that are looked at for each that is stored; views may repeat storages
FREE_ELEMENTS = 1_000_000


def non_finite(tensors: Mapping[str, torch.Tensor | TensorRecord]) -> dict[str, int]:
    """Number of NaN and infinite values in each tensor that has any, by name.

    Args:
        tensors: A state dict, or tensors as a pickle describes them.
    """
    return {name: count for name, tensor in _suspects(tensors).items() if (count := _count(tensor))}


def require_finite(tensors: Mapping[str, torch.Tensor | TensorRecord], what: str) -> None:
    """Refuses weights that are not finite.

    Args:
        tensors: A state dict, or tensors as a pickle describes them.
        what: Origin of the weights, for the message: a file or a network.

    Raises:
        NonFiniteError: A value is NaN or infinite; the message names the first tensor and the number of others.
    """
    found = non_finite(tensors)
    if found:
        raise NonFiniteError(f"{what} {describe_non_finite(tensors, found)}: use an earlier snapshot or another file")


def describe_non_finite(tensors: Mapping[str, torch.Tensor | TensorRecord], found: Mapping[str, int]) -> str:
    """`has 1 NaN or infinite value of 16 in mapping.fc0.bias`, with the number of further tensors.

    Args:
        tensors: Argument of `non_finite`.
        found: Result of `non_finite`, not empty.
    """
    name, count = next(iter(found.items()))
    tensor = tensors[name]
    size = tensor.num_elements if isinstance(tensor, TensorRecord) else tensor.numel()
    values = f"{count:,} NaN or infinite value{'s' if count > 1 else ''}"
    more = len(found) - 1
    others = f" and more in {more} other tensor{'s' if more > 1 else ''}" if more else ""
    return f"has {values} of {size:,} in {name}{others}"


def _suspects(tensors: Mapping[str, torch.Tensor | TensorRecord]) -> Mapping[str, torch.Tensor | TensorRecord]:
    """Tensors without those whose storage is known to be finite: each storage of a pickle is read once.

    A forged file may have many views of one storage; beyond a bound they are left to `networks.rebuild`, which
    refuses such files.
    """
    storages = {id(t.storage): t.storage for t in tensors.values() if isinstance(t, TensorRecord)}
    bad = {key: storage for key, storage in storages.items() if not _is_finite(storage.blob.tensor())}
    suspects = {n: t for n, t in tensors.items() if not isinstance(t, TensorRecord) or id(t.storage) in bad}
    budget = MAX_READ_PER_STORED * sum(s.blob.num_elements for s in bad.values()) + FREE_ELEMENTS
    total = sum(t.num_elements for t in suspects.values() if isinstance(t, TensorRecord))
    return suspects if total <= budget else {}


def _count(tensor: torch.Tensor | TensorRecord) -> int:
    values = tensor.read() if isinstance(tensor, TensorRecord) else tensor
    return 0 if _is_finite(values) else int((~torch.isfinite(values)).sum())


def _is_finite(values: torch.Tensor) -> bool:
    return not values.is_floating_point() or bool(torch.isfinite(values).all())
