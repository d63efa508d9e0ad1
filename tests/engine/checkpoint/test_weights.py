"""A model folder is what it says it is, or is refused with the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gennode
from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.errors import ModelError
from gennode.wire.manifest import CHUNK_BYTES

WEIGHTS = "model.safetensors"


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def edit_weights(name: str, tensor: torch.Tensor | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        del tensors[name]
        if tensor is not None:
            tensors[name] = tensor
        save_file(tensors, folder / WEIGHTS)

    return edit


def write_index(**weight_map: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / f"{WEIGHTS}.index.json").write_text(text)

    return write


def only_pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def claim_huge_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + data[8:])


def move_offset_outside(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["model.norm.weight"]["data_offsets"][1] = 1 << 40
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def link_outside(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere.safetensors")


def write_manifest(folder: Path) -> None:
    data = msgspec.json.encode(open_model(folder).manifest)
    (folder / "manifest.json").write_bytes(data)


def flip_a_bit(folder: Path) -> None:
    write_manifest(folder)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def lose_a_listed_file(folder: Path) -> None:
    write_manifest(folder)
    (folder / "generation_config.json").unlink()


def add_a_file(folder: Path) -> None:
    write_manifest(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def spoil(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text('{"a": [')

    return write


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


Q = "model.layers.1.self_attn.q_proj.weight"
BAD_FOLDERS: list[tuple[Callable[[Path], None], str]] = [
    (lose("config.json"), "config.json"),
    (lose("tokenizer.json"), "tokenizer.json"),
    (lose(WEIGHTS), WEIGHTS),
    (only_pickled, "pickled"),
    (truncate, f"{WEIGHTS} is truncated or damaged"),
    (claim_huge_header, f"{WEIGHTS} claims a header"),
    (move_offset_outside, f"{WEIGHTS} is truncated or damaged"),
    (edit_weights(Q, None), f"no file of the model has the tensor {Q}"),
    (edit_weights(Q, torch.zeros(32, 31)), rf"{WEIGHTS}: {Q} has shape \[32, 31\]"),
    (edit_weights(Q, torch.zeros(32, 32, dtype=torch.int8)), f"{WEIGHTS}: {Q} is stored as I8"),
    (write_index(**{Q: "../model.safetensors"}), "no file of the folder"),
    (write_index(**{Q: "/etc/passwd"}), "no file of the folder"),
    (write_index(**{Q: "absent.safetensors"}), "absent.safetensors"),
    (write_index(**{Q: WEIGHTS}), "no file of the model has the tensor model.embed_tokens"),
    (write_index(**{"model.norm.weight": WEIGHTS, Q: WEIGHTS}), "no file of the model"),
    (spoil(f"{WEIGHTS}.index.json"), "index.json is malformed"),
    (link_outside, "link out of"),
    (flip_a_bit, f"{WEIGHTS}: chunk 0"),
    (lose_a_listed_file, "lacks generation_config.json"),
    (add_a_file, "chat_template.jinja is not in manifest.json"),
    (spoil("manifest.json"), "manifest.json is malformed"),
    (spoil("config.json"), "config.json"),
    (spoil("generation_config.json"), "generation_config.json is malformed"),
    (edit_config(hidden_size=1 << 40), "hidden_size"),
    (edit_config(num_hidden_layers=0), "num_hidden_layers"),
    (edit_config(num_hidden_layers=-1), "num_hidden_layers"),
    (edit_config(num_attention_heads=3, head_dim=None), "num_attention_heads"),
    (edit_config(num_key_value_heads=3), "num_key_value_heads"),
    (edit_config(head_dim=7), "head_dim is odd"),
    (edit_config(rms_norm_eps=-1.0), "rms_norm_eps"),
    (edit_config(vocab_size="many"), "vocab_size"),
    (edit_config(rope_parameters={"rope_type": "yarn"}), "yarn"),
    (edit_config(hidden_act="gelu"), "gelu"),
    (edit_config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
    (edit_config(architectures=[]), "llama, which is not supported"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_FOLDERS)
def test_a_bad_folder_is_refused_by_name_with_a_hint(
    llama_folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(llama_folder)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(llama_folder)
    assert caught.value.hint


def test_a_damaged_tokenizer_is_refused_by_the_owner(llama_folder: Path) -> None:
    (llama_folder / "tokenizer.json").write_text('{"model": {"type": "none"}}')
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        LlamaOwner(open_model(llama_folder))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        open_model(tmp_path / "absent")


def test_the_same_bytes_have_the_same_id_and_a_manifest_keeps_it(llama_folder: Path) -> None:
    model = open_model(llama_folder).manifest.model
    write_manifest(llama_folder)
    assert open_model(llama_folder).manifest.model == model
    assert open_model(llama_folder).manifest.shape.layers == 2


def test_chunks_are_hashed_with_progress_and_remembered(llama_folder: Path, tmp_path: Path) -> None:
    large = 2 * CHUNK_BYTES + 5
    tensors = load_file(llama_folder / WEIGHTS)
    tensors["unused"] = torch.zeros(large, dtype=torch.uint8)
    save_file(tensors, llama_folder / WEIGHTS)
    told: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    first = open_model(
        llama_folder, progress=lambda done, total: told.append((done, total)), cache=cache
    )
    weights = {file.name: file for file in first.manifest.files}[WEIGHTS]
    assert len(weights.chunks) == 3
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(file.size_bytes for file in first.manifest.files)
    assert open_model(llama_folder, cache=cache).manifest == first.manifest
    for entry in cache.iterdir():
        entry.write_text("spoilt")
    assert open_model(llama_folder, cache=cache).manifest == first.manifest
    (llama_folder / "tokenizer_config.json").write_text("{}")
    assert open_model(llama_folder, cache=cache).manifest != first.manifest


def test_sharded_files_are_read_by_the_index(llama_folder: Path) -> None:
    whole = LlamaOwner(open_model(llama_folder))
    tensors = load_file(llama_folder / WEIGHTS)
    (llama_folder / WEIGHTS).unlink()
    placed = {}
    for index, name in enumerate(sorted(tensors)):
        placed[name] = f"model-0000{index % 2}-of-00002.safetensors"
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in placed if placed[name] == file},
                  llama_folder / file)  # fmt: skip
    write_index(**placed)(llama_folder)
    sharded = LlamaOwner(open_model(llama_folder))
    np.testing.assert_array_equal(sharded.embed([1, 2], 0), whole.embed([1, 2], 0))


def test_a_hub_snapshot_may_link_to_its_blobs(llama_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in llama_folder.iterdir():
        (blobs / file.name).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / file.name)
    assert open_model(snapshot).manifest == open_model(llama_folder).manifest


def test_read_copies_only_what_was_asked_for(llama_folder: Path) -> None:
    model = open_model(llama_folder)
    found = model.read({"model.norm.weight": (32,)})
    truncate(llama_folder)  # what was read does not depend on the file any more
    assert found.shape == (32,)
    assert torch.isfinite(found).all()


def test_find_model_knows_names_and_paths(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    with pytest.raises(ModelError, match="no model 'gennode-huge'") as caught:
        find_model("gennode-huge")
    assert "gennode-small, gennode-medium, gennode-large" in caught.value.hint


def test_a_bundled_name_is_a_folder_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # not one of the current folder
    folder = Path(gennode.__file__).parent / "models" / "gennode-small"
    if folder.is_dir():
        assert find_model("gennode-small") == folder
    else:
        with pytest.raises(ModelError, match="not in this installation") as caught:
            find_model("gennode-small")
        assert caught.value.hint
