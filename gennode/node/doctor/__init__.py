"""`gennode doctor` without its words."""
