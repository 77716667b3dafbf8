"""One training step, the networks it trains, and their state."""
