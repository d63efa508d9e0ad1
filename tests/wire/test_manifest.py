"""A manifest from a peer is the one that its id names, and makes sense, or is refused."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from gennode.errors import RemoteError
from gennode.wire.ids import ModelId
from gennode.wire.manifest import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestFile,
    ModelShape,
    chunk_sizes,
    parse_manifest,
)

SHAPE = ModelShape("LlamaForCausalLM", 4, 64, 4, 4, 16, 128, 256, 512)
HASH = "ab" * 32


def manifest(*files: ManifestFile) -> Manifest:
    return Manifest(SHAPE, files)


def test_the_order_of_files_does_not_matter() -> None:
    first, second = ManifestFile("a", 1, (HASH,)), ManifestFile("b", CHUNK_BYTES + 1, (HASH,) * 2)
    one, other = manifest(first, second), manifest(second, first)
    assert one.model == other.model
    assert parse_manifest(other.canonical, one.model) == one
    assert chunk_sizes(second) == (CHUNK_BYTES, 1)
    assert chunk_sizes(ManifestFile("c", 0, ())) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        manifest(ManifestFile("a", 1, ())),
        manifest(ManifestFile("a", 1, (HASH,) * 2)),
        manifest(ManifestFile("a", 1, (HASH,)), ManifestFile("a", 1, (HASH,))),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: Manifest) -> None:
    with pytest.raises(RemoteError):
        parse_manifest(wrong.canonical, wrong.model)


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", ".hidden", "a/b", "a\n"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    data = manifest(ManifestFile(name, 1, (HASH,))).canonical
    with pytest.raises(RemoteError, match="malformed"):
        parse_manifest(data, ModelId(hashlib.sha256(data).hexdigest()))


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode([1, 2])])
def test_garbage_with_the_right_hash_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteError, match="malformed"):
        parse_manifest(data, ModelId(hashlib.sha256(data).hexdigest()))


def test_another_models_manifest_is_refused() -> None:
    with pytest.raises(RemoteError, match="not that"):
        parse_manifest(manifest().canonical, ModelId(HASH))
    huge = bytes(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(RemoteError, match="not that"):
        parse_manifest(huge, ModelId(hashlib.sha256(huge).hexdigest()))
