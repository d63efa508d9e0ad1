"""The GGUF file format: its header read within bounds, and headers of our own written.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Files come from strangers; llama.cpp
gets to see only headers that were written here, from settings and tensors that were checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gennode.errors import ModelError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # of each tensor's bytes, where a header names no other
MAX_HEADER_BYTES = 64 * 1024 * 1024  # a vocabulary of 256,000 with its merges takes 15 MB
MAX_SETTINGS = 4096  # published files have below 100
MAX_TENSORS = 1 << 16  # 126 layers of 12 tensors are 1,512
MAX_STRING_BYTES = 1 << 20  # a chat template has some kB
MAX_DIMENSION = 1 << 31

Setting = int | float | bool | str
"""A header's value. Lists are skipped: of what we need, none is a list."""

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY, _UINT32, _FLOAT32 = 8, 9, 4, 6
_AGAIN = "download the file again"


@dataclass(frozen=True)
class Kind:
    """How a tensor's numbers are stored: `values` of them in `size_bytes`."""

    name: str
    values: int
    size_bytes: int


KINDS: Mapping[int, Kind] = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    8: Kind("Q8_0", 32, 34),
    12: Kind("Q4_K", 256, 144),
    13: Kind("Q5_K", 256, 176),
    14: Kind("Q6_K", 256, 210),
    30: Kind("BF16", 1, 2),
}
"""Those that are used, by their number in a file; the first two need no unpacking."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies. `shape`: rows first, as in numpy; `offset`: from the file's start."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself; `lists` are the names of settings that were skipped."""

    settings: Mapping[str, Setting]
    lists: frozenset[str]
    tensors: Mapping[str, Tensor]


class _Reader:
    """Values from the start of a file, each within the bytes that there are."""

    def __init__(self, data: bytes, file: str) -> None:
        self._data = data
        self._file = file
        self.offset = 0

    def scalar(self, layout: str) -> int | float | bool:
        """One number in struct's layout."""
        size = struct.calcsize(layout)
        self._need(size)
        [value] = struct.unpack_from(layout, self._data, self.offset)
        self.offset += size
        number: int | float | bool = value
        return number

    def count(self, layout: str, limit: int, what: str) -> int:
        """A whole number of at most `limit`."""
        value = int(self.scalar(layout))
        if value > limit:
            raise self.wrong(f"{value} {what}, and {limit} are allowed")
        return value

    def string(self) -> str:
        """A text; what is no UTF-8 is replaced."""
        size = self.count("<Q", MAX_STRING_BYTES, "bytes of text")
        self._need(size)
        text = self._data[self.offset : self.offset + size]
        self.offset += size
        return text.decode(errors="replace")

    def skip_list(self) -> None:
        """Pass over a list of numbers or texts."""
        kind = self.count("<I", 12, "as the kind of a list")
        length = self.count("<Q", MAX_HEADER_BYTES, "values in a list")
        if kind in _SCALARS:
            size = struct.calcsize(_SCALARS[kind]) * length
            self._need(size)
            self.offset += size
        elif kind == _STRING:
            for _ in range(length):
                size = self.count("<Q", MAX_STRING_BYTES, "bytes of text")
                self._need(size)
                self.offset += size
        else:
            raise self.wrong("a list of lists")

    def wrong(self, what: str) -> ModelError:
        """The error that names the file."""
        return ModelError(f"{self._file} is damaged or not to be trusted: {what}", hint=_AGAIN)

    def _need(self, size: int) -> None:
        if self.offset + size > len(self._data):
            raise self.wrong("its header does not end where it should")


