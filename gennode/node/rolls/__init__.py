"""How workers go over to a new version of a model."""
