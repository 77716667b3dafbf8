"""The machine: devices, processes, random streams, background work."""
