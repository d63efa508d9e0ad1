"""Which bytes a tensor takes, and that files which lie about it are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch

from gennode.engine.checkpoint.layout import (
    CONFIG,
    INDEX,
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    SINGLE,
    Position,
    needed,
    parse_index,
    tensor_ranges,
)
from gennode.engine.checkpoint.weights import open_model
from gennode.errors import ModelError
from gennode.wire.ids import Span
from gennode.wire.manifest import Manifest, ManifestFile, ModelShape
from tests.engine.shards import write_single

SHAPE = ModelShape("LlamaForCausalLM", 4, 64, 4, 4, 16, 128, 256, 512)


def reader(folder: Path) -> Callable[[str, int, int], bytes | None]:
    """Reads a whole folder."""
    return lambda file, start, end: (folder / file).read_bytes()[start:end]


def blank(_file: str, _start: int, _end: int) -> None:
    """Nothing is here yet."""


def test_ranges_are_where_the_library_finds_the_tensors(tmp_path: Path) -> None:
    write_single(tmp_path)
    size_bytes = (tmp_path / SINGLE).stat().st_size
    ranges = tensor_ranges(SINGLE, size_bytes, reader(tmp_path))
    assert ranges is not None
    raw = (tmp_path / SINGLE).read_bytes()
    with safetensors.safe_open(tmp_path / SINGLE, framework="pt") as file:
        assert set(ranges) == set(file.keys())
        for name, (start, end) in ranges.items():
            tensor = file.get_tensor(name)
            assert raw[start:end] == tensor.view(dtype=torch.uint8).numpy().tobytes()


def test_what_is_needed_shows_step_by_step(tmp_path: Path) -> None:
    manifest = open_model(write_single(tmp_path)).manifest
    assert needed(manifest, blank, Span(0, 1), owner=False) == {Position(CONFIG, 0)}

    def only_config(file: str, start: int, end: int) -> bytes | None:
        return reader(tmp_path)(file, start, end) if file == CONFIG else None

    assert needed(manifest, only_config, Span(0, 1), owner=False) == {
        Position(CONFIG, 0), Position(SINGLE, 0)
    }  # fmt: skip
    spans = [needed(manifest, reader(tmp_path), Span(n, n + 1), owner=False) for n in range(4)]
    owner = needed(manifest, reader(tmp_path), None, owner=True)
    everything = owner.union(*spans)
    weights = next(file for file in manifest.files if file.name == SINGLE)
    assert {place.number for place in everything if place.file == SINGLE} == set(
        range(len(weights.chunks))
    )
    assert all(Position(SINGLE, 0) in span for span in spans)  # the header
    assert len(spans[0] & spans[3]) == 2  # config and header


def _file(header: object, *, claimed: int | None = None, data_bytes: int = 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + bytes(data_bytes)


def _entry(start: int, end: int) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [start, end]}}


@pytest.mark.parametrize(
    "data",
    [
        b"short",
        _file({}, claimed=MAX_HEADER_BYTES + 1),
        _file({}, claimed=1 << 40),
        _file(b"not json"),
        _file(b"[" * 100_000),
        _file(_entry(0, 65)),
        _file(_entry(8, 4)),
        _file(_entry(-8, 4)),
        _file({"a": {"dtype": "F32"}}),
        _file({"a": 7}),
    ],
)
def test_a_file_that_lies_about_itself_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        tensor_ranges("x.safetensors", len(data), lambda _file, start, end: data[start:end])


def test_metadata_is_no_tensor() -> None:
    data = _file({"__metadata__": {"format": "pt"}} | _entry(0, 4))
    start = len(data) - 64
    assert tensor_ranges("x", len(data), lambda _f, a, b: data[a:b]) == {"a": (start, start + 4)}


@pytest.mark.parametrize("file", ["../x.safetensors", "/x.safetensors", "x.bin", ""])
def test_an_index_that_leads_elsewhere_is_refused(file: str) -> None:
    with pytest.raises(ModelError, match="no file of the folder"):
        parse_index(json.dumps({"weight_map": {"a": file}}).encode())
    with pytest.raises(ModelError, match="malformed"):
        parse_index(b"[]")


def test_a_model_without_a_config_or_with_a_huge_one_is_refused() -> None:
    with pytest.raises(ModelError, match=CONFIG):
        needed(Manifest(SHAPE, ()), blank, None, owner=False)
    huge = ManifestFile(CONFIG, MAX_CONFIG_BYTES + 1, ("ab" * 32,))
    with pytest.raises(ModelError, match="limit"):
        needed(Manifest(SHAPE, (huge,)), blank, None, owner=False)


def test_files_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    manifest = open_model(write_single(tmp_path)).manifest
    read = reader(tmp_path)
    with pytest.raises(ModelError, match="disagree"):
        needed(Manifest(SHAPE, manifest.files), read, Span(0, 1), owner=False)
    placed = {"model.norm.weight": "gone.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": placed}))
    size_bytes = (tmp_path / INDEX).stat().st_size
    index = ManifestFile(INDEX, size_bytes, ("ab" * 32,))
    with pytest.raises(ModelError, match="no file"):
        needed(Manifest(manifest.shape, (*manifest.files, index)), read, Span(0, 1), owner=False)
