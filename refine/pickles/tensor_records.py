"""Records of tensors: a parameter around a view on a storage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from refine.pickles.errors import PickleError
from refine.pickles.records import Inert
from refine.pickles.source import FileBytes
from refine.pickles.storage import StorageBlob, parse_storage


class StorageRecord(Inert):
    """The memory of a tensor: a torch.save archive of the old kind, as bytes in memory or in the file.

    The archive is parsed when the record is made, so that a forged one is refused at once.
    """

    blob: StorageBlob

    def __new__(cls, *args: Any) -> StorageRecord:
        """Parses the archive."""
        if len(args) != 1 or not isinstance(args[0], (bytes, FileBytes)):
            raise PickleError("has a tensor storage that is not one string of bytes; it is damaged or forged")
        record = super().__new__(cls, *args)
        assert isinstance(record, StorageRecord)
        record.blob = parse_storage(args[0])
        return record

    @classmethod
    def pending(cls) -> StorageRecord:
        """A record whose data come later: `blob` has to be set, and `args` if the record is to be written again."""
        record = Inert.__new__(cls)
        assert isinstance(record, StorageRecord)
        record.is_new_object = False
        return record

    def children(self) -> Iterator[Any]:
        """None: a storage is bytes."""
        return iter(())


class TensorRecord(Inert):
    """A tensor: a view on a `StorageRecord`."""

    @property
    def storage(self) -> StorageRecord:
        """The memory it looks at."""
        return self.args[0]

    @property
    def offset(self) -> int:
        """First element, counted in elements of the storage."""
        return self.args[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements by axis."""
        return self.args[2]

    @property
    def stride(self) -> tuple[int, ...]:
        """Distance between neighbors along each axis, in elements."""
        return self.args[3]

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.storage.blob.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements of the view."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """True if the elements lie in the storage in the order of a C array."""
        expected = 1
        for size, step in zip(self.shape[::-1], self.stride[::-1], strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def check(self) -> None:
        """A view that lies within its storage, and is not larger than it."""
        super().check()
        self._require(len(self.args) in (6, 7), "call has another form")
        self._require(isinstance(self.args[0], StorageRecord), "storage is not a storage")
        shape, stride = self.args[2], self.args[3]
        self._require(
            isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride) <= 16,
            "shape and stride do not belong together",
        )
        self._require(
            all(type(n) is int and 0 <= n < 2**40 for n in (self.args[1], *shape, *stride)),
            "offset, shape or stride is not a list of natural numbers",
        )
        self._require(math.prod(n for n in shape if n) < 2**40, "shape is beyond any tensor's")
        last = self.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        fits = self.num_elements == 0 or (
            last < self.storage.blob.num_elements and self.num_elements <= self.storage.blob.num_elements
        )
        self._require(fits, f"shape {shape} does not fit its storage of {self.storage.blob.num_elements} elements")
        hooks = self.args[5]
        self._require(isinstance(hooks, dict) and not hooks, "hooks are not empty")

    def read(self) -> torch.Tensor:
        """A fresh copy in memory of its own, contiguous, on the CPU."""
        return self.storage.blob.view(self.shape, self.stride, self.offset)


class ParameterRecord(Inert):
    """A `torch.nn.Parameter` around a `TensorRecord`."""

    @property
    def tensor(self) -> TensorRecord:
        """The tensor itself."""
        return self.args[0]

    def check(self) -> None:
        """Around a tensor, without hooks."""
        super().check()
        self._require(len(self.args) == 3, "call has another form")
        self._require(isinstance(self.args[0], TensorRecord), "content is not a tensor")
        self._require(isinstance(self.args[2], dict) and not self.args[2], "hooks are not empty")
