"""`python -m refine doctor`: the same as `python -m stylegan_ops.doctor`."""

from stylegan_ops.doctor import main

__all__ = ["main"]
