"""A model on disk: its files found, checked, hashed, and read one tensor at a time."""
