"""`fma` of `stylegan_ops`."""

from stylegan_ops.fma import fma

__all__ = ["fma"]
