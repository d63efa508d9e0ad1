"""The Llama family, computed the fast way."""
