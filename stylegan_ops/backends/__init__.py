"""Implementations of the raw operators: plain PyTorch, the CPU library, and CUDA kernels on a GPU or a simulator."""
