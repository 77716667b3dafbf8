"""A run: start, loop, folder, snapshots, evaluation, and trackers."""
