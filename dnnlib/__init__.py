"""The few names of `dnnlib` that the sources embedded in NVIDIA network pickles use."""

from dnnlib import util
from dnnlib.util import EasyDict

__all__ = ["EasyDict", "util"]
