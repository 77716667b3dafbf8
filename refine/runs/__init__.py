"""A run: its start, loop, folder, snapshots, and evaluation."""
