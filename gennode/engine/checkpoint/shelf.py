"""A model's chunks on this disk: a whole folder, or one that is being filled from peers.

A partial folder has its model's manifest, sparse files of full size, and a note of which chunks
are verified. The note only saves hashing: after a crash, or if a file was touched since, what
is there is hashed again, and only what is right counts.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gennode.engine.checkpoint.layout import Position
from gennode.errors import LocalError, ModelError, RemoteError, ResourceError
from gennode.wire.ids import ModelId
from gennode.wire.manifest import CHUNK_BYTES, MAX_MANIFEST_BYTES, Manifest, parse_manifest

MANIFEST = "manifest.msgpack"
_NOTE = "verified.msgpack"
_MAX_NOTE_BYTES = 64 * 1024 * 1024  # six bytes per chunk: forty terabytes of weights
SPARE_DISK_BYTES = 64 * 1024 * 1024  # left to the system when space is counted


class _FileNote(msgspec.Struct, frozen=True):
    """The chunks that were right when the file had this size and time."""

    size_bytes: int
    modified_ns: int
    chunks: tuple[int, ...]


class FolderShelf:
    """Serves the chunks of a folder that was checked against its manifest as a whole."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.model = manifest.model
        self.manifest_bytes = manifest.canonical
        self._places = _places(manifest)

    def read(self, chunk: str) -> bytes | None:
        """A chunk by its hash; None if the model has no such. Raises OSError."""
        for place in self._places.get(chunk, ())[:1]:
            return _read(self.path / place.file, place.number * CHUNK_BYTES, CHUNK_BYTES)
        return None


