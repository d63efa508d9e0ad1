"""A model on disk, in either of the formats that are computed here."""

from __future__ import annotations

from pathlib import Path

from gennode.engine.checkpoint.hashing import Progress
from gennode.engine.checkpoint.weights import ModelFolder, open_model, read_shape
from gennode.engine.gguf.folder import GgufFolder, is_gguf, open_gguf, read_gguf_shape
from gennode.errors import UsageError
from gennode.wire.manifest import Manifest, ModelShape

Folder = ModelFolder | GgufFolder


def open_folder(
    path: Path,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    known: Manifest | None = None,
) -> Folder:
    """Check and hash a folder with a GGUF file, or one in Hugging Face format; see open_model."""
    if is_gguf(path):
        return open_gguf(path, progress=progress, cache=cache, known=known)
    return open_model(path, progress=progress, cache=cache, known=known)


def read_folder_shape(path: Path) -> ModelShape:
    """The sizes that a folder's files state, nothing hashed. Raises ModelError."""
    return read_gguf_shape(path) if is_gguf(path) else read_shape(path)


def refuse_gguf(folder: Folder, what: str) -> ModelFolder:
    """The folder, for what takes the model in parts; UsageError that says `what` a GGUF can't."""
    if isinstance(folder, GgufFolder):
        raise UsageError(
            f"a GGUF file can't {what}: it is used whole, from a folder of one's own",
            hint="take the same model in Hugging Face format",
        )
    return folder
