"""Where a model's tensors lie: the files, the bytes, and the chunks that a span of layers needs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from gennode.engine.checkpoint.config import ModelConfig, parse_config, tensors_of
from gennode.errors import ModelError
from gennode.wire.ids import Span
from gennode.wire.manifest import CHUNK_BYTES, Manifest

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
OPTIONAL = ("chat_template.jinja", "generation_config.json", "tokenizer_config.json")
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_CONFIG_BYTES = 1024 * 1024  # published ones are below 100 KiB
MAX_INDEX_BYTES = 32 * 1024 * 1024  # 91,000 tensors, the most yet published, take 9 MB
MAX_TOKENIZER_BYTES = 128 * 1024 * 1024  # a vocabulary of 262,144 takes 33 MB
MAX_HEADER_BYTES = 16 * 1024 * 1024  # some 130 bytes a tensor: over 100,000 in one file

_AGAIN = "download the model again"
_PREFIX = struct.Struct("<Q")
_Offset = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class Position(NamedTuple):
    """One chunk of one file, counted from 0."""

    file: str
    number: int


ReadBytes = Callable[[str, int, int], bytes | None]
"""(file, start, end) to those bytes, None unless all of them are here."""

HasBytes = Callable[[str, int, int], bool]
"""(file, start, end) to whether all of them are here."""


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


class _Entry(msgspec.Struct):
    data_offsets: tuple[_Offset, _Offset]


def parse_index(data: bytes) -> dict[str, str]:
    """Which file holds each tensor; ModelError if the index is malformed or leads elsewhere."""
    try:
        index = msgspec.json.decode(data, type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{INDEX} is malformed: {error}", hint=_AGAIN) from error
    for file in set(index.weight_map.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{INDEX} names {file[:128]!r}, which is no file of the folder",
                             hint="don't use this model: its index is not honest")  # fmt: skip
    return index.weight_map


def needed(manifest: Manifest, read: ReadBytes, span: Span | None, *, owner: bool) -> set[Position]:
    """The chunks for a span of layers, or for an owner, as far as `read` lets us see.

    What is needed shows step by step: config and index first, then headers, then tensors. The
    answer is final once all of it is here. ModelError if the files contradict each other.
    """
    files = {file.name: file.size_bytes for file in manifest.files}
    positions: set[Position] = set()
    for name, limit_bytes in _small_files(files, owner=owner).items():
        if files[name] > limit_bytes:
            raise ModelError(f"{name} has {files[name]} bytes, over the limit of {limit_bytes}",
                             hint="don't use this model")  # fmt: skip
        positions |= _chunks(name, 0, files[name])
    config = read_config(manifest, read)
    if config is None:
        return positions
    placed = _placed(files, read)
    if INDEX not in files:  # one file: its header comes first, for it names the tensors
        positions |= _tensor_chunks(SINGLE, _size(files, SINGLE, "weights"), (), read)
    if placed is None:
        return positions
    tensors: dict[str, list[str]] = {}
    for name in tensors_of(config, placed, span, owner=owner):
        tensors.setdefault(placed.get(name, ""), []).append(name)
    for file, names in tensors.items():
        size_bytes = _size(files, file, f"the tensor {names[0]}")
        positions |= _tensor_chunks(file, size_bytes, names, read)
    return positions


def tensor_names(manifest: Manifest, read: ReadBytes) -> frozenset[str] | None:
    """The names of all the model's tensors; None while nobody can know."""
    placed = _placed({file.name: file.size_bytes for file in manifest.files}, read)
    return None if placed is None else frozenset(placed)


def _size(files: Mapping[str, int], file: str, what: str) -> int:
    if file not in files:
        raise ModelError(f"no file of the model has {what}", hint=_AGAIN)
    return files[file]


def read_config(manifest: Manifest, read: ReadBytes) -> ModelConfig | None:
    """The config, None while it is not here; ModelError if it is not the manifest's model."""
    size_bytes = next((file.size_bytes for file in manifest.files if file.name == CONFIG), 0)
    data = read(CONFIG, 0, size_bytes) if 0 < size_bytes <= MAX_CONFIG_BYTES else None
    if data is None:
        return None
    config = parse_config(data, CONFIG)
    if config.shape != manifest.shape:
        raise ModelError(f"{CONFIG} and the manifest disagree on the model's sizes",
                         hint="don't use this model")  # fmt: skip
    return config


