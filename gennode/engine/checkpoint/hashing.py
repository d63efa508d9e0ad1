"""SHA-256 of a model's files in 4 MiB chunks, remembered between starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gennode.wire.manifest import CHUNK_BYTES, ManifestFile

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

# A terabyte of weights has 262,144 chunks of 67 characters each in the cache.
MAX_CACHE_FILE_BYTES = 32 * 1024 * 1024


class _Remembered(msgspec.Struct, frozen=True):
    path: str
    size_bytes: int
    modified_ns: int
    file: ManifestFile


def hash_files(
    folder: Path, names: Sequence[str], progress: Progress | None, cache: Path | None
) -> tuple[ManifestFile, ...]:
    """Each named file's size and chunk hashes, in the order of `names`.

    `cache`: a folder that keeps the hashes of files whose path, size and time of change are as
    they were; None reads everything. Raises OSError if a file can't be read.
    """
    sizes = [(folder / name).stat().st_size for name in names]
    total_bytes = sum(sizes)
    done_bytes = 0
    hashed = []
    for name, size_bytes in zip(names, sizes, strict=True):
        start_bytes = done_bytes

        def report(file_bytes: int, start_bytes: int = start_bytes) -> None:
            if progress is not None:
                progress(start_bytes + file_bytes, total_bytes)

        hashed.append(_hash_file(folder / name, report, cache))
        done_bytes += size_bytes
        report(size_bytes)
    return tuple(hashed)


def _hash_file(path: Path, report: Callable[[int], None], cache: Path | None) -> ManifestFile:
    status = path.stat()
    resolved = str(path.resolve())
    key = (resolved, status.st_size, status.st_mtime_ns)
    entry = cache and cache / (hashlib.sha256(resolved.encode()).hexdigest() + ".json")
    if entry:
        known = _recall(entry)
        if known and (known.path, known.size_bytes, known.modified_ns) == key:
            return msgspec.structs.replace(known.file, name=path.name)
    chunks = []
    done_bytes = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            chunks.append(hashlib.sha256(chunk).hexdigest())
            done_bytes += len(chunk)
            report(done_bytes)
    file = ManifestFile(path.name, done_bytes, tuple(chunks))
    if entry:
        _remember(entry, _Remembered(*key, file))
    return file


def _recall(entry: Path) -> _Remembered | None:
    try:
        if entry.stat().st_size > MAX_CACHE_FILE_BYTES:
            return None
        return msgspec.json.decode(entry.read_bytes(), type=_Remembered)
    except (OSError, msgspec.ValidationError, msgspec.DecodeError):
        return None  # absent or spoilt: the file is hashed again


def _remember(entry: Path, value: _Remembered) -> None:
    partial = entry.with_suffix(f".{os.getpid()}")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.encode(value))
        partial.replace(entry)
    except OSError:
        partial.unlink(missing_ok=True)  # a full or read-only disk costs time, not the model
