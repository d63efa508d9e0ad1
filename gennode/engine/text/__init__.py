"""Between people's text and a model's tokens."""
