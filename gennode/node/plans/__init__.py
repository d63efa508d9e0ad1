"""How the peers of a model agree on a plan."""
