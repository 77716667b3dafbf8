"""Generators in other formats, one module a format: `python -m refine export`.

Each format module has `write(loaded, file)` and `images(path, loaded, probe)`: what the file that was written
computes, by something else than the network that it was written from wherever the format allows it. The command
compares the two before the file gets its name.
"""
