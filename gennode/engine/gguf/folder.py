"""A folder with one GGUF file, and a tokenizer.json beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gennode.engine.checkpoint.hashing import hash_files
from gennode.engine.checkpoint.layout import MAX_CONFIG_BYTES, OPTIONAL, TOKENIZER
from gennode.engine.checkpoint.shelf import FolderShelf
from gennode.engine.gguf.layers import GgufModel, open_file
from gennode.errors import ModelError
from gennode.wire.manifest import Manifest, ModelShape

SUFFIX = ".gguf"


@dataclass(frozen=True)
class GgufFolder:
    """A checked folder. `shelf`: its chunks, for peers that want them."""

    path: Path
    gguf: GgufModel
    manifest: Manifest
    shelf: FolderShelf

    @property
    def is_partial(self) -> bool:
        """Never: spans of a GGUF file are not fetched from peers."""
        return False

    def whole_layers(self) -> list[int]:
        """The layers of which every tensor is here: all."""
        return list(range(self.gguf.shape.layers))


def is_gguf(path: Path) -> bool:
    """Whether a folder holds a model in this format."""
    return path.is_dir() and any(each.suffix == SUFFIX for each in path.iterdir())


def read_gguf_shape(path: Path) -> ModelShape:
    """The sizes that a folder's one GGUF file states, nothing hashed. Raises ModelError."""
    with _readable(path):
        return open_file(_only_file(path)).shape


def open_gguf(
    path: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
    known: Manifest | None = None,
) -> GgufFolder:
    """Check a folder's one GGUF file and hash it; see open_model. Raises ModelError."""
    folder = path.resolve()
    with _readable(folder):
        gguf = open_file(_only_file(folder))
        if not (folder / TOKENIZER).is_file():
            raise ModelError(f"{folder} lacks {TOKENIZER}",
                             hint="take it from the model in Hugging Face format")  # fmt: skip
        beside = [name for name in OPTIONAL if (folder / name).is_file()]
        for name in beside:
            if (folder / name).stat().st_size > MAX_CONFIG_BYTES:
                raise ModelError(f"{name} has over {MAX_CONFIG_BYTES} bytes",
                                 hint="download the model again")  # fmt: skip
        names = sorted([gguf.file.name, TOKENIZER, *beside])
        sizes = {name: (folder / name).stat().st_size for name in names}
        if known and sizes == {file.name: file.size_bytes for file in known.files}:
            manifest = Manifest(gguf.shape, known.files)
        else:
            manifest = Manifest(gguf.shape, hash_files(folder, names, progress, cache))
    return GgufFolder(folder, gguf, manifest, FolderShelf(folder, manifest))


def _only_file(folder: Path) -> Path:
    files = [each for each in folder.iterdir() if each.suffix == SUFFIX]
    if len(files) != 1:
        raise ModelError(f"{folder} has {len(files)} GGUF files, not one",
                         hint="put the one to be used into a folder of its own")  # fmt: skip
    return files[0]


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror}",
            hint="check that the file is there and that you may read it",
        ) from error
