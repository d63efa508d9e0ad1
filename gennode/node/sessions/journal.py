"""Journals of answers: what was asked and every token so far, on disk, to go on after a crash.

    magic │ length, header, CRC-32 │ token, CRC-32 │ token, CRC-32 │ … │ done, CRC-32

Each checksum goes on from the one before it, so that a token that was changed, moved or lost is
noticed. A file that ends inside a token, or in zeros, was being written when its program or its
machine died: that token does not count. Nothing is flushed for single tokens. Whoever has a
journal open holds its lock: nobody else goes on with the same answer meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec

from gennode.engine.sample import Sampling
from gennode.errors import GennodeError, ResourceError, UsageError
from gennode.node.state import using_disk
from gennode.wire.fields import CodecName, Model
from gennode.wire.messages import MAX_POSITIONS

MAX_JOURNALS = 64
MAX_AGE_S = 30 * 24 * 3600.0
MAX_HEADER_BYTES = 8 * 1024 * 1024  # a prompt of MAX_POSITIONS tokens, each of at most 5 bytes
MAX_WORDS = 160  # what a list shows of a prompt

_MAGIC, _VERSION = b"gennode journal ", b"1\n"
_LENGTH, _CHECKSUM, _RECORD = struct.Struct("<I"), struct.Struct("<I"), struct.Struct("<II")
_HEADER_START = len(_MAGIC) + len(_VERSION) + _LENGTH.size
_DONE = (1 << 32) - 1
_MAX_FILE_BYTES = (
    _HEADER_START + MAX_HEADER_BYTES + _CHECKSUM.size + _RECORD.size * (MAX_POSITIONS + 1)
)
_NAME = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{4}")
_KEPT, _NEW, _DAMAGED = ".journal", ".new", ".damaged"
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600

TokenId = Annotated[int, msgspec.Meta(ge=0, lt=_DONE)]


class Header(msgspec.Struct, frozen=True):
    """What was asked, and how: enough for the same tokens to come again."""

    model: Model
    named: str
    """How the person named the model."""
    words: str
    """How the prompt begins, for a list."""
    prompt: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=MAX_POSITIONS)]
    sampling: Sampling
    codec: CodecName
    is_chat: bool
    bootstrap: tuple[str, ...]
    """Whom the asker met first."""
    began_s: float
    """When, in seconds since the epoch."""


@dataclass(frozen=True)
class Written:
    """What a journal's bytes say. `end`: where whole records end; `checksum`: the one there."""

    header: Header
    tokens: tuple[int, ...]
    is_done: bool
    end: int
    checksum: int


@dataclass(frozen=True)
class Interrupted:
    """An answer that can be gone on with."""

    name: str
    header: Header
    tokens: int


def write_header(header: Header) -> tuple[bytes, int]:
    """How a journal begins, and the checksum that its first token goes on from."""
    packed = msgspec.msgpack.encode(header)
    start = _MAGIC + _VERSION + _LENGTH.pack(len(packed)) + packed
    checksum = zlib.crc32(start)
    return start + _CHECKSUM.pack(checksum), checksum


def write_token(token: int, checksum: int) -> tuple[bytes, int]:
    """One token's record, and the checksum that the next one goes on from."""
    checksum = zlib.crc32(_LENGTH.pack(token), checksum)
    return _RECORD.pack(token, checksum), checksum


def read_journal(data: bytes) -> Written:
    """What a journal says, but for a record that was being written; ValueError if damaged.

    UsageError if another version of gennode wrote it.
    """
    if not data.startswith(_MAGIC):
        raise ValueError("it does not begin as a journal does")
    if not data.startswith(_MAGIC + _VERSION):
        raise UsageError("another version of gennode wrote this journal", hint="go on with that")
    if len(data) < _HEADER_START or len(data) > _MAX_FILE_BYTES:
        raise ValueError("it is too short or too long")
    (header_bytes,) = _LENGTH.unpack_from(data, _HEADER_START - _LENGTH.size)
    header_end = _HEADER_START + header_bytes
    checksum = zlib.crc32(data[:header_end])
    if data[header_end : header_end + _CHECKSUM.size] != _CHECKSUM.pack(checksum):
        raise ValueError("its header is not as it was written")
    try:
        header = msgspec.msgpack.decode(data[_HEADER_START:header_end], type=Header)
    except (msgspec.DecodeError, UsageError) as error:
        raise ValueError(f"its header makes no sense: {error}") from error
    tokens: list[int] = []
    end = header_end + _CHECKSUM.size
    while end + _RECORD.size <= len(data):
        token, told = _RECORD.unpack_from(data, end)
        following = zlib.crc32(_LENGTH.pack(token), checksum)
        if told != following:
            if data[end + _RECORD.size - 1 :].strip(b"\0"):
                raise ValueError(f"token {len(tokens) + 1} is not as it was written")
            break  # the file had grown, and its machine died before more than zeros came
        end, checksum = end + _RECORD.size, following
        if token == _DONE:
            return Written(header, tuple(tokens), True, end, checksum)
        tokens.append(token)
    return Written(header, tuple(tokens), False, end, checksum)


@dataclass(frozen=True)
class Watch:
    """Who hears of it when the disk makes trouble, and when a journal is left to go on with."""

    warn: Callable[[str], None]
    kept: Callable[[Journal], None] = lambda _journal: None