def tensor_places(manifest: Manifest, read: ReadBytes, has: HasBytes) -> Mapping[str, str]:
    """The file of each tensor of which every byte is here."""
    here = {}
    for file in manifest.files:
        if not file.name.endswith(".safetensors") or not has(file.name, 0, 1):
            continue
        for name, (start, end) in (tensor_ranges(file.name, file.size_bytes, read) or {}).items():
            if has(file.name, start, end):
                here[name] = file.name
    return here


def tensor_ranges(
    file: str, size_bytes: int, read: ReadBytes
) -> Mapping[str, tuple[int, int]] | None:
    """The bytes of each tensor in its file, None while the header is not here.

    The format: https://github.com/huggingface/safetensors#format. ModelError if it is not that.
    """
    end = header_end(file, size_bytes, read)
    data = read(file, _PREFIX.size, end) if end else None
    if end is None or data is None:
        return None
    try:
        entries = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        found = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in entries.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"the header of {file} is malformed: {error}", hint=_AGAIN) from error
    ranges = {}
    for name, entry in found.items():
        first, last = entry.data_offsets
        if first > last or end + last > size_bytes:
            raise ModelError(f"{file} places {name[:128]!r} outside of itself", hint=_AGAIN)
        ranges[name] = (end + first, end + last)
    return ranges


def header_end(file: str, size_bytes: int, read: ReadBytes) -> int | None:
    """Where the tensors begin; None while the first bytes are not here."""
    prefix = read(file, 0, _PREFIX.size) if size_bytes >= _PREFIX.size else b""
    if prefix is None:
        return None
    header_bytes = _PREFIX.unpack(prefix)[0] if prefix else size_bytes
    if header_bytes > min(MAX_HEADER_BYTES, size_bytes - _PREFIX.size):
        raise ModelError(f"{file} claims a header of {header_bytes} bytes", hint=_AGAIN)
    return _PREFIX.size + int(header_bytes)


def _small_files(present: Iterable[str], *, owner: bool) -> dict[str, int]:
    """What is needed whole, and how large it may be. Workers need no tokenizer."""
    limits = {CONFIG: MAX_CONFIG_BYTES, INDEX: MAX_INDEX_BYTES}
    if owner:
        limits |= {TOKENIZER: MAX_TOKENIZER_BYTES} | dict.fromkeys(OPTIONAL, MAX_CONFIG_BYTES)
    for name in (CONFIG, TOKENIZER) if owner else (CONFIG,):
        if name not in present:
            raise ModelError(f"the model has no {name}", hint="don't use this model")
    return {name: limit for name, limit in limits.items() if name in present}


def _placed(files: Mapping[str, int], read: ReadBytes) -> Mapping[str, str] | None:
    """Which file holds each tensor; None while nobody can know."""
    if INDEX not in files:
        ranges = tensor_ranges(SINGLE, files.get(SINGLE, 0), read)
        return None if ranges is None else dict.fromkeys(ranges, SINGLE)
    data = read(INDEX, 0, files[INDEX])
    return None if data is None else parse_index(data)


def _tensor_chunks(
    file: str, size_bytes: int, names: Iterable[str], read: ReadBytes
) -> set[Position]:
    """The header's chunks, and once it is here the tensors' too."""
    end = header_end(file, size_bytes, read)
    positions = _chunks(file, 0, end or _PREFIX.size)
    ranges = tensor_ranges(file, size_bytes, read)
    for name in names if ranges is not None else ():
        if ranges is None or name not in ranges:
            raise ModelError(f"{file} lacks the tensor {name}", hint=_AGAIN)
        positions |= _chunks(file, *ranges[name])
    return positions


def _chunks(file: str, start: int, end: int) -> set[Position]:
    last = -(-end // CHUNK_BYTES)
    return {Position(file, index) for index in range(start // CHUNK_BYTES, last)}
