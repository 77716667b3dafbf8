"""Objectives of the refinement: pure functions on tensors, without optimiser, files or options of a run.

A new objective is one file here, and one entry below.
"""

from refine.objectives import ikl, sds
from refine.objectives.objective import Objective, Scores

OBJECTIVES: dict[str, Objective] = {"ikl": ikl.OBJECTIVE, "sds": sds.OBJECTIVE}

__all__ = ["OBJECTIVES", "Objective", "Scores", "ikl", "sds"]
