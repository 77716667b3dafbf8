"""Tries settings of the demo on the built-in digits pair, and prints a row of docs/demo.md's table for each.

    OMP_NUM_THREADS=1 python -m benchmarks.studies.demo_settings [NAME ...] [--seeds=0,1,2] [--split=selection]

Settings are chosen on the selection split; `--split=test` is for what is published.
"""

from __future__ import annotations
