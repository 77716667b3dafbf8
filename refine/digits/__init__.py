"""The built-in digits pair, its detector, its images and the demo; README.md describes the files and their making."""