def read_header(path: Path) -> Header:
    """Check and read the header of a GGUF file. Raises ModelError, OSError."""
    size_bytes = path.stat().st_size
    with path.open("rb") as stream:
        reader = _Reader(stream.read(min(size_bytes, MAX_HEADER_BYTES)), path.name)
    if int(reader.scalar("<I")) != int.from_bytes(MAGIC, "little"):
        raise reader.wrong("it does not begin as a GGUF file does")
    version = int(reader.scalar("<I"))
    if version not in (2, VERSION):
        raise reader.wrong(f"version {version} of the format is not known")
    tensor_count = reader.count("<Q", MAX_TENSORS, "tensors")
    settings, lists = _settings(reader, reader.count("<Q", MAX_SETTINGS, "settings"))
    infos = [_tensor(reader) for _ in range(tensor_count)]
    alignment = settings.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= 4096 or alignment % 8:
        raise reader.wrong(f"tensors aligned to {alignment!r}")
    start = _aligned(reader.offset, alignment)
    tensors: dict[str, Tensor] = {}
    for info in infos:
        tensor = Tensor(info.name, info.shape, info.kind, start + info.offset, info.size_bytes)
        if tensor.name in tensors or tensor.offset + tensor.size_bytes > size_bytes:
            raise reader.wrong(f"{tensor.name} lies outside the file or is there twice")
        tensors[tensor.name] = tensor
    return Header(settings, lists, tensors)


def _settings(reader: _Reader, count: int) -> tuple[dict[str, Setting], frozenset[str]]:
    settings: dict[str, Setting] = {}
    lists = set()
    for _ in range(count):
        name, kind = reader.string(), int(reader.scalar("<I"))
        if name in settings or name in lists:
            raise reader.wrong(f"{name} is set twice")
        if kind == _STRING:
            settings[name] = reader.string()
        elif kind in _SCALARS:
            settings[name] = reader.scalar(_SCALARS[kind])
        elif kind == _ARRAY:
            reader.skip_list()
            lists.add(name)
        else:
            raise reader.wrong(f"{name} has the unknown kind {kind}")
    return settings, frozenset(lists)


def _tensor(reader: _Reader) -> Tensor:
    name = reader.string()
    dimensions = reader.count("<I", 4, "dimensions of a tensor")
    sizes = [reader.count("<Q", MAX_DIMENSION, "rows or columns") for _ in range(dimensions)]
    kind, offset = int(reader.scalar("<I")), int(reader.scalar("<Q"))
    if kind not in KINDS:
        known = ", ".join(each.name for each in KINDS.values())
        raise ModelError(
            f"{name} is stored in the format number {kind}, which is not used here",
            hint=f"take a file with weights in {known}",
        )
    elements = 1
    for size in sizes:
        elements *= size
    block = KINDS[kind]
    if not sizes or sizes[0] % block.values or not 0 < elements <= MAX_DIMENSION * 1024:
        raise reader.wrong(f"{name} has the sizes {sizes}")
    size_bytes = elements // block.values * block.size_bytes
    return Tensor(name, tuple(reversed(sizes)), kind, offset, size_bytes)


def write_header(settings: Mapping[str, Setting], tensors: Iterable[Tensor]) -> bytes:
    """A header for these tensors, whose bytes follow in this order, each padded to ALIGNMENT."""
    listed = list(tensors)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(listed), len(settings))]
    for name, value in settings.items():
        parts.append(_text(name))
        if isinstance(value, str):
            parts.append(struct.pack("<I", _STRING) + _text(value))
        elif isinstance(value, float):
            parts.append(struct.pack("<If", _FLOAT32, value))
        else:
            parts.append(struct.pack("<II", _UINT32, value))
    offset = 0
    for tensor in listed:
        sizes = tuple(reversed(tensor.shape))
        parts.append(_text(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", tensor.kind, offset))
        offset = _aligned(offset + tensor.size_bytes, ALIGNMENT)
    header = b"".join(parts)
    return header + padding(len(header))


def padding(size_bytes: int) -> bytes:
    """What fills up to the next multiple of ALIGNMENT."""
    return b"\0" * (_aligned(size_bytes, ALIGNMENT) - size_bytes)


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
