"""NVIDIA network pickles: opened, understood and rewritten without running what is inside them."""

from refine.pickles.errors import PickleError, about
from refine.pickles.reader import NetworkPickle, file_sha256, load
from refine.pickles.records import PersistentObject
from refine.pickles.tree import module_state, named_tensors, submodules
from refine.pickles.writer import save

__all__ = [
    "NetworkPickle",
    "PersistentObject",
    "PickleError",
    "about",
    "file_sha256",
    "load",
    "module_state",
    "named_tensors",
    "save",
    "submodules",
]
