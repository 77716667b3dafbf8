"""The FID's value beside that of `scipy.linalg.sqrtm`, and the memory of precision and recall.

    python -m benchmarks.speed.fid

Two sets of 2048-dimensional statistics, whose variances fall over four decades as those of Inception features do. The
two ways take turns, and medians are compared. Precision and recall run on two sets of 20000 features of 2048
dimensions, in a process of its own; its memory is the growth of the peak resident set over that with both sets there.
"""

from __future__ import annotations
