"""How far peers are from each other, and how thick our own line is."""
