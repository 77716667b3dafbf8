"""Hides NVRTC, so that nvcc builds the CUDA kernels: a pytest plugin, and an import for the process that times it."""

from stylegan_ops.build import nvrtc

nvrtc.find = lambda: None
