"""The peer: assembly of everything below into a node that runs."""
