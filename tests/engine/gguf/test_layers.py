"""Which GGUF files are taken, and what a layer's own file holds. Needs no llama.cpp."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from gennode.engine.folders import read_folder_shape
from gennode.engine.gguf.folder import is_gguf, open_gguf
from gennode.engine.gguf.format import read_header
from gennode.engine.gguf.layers import open_file
from gennode.errors import ModelError
from tests.engine.gguf.making import LAYERS, settings_of, tensors_of, write

Model = tuple[Path, LlamaForCausalLM]


def test_the_shape_is_that_of_the_model(model: Model) -> None:
    folder = open_gguf(model[0] / "gguf" / "f16")
    shape = folder.gguf.shape
    config: Any = model[1].config
    assert (shape.layers, shape.dim, shape.heads, shape.kv_heads, shape.head_dim) == (
        6,
        256,
        4,
        2,
        64,
    )
    assert (shape.ffn_dim, shape.vocab, shape.max_positions) == (512, 300, 512)
    assert folder.gguf.epsilon == pytest.approx(config.rms_norm_eps)
    assert folder.gguf.weights == "f16"
    weights_bytes = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256) + 4 * 2 * 256
    assert weights_bytes < folder.gguf.layer_memory_bytes < weights_bytes + 10_000_000
    assert folder.gguf.end_tokens == {257}
    assert {file.name for file in folder.manifest.files} == {"model.gguf", "tokenizer.json"}
    assert folder.whole_layers() == list(range(LAYERS))
    assert read_folder_shape(folder.path) == shape
    assert is_gguf(folder.path)
    assert not is_gguf(model[0])


def test_a_layers_file_holds_that_layer_untouched(model: Model, tmp_path: Path) -> None:
    source = open_file(model[0] / "gguf" / "f16" / "model.gguf")
    whole = source.file.read_bytes()
    stream = io.BytesIO()
    source.write_layer(4, stream)
    (tmp_path / "layer.gguf").write_bytes(stream.getvalue())
    header = read_header(tmp_path / "layer.gguf")
    assert header.settings["llama.block_count"] == 1
    assert header.settings["tokenizer.ggml.model"] == "no_vocab"
    layer = {name: each for name, each in header.tensors.items() if name.startswith("blk.")}
    assert len(layer) == 9
    assert len(header.tensors) == 12
    for name, mine in layer.items():
        theirs = source.tensors[name.replace("blk.0.", "blk.4.")]
        assert mine.shape == theirs.shape
        assert (
            stream.getvalue()[mine.offset : mine.offset + mine.size_bytes]
            == whole[theirs.offset : theirs.offset + theirs.size_bytes]
        )


Change = Callable[[dict[str, Any], dict[str, Any]], None]
REFUSED: dict[str, tuple[Change, str]] = {
    "another kind": (lambda s, t: s.update({"general.architecture": "gemma"}), "gemma"),
    "no kind": (lambda s, t: s.pop("general.architecture"), "None"),
    "unknown setting": (lambda s, t: s.update({"llama.swa": 4}), "llama.swa"),
    "experts": (lambda s, t: s.update({"llama.expert_count": 8}), "experts"),
    "scaled positions": (lambda s, t: s.update({"llama.rope.scaling.type": "yarn"}), "scaled"),
    "missing setting": (lambda s, t: s.pop("llama.block_count"), "block_count"),
    "no layers": (lambda s, t: s.update({"llama.block_count": 0}), "block_count"),
    "too many layers": (lambda s, t: s.update({"llama.block_count": 2000}), "1024 layers"),
    "text for a number": (lambda s, t: s.update({"llama.block_count": "6"}), "block_count"),
    "uneven heads": (lambda s, t: s.update({"llama.attention.head_count_kv": 3}), "fit together"),
    "half turned": (lambda s, t: s.update({"llama.rope.dimension_count": 32}), "fit together"),
    "huge": (lambda s, t: s.update({"llama.feed_forward_length": 1 << 21}), "fit together"),
    "missing tensor": (lambda s, t: t.pop("blk.3.ffn_up.weight"), "blk.3.ffn_up"),
    "missing embedding": (lambda s, t: t.pop("token_embd.weight"), "embedding"),
    "further tensor": (lambda s, t: t.update({"blk.9.attn_q.weight": t["blk.0.attn_q.weight"]}),
                       "blk.9"),
    "other sizes": (lambda s, t: t.update({"blk.1.ffn_up.weight": t["blk.1.ffn_down.weight"]}),
                    "blk.1.ffn_up"),
    "norm in F16": (lambda s, t: t.update({"output_norm.weight": np.ones(256, np.float16)}),
                    "output_norm"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_by_name(model: Model, tmp_path: Path, name: str) -> None:
    change, named = REFUSED[name]
    settings, tensors = settings_of(model[1]), tensors_of(model[1])
    change(settings, tensors)
    write(tmp_path / "a.gguf", settings, tensors)
    with pytest.raises(ModelError, match=named) as caught:
        open_file(tmp_path / "a.gguf")
    assert caught.value.hint


def test_a_folder_has_one_file_and_a_tokenizer(model: Model, tmp_path: Path) -> None:
    data = (model[0] / "gguf" / "f16" / "model.gguf").read_bytes()
    with pytest.raises(ModelError, match="0 GGUF files"):
        open_gguf(tmp_path)
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="tokenizer"):
        open_gguf(tmp_path)
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(ModelError, match="2 GGUF files"):
        open_gguf(tmp_path)


def test_a_tied_head_is_known(model: Model, tmp_path: Path) -> None:
    tensors = tensors_of(model[1])
    del tensors["output.weight"]
    write(tmp_path / "a.gguf", settings_of(model[1]), tensors)
    assert open_file(tmp_path / "a.gguf").shape.tied
