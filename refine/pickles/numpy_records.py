"""Records of NumPy values: element types, scalars and arrays, in the spellings of every pickle protocol."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from refine.pickles.errors import PickleError
from refine.pickles.records import MAX_EXPANDED, Inert, InertType

MAX_ELEMENTS = 2**40  # of an array, by its shape


class NumpyDtype(Inert):
    """A `numpy.dtype`: code such as 'f8' in `args[0]`, byte order in `state[1]`."""

    may_have_state = True

    def check(self) -> None:
        """A code in text."""
        super().check()
        self._require(bool(self.args) and isinstance(self.args[0], str), "code is not text")

    def plain(self) -> np.dtype[Any]:
        """The dtype itself. Raises PickleError unless it is a boolean, an integer or a float."""
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", self.args[0]):
            raise PickleError(f"holds NumPy data of type {self.args[0][:20]!r}, which Refine does not read")
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        return np.dtype(self.args[0]).newbyteorder(order if order in ("<", ">") else "=")


class NumpyScalar(Inert):
    """A NumPy scalar: a dtype and its bytes."""

    def check(self) -> None:
        """A dtype, and bytes of its size."""
        super().check()
        ok = len(self.args) == 2 and isinstance(self.args[0], NumpyDtype) and isinstance(self.args[1], bytes)
        self._require(ok, "call has another form")

    def plain(self) -> bool | int | float:
        """The number as a Python value."""
        dtype, data = self.args[0].plain(), self.args[1]
        self._require(len(data) == dtype.itemsize, f"{len(data)} bytes are not one {dtype}")
        return np.frombuffer(data, dtype)[0].item()


class NumpyArray(Inert):
    """A NumPy array: state = (version, shape, dtype, is_fortran, bytes)."""

    may_have_state = True

    def array(self) -> np.ndarray:
        """The array itself, read-only. Raises PickleError if shape and bytes do not agree."""
        state = self.state
        self._require(isinstance(state, tuple) and len(state) == 5, "state has another form")
        return _array(state[4], state[2], state[1], "F" if state[3] is True else "C")

    def plain(self) -> list[Any]:
        """The array as lists. Raises PickleError if shape and bytes do not agree."""
        return _lists(self.array())


class DillArray(Inert):
    """A NumPy array as dill writes it: args = (function, its arguments, state of `NumpyArray`, attributes or None)."""

    def check(self) -> None:
        """The call that NumPy's own form has, and no attributes."""
        super().check()
        ok = len(self.args) == 4 and isinstance(self.args[0], InertType) and self.args[3] is None
        self._require(ok and issubclass(self.args[0], NumpyArray), "call has another form")

    def array(self) -> np.ndarray:
        """The array itself, read-only. Raises PickleError if shape and bytes do not agree."""
        state = self.args[2]
        self._require(isinstance(state, tuple) and len(state) == 5, "state has another form")
        return _array(state[4], state[2], state[1], "F" if state[3] is True else "C")

    def plain(self) -> list[Any]:
        """The array as lists. Raises PickleError if shape and bytes do not agree."""
        return _lists(self.array())


class NumpyBuffer(Inert):
    """A NumPy array of protocol 5: args = (bytes, dtype, shape, order)."""

    def array(self) -> np.ndarray:
        """The array itself, read-only. Raises PickleError if shape and bytes do not agree."""
        self._require(len(self.args) == 4 and self.args[3] in ("C", "F"), "call has another form")
        return _array(*self.args)

    def plain(self) -> list[Any]:
        """The array as lists. Raises PickleError if shape and bytes do not agree."""
        return _lists(self.array())


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    def require(condition: bool) -> None:
        if not condition:
            raise PickleError("has a NumPy array whose shape and data do not agree; it is damaged or forged")

    require(isinstance(data, (bytes, bytearray)) and isinstance(dtype, NumpyDtype) and isinstance(shape, tuple))
    require(len(shape) <= 32 and all(type(n) is int and 0 <= n <= MAX_ELEMENTS for n in shape))
    require(math.prod(n for n in shape if n) <= MAX_ELEMENTS)
    require(math.prod(shape) * dtype.plain().itemsize == len(data))
    return np.frombuffer(data, dtype.plain()).reshape(shape, order=order)


def _lists(array: np.ndarray) -> list[Any]:
    if math.prod(n for n in array.shape if n) > MAX_EXPANDED:
        raise PickleError(f"has a NumPy array of more than {MAX_EXPANDED} values among its settings; refused")
    return array.tolist()