class PartialFolder:
    """A folder with some of a model's chunks. Safe to use from several threads."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """An existing folder; `create` makes one."""
        self.path = path
        self.manifest = manifest
        self.model = manifest.model
        self.manifest_bytes = manifest.canonical
        self._files = {file.name: file for file in manifest.files}
        self._places = _places(manifest)
        self._wanted: dict[str, set[Position]] = {}
        self._lock = threading.Lock()
        self._held = self._recall()

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> PartialFolder:
        """Make the folder, or take up the one that is there. ResourceError if it can't be."""
        with _disk(path):
            path.mkdir(parents=True, exist_ok=True)
            if not (path / MANIFEST).exists():
                _replace(path / MANIFEST, manifest.canonical)
        return cls.open(path, manifest.model)

    @classmethod
    def open(cls, path: Path, model: ModelId | None = None) -> PartialFolder:
        """A folder that `create` made. ModelError if its manifest is damaged or not `model`'s."""
        try:
            with open(path / MANIFEST, "rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
            named = model or ModelId(hashlib.sha256(data).hexdigest())
            return cls(path, parse_manifest(data, named))
        except (OSError, RemoteError) as error:
            raise ModelError(
                f"{path / MANIFEST} is not the manifest that it should be: {error}",
                hint=f"remove {path} and fetch the model again",
            ) from error

    @property
    def held(self) -> frozenset[Position]:
        """The chunks that are here and right."""
        with self._lock:
            return frozenset(self._held)

    def read(self, chunk: str) -> bytes | None:
        """A chunk by its hash; None if it is not here. Raises OSError."""
        for place in self._places.get(chunk, ()):
            with self._lock:
                is_held = place in self._held
            if is_held:
                return _read(self.path / place.file, place.number * CHUNK_BYTES, CHUNK_BYTES)
        return None

    def has_bytes(self, file: str, start: int, end: int) -> bool:
        """Whether these bytes of a file are all here and right."""
        chunks = range(start // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        with self._lock:
            return all(Position(file, index) in self._held for index in chunks)

    def read_bytes(self, file: str, start: int, end: int) -> bytes | None:
        """Bytes of a file; None unless they are all here and right."""
        if not self.has_bytes(file, start, end):
            return None
        with _disk(self.path):
            return _read(self.path / file, start, end - start)

    def want(self, positions: Iterable[Position]) -> dict[str, int]:
        """Which chunks (hash to bytes) have to be fetched to have all of `positions`.

        Looks first at what lies in the files already. ResourceError if the disk lacks the room.
        """
        missing: dict[str, int] = {}
        absent_bytes = 0
        for place in sorted(positions):
            with self._lock:
                if place in self._held:
                    continue
            chunk = self._files[place.file].chunks[place.number]
            if self._is_right(place):
                with self._lock:
                    self._held.add(place)
                continue
            self._wanted.setdefault(chunk, set()).add(place)
            missing[chunk] = self._size(place)
            absent_bytes += self._size(place)
        self._make_room(absent_bytes)
        return missing

    def keep(self, chunk: str, data: bytes) -> None:
        """Store a wanted chunk whose hash was checked. ResourceError if the disk is full."""
        for place in self._wanted.get(chunk, ()):
            path = self.path / place.file
            with _disk(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    size_bytes = self._files[place.file].size_bytes
                    if os.fstat(descriptor).st_size != size_bytes:
                        os.ftruncate(descriptor, size_bytes)
                    _write(descriptor, data, place.number * CHUNK_BYTES)
                finally:
                    os.close(descriptor)
            with self._lock:
                self._held.add(place)

    def flush(self) -> None:
        """Bring everything to the disk, then note it. ResourceError if the disk is full."""
        held = self.held
        notes: dict[str, _FileNote] = {}
        with _disk(self.path):
            for name in sorted({place.file for place in held}):
                with open(self.path / name, "rb") as file:
                    os.fsync(file.fileno())
                    status = os.fstat(file.fileno())
                chunks = tuple(sorted(place.number for place in held if place.file == name))
                notes[name] = _FileNote(status.st_size, status.st_mtime_ns, chunks)
            _replace(self.path / _NOTE, msgspec.msgpack.encode(notes))

    def _recall(self) -> set[Position]:
        """What the note says is here; files that changed since are hashed again."""
        try:
            with open(self.path / _NOTE, "rb") as file:
                data = file.read(_MAX_NOTE_BYTES)
            notes = msgspec.msgpack.decode(data, type=dict[str, _FileNote])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return set()  # absent or spoilt: `want` hashes what is there
        held = set()
        for name, note in notes.items():
            known = self._files.get(name)
            try:
                status = (self.path / name).stat()
            except OSError:
                continue
            same = (status.st_size, status.st_mtime_ns) == (note.size_bytes, note.modified_ns)
            for index in note.chunks:
                if known and index < len(known.chunks):
                    place = Position(name, index)
                    if same or self._is_right(place):
                        held.add(place)
        return held

    def _is_right(self, place: Position) -> bool:
        """Whether the file's bytes have the chunk's hash; holes are passed over quickly."""
        start, size_bytes = place.number * CHUNK_BYTES, self._size(place)
        try:
            with open(self.path / place.file, "rb") as file:
                if os.lseek(file.fileno(), start, os.SEEK_DATA) >= start + size_bytes:
                    return False
                data = os.pread(file.fileno(), size_bytes, start)
        except OSError:
            return False  # no file yet, or no data behind `start`
        return hashlib.sha256(data).hexdigest() == self._files[place.file].chunks[place.number]

    def _size(self, place: Position) -> int:
        left_bytes = self._files[place.file].size_bytes - place.number * CHUNK_BYTES
        return min(CHUNK_BYTES, left_bytes)

    def _make_room(self, absent_bytes: int) -> None:
        with _disk(self.path):
            status = os.statvfs(self.path)
        free_bytes = status.f_bavail * status.f_frsize
        if absent_bytes and absent_bytes + SPARE_DISK_BYTES > free_bytes:
            raise ResourceError(
                f"{absent_bytes / 2**20:.0f} MiB of weights don't fit: {self.path} has "
                f"{free_bytes / 2**20:.0f} MiB left",
                hint="free some disk space, or take fewer layers with --layers",
            )


def is_partial(path: Path) -> bool:
    """Whether a folder is one that `PartialFolder` fills."""
    return (path / MANIFEST).is_file()


def _places(manifest: Manifest) -> Mapping[str, list[Position]]:
    places: dict[str, list[Position]] = {}
    for file in manifest.files:
        for index, chunk in enumerate(file.chunks):
            places.setdefault(chunk, []).append(Position(file.name, index))
    return places


def _read(path: Path, start: int, size_bytes: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size_bytes)


def _write(descriptor: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        if not written:
            raise LocalError("a disk that takes no bytes and says no why")
        view, start = view[written:], start + written


def _replace(path: Path, data: bytes) -> None:
    """Replace a file in one go, on the disk before its name is. Another node of this user may
    do the same."""
    fresh = path.with_suffix(f".{os.getpid()}")
    with open(fresh, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ResourceError(
            f"can't write to {path}: {error.strerror}",
            hint="free some disk space; what was fetched is kept"
            if full
            else "choose another place for the cache with XDG_CACHE_HOME",
        ) from error
