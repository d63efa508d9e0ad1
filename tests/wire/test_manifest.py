"""A manifest from a peer is the one that its id names, and makes sense, or is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

import gennode
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


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("small", "ec6c854918a74b3eaa60f4e24cf0aadb031dbe453c4ac6ac369a41f33fdd3532"),
        ("medium", "77903546424a938266b2aaef4407844b2ff84d80fb6d2b5d2cc9d30c24349e27"),
        ("large", "6a184d317e456ba8a1142dd7e4436387acdd9ae5a8e5820bf37ba3ea56035975"),
    ],
)
def test_models_without_experts_keep_the_ids_that_they_had(name: str, model: str) -> None:
    """As computed before shapes could tell of experts."""
    folder = Path(gennode.__file__).parent / "models" / f"gennode-{name}"
    data = (folder / "manifest.json").read_bytes()
    assert msgspec.json.decode(data, type=Manifest).model == model


def test_a_manifest_that_would_go_by_another_id_is_refused() -> None:
    shape = msgspec.structs.asdict(SHAPE) | {"experts": 0}
    for wrong in ({"shape": shape, "files": []}, {"files": [], "more": 1, "shape": shape}):
        data = msgspec.msgpack.encode(wrong)
        with pytest.raises(RemoteError, match="canonical"):
            parse_manifest(data, ModelId(hashlib.sha256(data).hexdigest()))


# As published in their config.json: layers, dim, heads, kv_heads, head_dim, ffn_dim, vocab,
# positions, and for some: experts, experts_used, expert_dim, shared_dim, tied.
LLAMA_3_8B = ModelShape("", 32, 4096, 32, 8, 128, 14336, 128256, 8192)
LLAMA_3_70B = ModelShape("", 80, 8192, 64, 8, 128, 28672, 128256, 8192)
LLAMA_3_2_1B = ModelShape("", 16, 2048, 32, 8, 64, 8192, 128256, 131072, tied=True)
GPT_OSS_120B = ModelShape("", 36, 2880, 64, 8, 64, 2880, 201088, 131072, 128, 4, 2880)
MIXTRAL_8X7B = ModelShape("", 32, 4096, 32, 8, 128, 14336, 32000, 32768, 8, 2, 14336)
QWEN_3_30B = ModelShape("", 48, 2048, 32, 4, 128, 6144, 151936, 40960, 128, 8, 768)
QWEN_1_5_MOE = ModelShape("", 24, 2048, 16, 16, 128, 5632, 151936, 8192, 60, 4, 1408, 5632)


@pytest.mark.parametrize(
    ("shape", "parameters", "used"),
    [
        (LLAMA_3_8B, 8.03e9, 8.03e9),
        (LLAMA_3_70B, 70.6e9, 70.6e9),
        (LLAMA_3_2_1B, 1.236e9, 1.236e9),
        (GPT_OSS_120B, 116.83e9, 5.13e9),
        (MIXTRAL_8X7B, 46.7e9, 12.9e9),
        (QWEN_3_30B, 30.5e9, 3.3e9),
        (QWEN_1_5_MOE, 14.3e9, 2.7e9),
    ],
)
def test_models_have_the_weights_that_their_makers_state(
    shape: ModelShape, parameters: float, used: float
) -> None:
    assert shape.parameters == pytest.approx(parameters, rel=0.01)
    # Makers round what is used to two or three digits; some leave out the embedding.
    around = shape.owner_parameters
    without_embedding = shape.layers * shape.used_parameters + shape.vocab * shape.dim
    whole = shape.layers * shape.used_parameters + around
    assert min(abs(without_embedding - used), abs(whole - used)) < 0.02 * used


@pytest.mark.parametrize(
    "sizes", [(8, 0, 64), (8, 9, 64), (8, 2, 0), (0, 2, 0), (0, 0, 64), (0, 0, 0, 64)]
)
def test_experts_that_make_no_sense_are_refused(sizes: tuple[int, ...]) -> None:
    names = ("experts", "experts_used", "expert_dim", "shared_dim")
    shape = msgspec.structs.asdict(SHAPE) | dict(zip(names, sizes, strict=False))
    data = msgspec.msgpack.encode({"files": [], "shape": shape})
    with pytest.raises(RemoteError, match="experts"):
        parse_manifest(data, ModelId(hashlib.sha256(data).hexdigest()))
