"""Studies of settings: what a choice does to the images."""
