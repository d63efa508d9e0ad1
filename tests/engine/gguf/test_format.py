"""GGUF headers: read back as written, and refused where they can't be true."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gennode.engine.gguf import format as gguf
from gennode.engine.gguf.format import KINDS, Tensor, padding, read_header, write_header
from gennode.errors import ModelError

SETTINGS: dict[str, gguf.Setting] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e4,
}
Q8_0 = 8


def file_of(path: Path, header: bytes, tensors: list[Tensor]) -> Path:
    data = b"".join(bytes(each.size_bytes) + padding(each.size_bytes) for each in tensors)
    path.write_bytes(header + data)
    return path


def tensor(name: str, *shape: int, kind: int = Q8_0) -> Tensor:
    values = 1
    for size in shape:
        values *= size
    return Tensor(name, shape, kind, 0, values // KINDS[kind].values * KINDS[kind].size_bytes)


def test_a_header_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = [tensor("one", 3, 64), tensor("two", 5, kind=0), tensor("three", 2, 256, kind=14)]
    header = write_header(SETTINGS, tensors)
    found = read_header(file_of(tmp_path / "a.gguf", header, tensors))
    assert found.settings == SETTINGS
    assert [(each.name, each.shape, each.kind, each.size_bytes) for each in found.tensors.values()]\
        == [(each.name, each.shape, each.kind, each.size_bytes) for each in tensors]  # fmt: skip
    assert [each.offset - len(header) for each in found.tensors.values()] == [0, 224, 256]


def test_lists_are_passed_over_by_name(tmp_path: Path) -> None:
    lists = gguf.MAGIC + struct.pack("<IQQ", 2, 0, 3)
    words = b"".join(struct.pack("<Q", 2) + b"ab" for _ in range(3))
    for name, kind, values in ((b"ids", 5, struct.pack("<3i", 1, 2, 3)), (b"words", 8, words)):
        lists += struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, kind, 3) + values
    lists += struct.pack("<Q", 1) + b"n" + struct.pack("<Iq", 11, -7)
    found = read_header(file_of(tmp_path / "a.gguf", lists, []))
    assert found.lists == {"ids", "words"}
    assert found.settings == {"n": -7}


WRONG = {
    "no magic": b"GGML" + bytes(40),
    "unknown version": gguf.MAGIC + struct.pack("<IQQ", 9, 0, 0),
    "endless tensors": gguf.MAGIC + struct.pack("<IQQ", 3, 1 << 60, 0),
    "endless settings": gguf.MAGIC + struct.pack("<IQQ", 3, 0, 1 << 60),
    "endless name": gguf.MAGIC + struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
    "unknown kind": gguf.MAGIC + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"a", 77),
    "endless list": gguf.MAGIC + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 1 << 60),
    "list of lists": gguf.MAGIC + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1),
    "long list of nothing": gguf.MAGIC + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 8, 1 << 20),
    "set twice": gguf.MAGIC
    + struct.pack("<IQQ", 3, 0, 2)
    + 2 * struct.pack("<Q1sII", 1, b"a", 4, 1),
    "alignment of 0": write_header({"general.alignment": 0}, []),
    "alignment of 7": write_header({"general.alignment": 7}, []),
    "half a block": write_header({}, [Tensor("a", (2, 31), Q8_0, 0, 34)]),
    "no rows": write_header({}, [Tensor("a", (0, 32), Q8_0, 0, 34)]),
    "kind of weights": write_header({}, [Tensor("a", (2, 32), 40, 0, 34)]),
    "outside": write_header({}, [tensor("a", 1 << 20, 32)]),
    "huge": write_header({}, [Tensor("a", (1 << 30, 1 << 30), 0, 0, 1)]),
    "twice": write_header({}, [tensor("a", 1, 32), tensor("a", 1, 32)]) + bytes(128),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_can_not_be_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(WRONG[name])
    with pytest.raises(ModelError):
        read_header(path)


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    tensors = [tensor("one", 3, 64), tensor("two", 5, kind=0)]
    whole = file_of(tmp_path / "a.gguf", write_header(SETTINGS, tensors), tensors).read_bytes()
    needed = len(whole) - len(padding(tensors[-1].size_bytes))
    for size in range(needed):
        (tmp_path / "b.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelError):
            read_header(tmp_path / "b.gguf")


@given(data=st.binary(max_size=300), at=st.integers(0, 200))
def test_garbage_gives_a_model_error_or_a_header(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int
) -> None:
    good = write_header(SETTINGS, [tensor("one", 3, 64)]) + bytes(300)
    path = tmp_path_factory.mktemp("garbage") / "a.gguf"
    path.write_bytes(good[:at] + data + good[at + len(data) :])
    try:
        read_header(path)
    except ModelError:
        return
