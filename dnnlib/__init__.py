"""The names of NVIDIA's `dnnlib`, in an implementation of our own."""

from dnnlib import util
from dnnlib.util import EasyDict, make_cache_dir_path

__all__ = ["EasyDict", "make_cache_dir_path", "util"]
