"""The parts of the day with a GPU, each a module with `main()` that runs in a process of its own."""
