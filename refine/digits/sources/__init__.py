"""The sources that travel inside the built-in pickles.

Plain `pickle.load` runs them, here or beside an NVIDIA repository's own `torch_utils`, so they import only what every
one of those repositories provides, and nothing of Refine. Refine itself never runs them: it rebuilds the networks
from their weights, like those of any other pickle.
"""
