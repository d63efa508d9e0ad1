"""Continuous batching: which rows of which sequences an engine computes next."""
