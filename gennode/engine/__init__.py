"""Running layers: the only place that imports torch."""
