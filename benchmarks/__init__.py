"""Measurements of Refine: speed, studies of its settings, and the day with a GPU.

Run them from the repository's root as modules, `python -m benchmarks.speed.step`.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
