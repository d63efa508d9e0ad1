"""Who hosts what: memory accounting, placement of layers on peers, choice of routes. Pure."""
