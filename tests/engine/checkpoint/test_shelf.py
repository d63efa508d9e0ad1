"""Chunks on disk: a folder that fills up, survives crashes, and believes only what it hashed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from gennode.engine.checkpoint import shelf
from gennode.engine.checkpoint.layout import CONFIG, SINGLE, Position, needed
from gennode.engine.checkpoint.shelf import FolderShelf, PartialFolder, is_partial
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.llama.model import load_layer
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.precision import arithmetic
from gennode.engine.llama.shard import LlamaShard
from gennode.errors import ModelError, ResourceError
from gennode.wire.ids import ModelId, Span
from gennode.wire.manifest import CHUNK_BYTES
from tests.engine.shards import LAYERS, write_sharded, write_single


@pytest.fixture(scope="module", params=["single", "sharded"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return open_model((write_single if request.param == "single" else write_sharded)(folder))


def fill(partial: PartialFolder, source: ModelFolder, span: Span | None, *, owner: bool) -> int:
    """Copy what is needed from a whole folder; how many chunks that were."""
    copied = 0
    while (
        not (places := needed(partial.manifest, partial.read_bytes, span, owner=owner))
        <= partial.held
    ):
        for chunk, size_bytes in partial.want(places).items():
            data = source.shelf.read(chunk)
            assert data is not None
            assert len(data) == size_bytes
            partial.keep(chunk, data)
            copied += 1
    partial.flush()
    return copied


def test_a_span_takes_its_own_chunks_and_no_others(whole: ModelFolder, tmp_path: Path) -> None:
    partial = PartialFolder.create(tmp_path / "part", whole.manifest)
    copied = fill(partial, whole, Span(1, 2), owner=False)
    assert 0 < copied < sum(len(file.chunks) for file in whole.manifest.files)
    folder = open_model(tmp_path / "part")
    assert folder.is_partial
    assert folder.manifest.model == whole.manifest.model
    assert 1 in folder.whole_layers()
    assert len(folder.whole_layers()) < LAYERS
    shard = LlamaShard(folder)
    shard.load(Span(1, 2))
    assert shard.spans() == (Span(1, 2),)
    on_disk = sum(path.stat().st_blocks * 512 for path in (tmp_path / "part").iterdir())
    assert on_disk < 0.8 * sum(file.size_bytes for file in whole.manifest.files)


def test_the_layers_are_the_same_bits(whole: ModelFolder, tmp_path: Path) -> None:
    import torch

    fill(PartialFolder.create(tmp_path, whole.manifest), whole, Span(2, 3), owner=False)
    device = torch.device("cpu")
    here = load_layer(open_model(tmp_path), 2, device, arithmetic("fp32", device))
    there = load_layer(whole, 2, device, arithmetic("fp32", device))
    assert torch.equal(here.input_norm, there.input_norm)
    states = torch.randn(3, 512)
    assert torch.equal(here.gate_up(states), there.gate_up(states))


def test_layers_that_are_not_there_are_refused_with_a_hint(
    whole: ModelFolder, tmp_path: Path
) -> None:
    fill(PartialFolder.create(tmp_path, whole.manifest), whole, Span(0, 1), owner=False)
    shard = LlamaShard(open_model(tmp_path))
    with pytest.raises(ModelError, match="only a part") as caught:
        shard.load(Span(LAYERS - 1, LAYERS))
    assert "fetch" in caught.value.hint
    with pytest.raises(ModelError):
        LlamaOwner(open_model(tmp_path))


def test_an_owner_takes_what_lies_around_the_layers(whole: ModelFolder, tmp_path: Path) -> None:
    fill(PartialFolder.create(tmp_path, whole.manifest), whole, None, owner=True)
    owner, expected = LlamaOwner(open_model(tmp_path)), LlamaOwner(whole)
    assert owner.model == expected.model
    tokens = expected.tokenize("count from 1 to 3 =")
    assert (owner.embed(tokens, 0) == expected.embed(tokens, 0)).all()


def test_a_folder_serves_what_it_has_and_nothing_else(whole: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("private")
    partial = PartialFolder.create(tmp_path, whole.manifest)
    fill(partial, whole, Span(3, 4), owner=False)
    for file in whole.manifest.files:
        for number, chunk in enumerate(file.chunks):
            held = any(file.chunks[number] == chunk and Position(file.name, number) in partial.held
                       for number in range(len(file.chunks)))  # fmt: skip
            assert (partial.read(chunk) == whole.shelf.read(chunk)) is held
    for shelf_here in (partial, whole.shelf):
        assert shelf_here.read("00" * 32) is None
        assert shelf_here.read(str(tmp_path / "secret.txt")) is None


@pytest.mark.parametrize("note", ["kept", "lost", "spoilt"])
def test_a_flipped_bit_on_disk_is_found_and_fetched_again(
    whole: ModelFolder, tmp_path: Path, note: str
) -> None:
    first = PartialFolder.create(tmp_path, whole.manifest)
    fill(first, whole, Span(0, 2), owner=False)
    place = max(place for place in first.held if place.file.endswith(".safetensors"))
    with open(tmp_path / place.file, "r+b") as file:
        file.seek(place.number * CHUNK_BYTES + 5)
        flipped = bytes([file.read(1)[0] ^ 1])
        file.seek(place.number * CHUNK_BYTES + 5)
        file.write(flipped)
    os.utime(tmp_path / place.file, ns=(1, 1))
    if note != "kept":
        (tmp_path / "verified.msgpack").write_bytes(b"\xc1")
    if note == "lost":
        (tmp_path / "verified.msgpack").unlink()
    second = PartialFolder.open(tmp_path, whole.manifest.model)
    assert place not in second.held
    assert fill(second, whole, Span(0, 2), owner=False) == 1
    assert second.held == first.held


def test_what_was_fetched_before_a_crash_is_not_fetched_again(
    whole: ModelFolder, tmp_path: Path
) -> None:
    first = PartialFolder.create(tmp_path, whole.manifest)
    total = fill(first, whole, Span(0, 1), owner=False)
    (tmp_path / "verified.msgpack").unlink()  # as if it had never come to `flush`
    second = PartialFolder.create(tmp_path, whole.manifest)
    assert second.held == frozenset()
    assert fill(second, whole, Span(0, 1), owner=False) == 0
    assert len(second.held) >= total


def test_a_folder_grows_from_span_to_span(whole: ModelFolder, tmp_path: Path) -> None:
    partial = PartialFolder.create(tmp_path, whole.manifest)
    fill(partial, whole, Span(0, 1), owner=False)
    fill(PartialFolder.create(tmp_path, whole.manifest), whole, Span(1, LAYERS), owner=True)
    assert open_model(tmp_path).whole_layers() == list(range(LAYERS))


def test_no_room_is_said_before_anything_is_written(
    whole: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "SPARE_DISK_BYTES", 1 << 60)
    partial = PartialFolder.create(tmp_path, whole.manifest)
    with pytest.raises(ResourceError, match="don't fit") as caught:
        partial.want([Position(CONFIG, 0)])
    assert "--layers" in caught.value.hint
    assert not (tmp_path / CONFIG).exists()


def test_a_damaged_or_foreign_manifest_is_refused(whole: ModelFolder, tmp_path: Path) -> None:
    PartialFolder.create(tmp_path, whole.manifest)
    assert is_partial(tmp_path)
    with pytest.raises(ModelError, match="manifest"):
        PartialFolder.open(tmp_path, ModelId("00" * 32))
    (tmp_path / shelf.MANIFEST).write_bytes(b"garbage")
    with pytest.raises(ModelError, match="manifest"):
        open_model(tmp_path)


def test_a_folder_without_a_config_is_no_model(whole: ModelFolder, tmp_path: Path) -> None:
    PartialFolder.create(tmp_path, whole.manifest)
    with pytest.raises(ModelError, match=CONFIG):
        open_model(tmp_path)


def test_one_chunk_in_many_places_is_fetched_once(tmp_path: Path) -> None:
    source = write_single(tmp_path / "model")
    zeros = bytes(3 * CHUNK_BYTES)
    (source / "zeros.safetensors").write_bytes(zeros)
    manifest = open_model(source).manifest
    from gennode.engine.checkpoint.hashing import hash_files

    [extra] = hash_files(source, ["zeros.safetensors"], None, None)
    longer = msgspec.structs.replace(manifest, files=(*manifest.files, extra))
    partial = PartialFolder.create(tmp_path / "part", longer)
    missing = partial.want(Position(extra.name, number) for number in range(3))
    [(chunk, size_bytes)] = missing.items()
    partial.keep(chunk, zeros[:size_bytes])
    assert len(partial.held) == 3
    assert FolderShelf(source, longer).read(chunk) == zeros[:size_bytes]
    shutil.rmtree(source)
    assert partial.read_bytes(extra.name, 1, 10_000_000) == zeros[1:10_000_000]
    assert partial.read_bytes(SINGLE, 0, 1) is None