class Journal:
    """One answer's journal, open and locked. As a context it is kept unless all went well.

    What the disk refuses ends the journal and not the answer; `watch.warn` is told, once.
    """

    def __init__(self, path: Path, descriptor: int, written: Written, watch: Watch) -> None:
        self.name = path.stem
        self.header = written.header
        self.given = written.tokens
        """The tokens that were there when it was opened."""
        self.tokens = len(self.given)
        """How many it holds."""
        self._path = path
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._checksum = written.checksum
        self._watch = watch
        self._is_written = True

    def add(self, token: int) -> None:
        """Note a token that is given out."""
        record, self._checksum = write_token(token, self._checksum)
        self._write(record)
        self.tokens += self._is_written

    def _write(self, record: bytes) -> None:
        if not self._is_written:
            return
        try:
            if self._file.write(record) != len(record):
                raise OSError("no room for all of it")
        except OSError as error:
            self._is_written = False
            self._watch.warn(
                f"the journal can't be written any more ({error.strerror or error}): "
                f"the answer goes on, and could be resumed from its first {self.tokens} tokens only"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._write(write_token(_DONE, self._checksum)[0])
        self._file.close()
        if kind is not None and self.tokens:
            self._watch.kept(self)
            return
        with using_disk(self._path):
            self._path.unlink(missing_ok=True)


class Journals:
    """The journals of one folder, for its user alone. They hold prompts and answers as they are."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder = folder
        self._watch = watch

    def begin(self, header: Header) -> Journal | None:
        """A new journal; None, and a warning, if the disk refuses. Old ones are removed."""
        start, checksum = write_header(header)
        date = time.strftime("%Y%m%d-%H%M%S", time.localtime(header.began_s))
        path = self._folder / f"{date}-{secrets.token_hex(2)}{_KEPT}"
        try:
            self._folder.mkdir(_PRIVATE_FOLDER, parents=True, exist_ok=True)
            self._prune(header.began_s)
            descriptor = self._create(path, start)
        except OSError as error:
            self._watch.warn(
                f"no journal can be kept in {self._folder} ({error.strerror}): "
                "if this answer is interrupted, it can't be resumed"
            )
            return None
        return Journal(path, descriptor, Written(header, (), False, len(start), checksum),
                       self._watch)  # fmt: skip

    def _create(self, path: Path, start: bytes) -> int:
        """The journal's file, seen by others only once it is locked and has its header."""
        fresh = path.with_suffix(_NEW)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.write(descriptor, start) != len(start):
                raise OSError("no room for all of it")
            fresh.rename(path)
        except OSError:
            os.close(descriptor)
            fresh.unlink(missing_ok=True)
            raise
        return descriptor

    def interrupted(self) -> list[Interrupted]:
        """What can be gone on with, oldest first; damaged journals are moved aside, with a word."""
        found = []
        for path in sorted(self._folder.glob(f"*{_KEPT}")):
            try:
                taken = self._take(path)
            except (ResourceError, UsageError) as error:
                self._watch.warn(str(error))
                continue
            if taken is None:
                continue
            descriptor, written = taken
            os.close(descriptor)
            if written.is_done:
                path.unlink(missing_ok=True)
            else:
                found.append(Interrupted(path.stem, written.header, len(written.tokens)))
        return found

    def resume(self, name: str) -> Journal:
        """Open a journal to go on with its answer; UsageError if that can't be."""
        path = self._folder / f"{name}{_KEPT}"
        if not (_NAME.fullmatch(name) and path.exists()):
            raise UsageError(
                f"no interrupted answer is named {name!r}",
                hint="see what there is: gennode ask --resume",
            )
        taken = self._take(path)
        if taken is None:
            raise UsageError(f"{name} is being answered now", hint="wait for its end")
        descriptor, written = taken
        os.ftruncate(descriptor, written.end)
        os.lseek(descriptor, written.end, os.SEEK_SET)
        return Journal(path, descriptor, written, self._watch)

    def _take(self, path: Path) -> tuple[int, Written] | None:
        """Open, lock and read a file; None if another program has it open.

        UsageError if it can't be read; it is moved aside if it is damaged.
        """
        with using_disk(path):
            if not _is_plain(path):  # to read a pipe would wait for ever
                raise UsageError(f"{path} is no plain file", hint="move it away")
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with using_disk(path), open(descriptor, "rb", closefd=False) as file:
                return descriptor, read_journal(file.read(_MAX_FILE_BYTES + 1))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except ValueError as error:
            os.close(descriptor)
            aside = path.rename(path.with_suffix(_DAMAGED))
            raise UsageError(
                f"the journal {path.stem} is damaged: {error}; it is {aside} now",
                hint="ask again: the same prompt, model and seed give the same answer",
            ) from error
        except GennodeError:
            os.close(descriptor)
            raise

    def _prune(self, now_s: float) -> None:
        """Make room for one more: remove the oldest, and what nobody has come back for."""
        files = sorted(filter(_is_ours, self._folder.iterdir()), reverse=True)  # by their dates
        for place, path in enumerate(files, start=1):
            with suppress(OSError):  # somebody is writing it, or was quicker to remove it
                if place >= MAX_JOURNALS or now_s - path.stat().st_mtime > MAX_AGE_S:
                    _remove_unlocked(path)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_ours(path: Path) -> bool:
    """Whether a file is a journal by its name, in any state."""
    is_named = _NAME.fullmatch(path.stem) and path.suffix in (_KEPT, _NEW, _DAMAGED)
    return bool(is_named) and _is_plain(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a file; BlockingIOError if somebody writes it."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
