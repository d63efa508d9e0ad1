"""How one worker goes where it is wanted, while it serves."""
