"""Network pickles of NVIDIA's repositories: opened, understood and rewritten without running anything in them."""

from refine.files.digest import file_sha256
from refine.pickles.arrays import load_arrays
from refine.pickles.errors import DamagedFileError, NonFiniteError, PickleError, about
from refine.pickles.reader import NetworkPickle, damage, load
from refine.pickles.records import NetworkRecord, PersistentObject
from refine.pickles.tree import module_state, named_tensors, submodules
from refine.pickles.writer import save

__all__ = [
    "DamagedFileError",
    "NetworkPickle",
    "NetworkRecord",
    "NonFiniteError",
    "PersistentObject",
    "PickleError",
    "about",
    "damage",
    "file_sha256",
    "load",
    "load_arrays",
    "module_state",
    "named_tensors",
    "save",
    "submodules",
]
