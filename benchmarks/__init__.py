"""Measurements of Refine: speed, studies of its settings, and the day with a GPU."""
