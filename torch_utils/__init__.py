"""The part of `torch_utils` that the sources embedded in NVIDIA network pickles use, written anew."""
