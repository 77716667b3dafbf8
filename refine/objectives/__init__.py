"""Objectives of the refinement: pure functions on tensors, without optimiser, files or options of a run."""
