"""How others can reach us."""
