"""Weights from peers, by the hash of each chunk."""
