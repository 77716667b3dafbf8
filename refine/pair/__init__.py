"""A generator and its teacher, the bridge between them, and checks that the two fit together."""
