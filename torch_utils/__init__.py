"""The names of NVIDIA's `torch_utils`, written anew: thin modules over `stylegan_ops` and PyTorch."""
