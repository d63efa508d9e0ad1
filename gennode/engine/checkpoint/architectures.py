"""Which decoders the generic engine runs: the names that docs/models.md shows to be exact."""

from __future__ import annotations

SUPPORTED: dict[str, str] = {}
"""`model_type` to the architecture of its config.json. tools/write_models.py tries them all."""
