"""The names of NVIDIA's `torch_utils`, implemented by us: thin modules over `stylegan_ops` and PyTorch."""
