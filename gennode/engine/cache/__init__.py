"""Keys and values of all sequences in pages, shared between equal prefixes."""
