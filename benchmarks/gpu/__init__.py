"""The day with a GPU: one command that was rehearsed without one."""
