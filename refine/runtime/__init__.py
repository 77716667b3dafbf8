"""Runtime services: devices, processes, random streams, background work, spans, numbers as text."""
