"""The built-in digits pair, its detector and its images; README.md says what they are and how they were made."""
