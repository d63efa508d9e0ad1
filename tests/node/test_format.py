"""What a worker holds its layers in decides how many it takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.folders import open_folder
from gennode.engine.gguf.folder import GgufFolder
from gennode.engine.gguf.shard import SLOTS
from gennode.engine.seam import CachePrecision, Precision
from gennode.errors import UsageError
from gennode.node.format import Format, Wish, format_of, narrowest
from gennode.sharding.capacity import account
from gennode.wire.manifest import ModelShape
from tests.engine.conftest import make_llama
from tests.engine.gguf.making import make as make_gguf

# Of Llama 3.1 8B.
SHAPE = ModelShape("LlamaForCausalLM", 32, 4096, 32, 8, 128, 14336, 128256, 131072)
OTHER = msgspec.structs.replace(SHAPE, architecture="Gemma2ForCausalLM")
MEMORY_BYTES = 8 << 30


def layers(precision: Precision, cache: CachePrecision = "fp32", device: str = "cpu") -> int:
    held = format_of(SHAPE, None, precision, Wish(cache=cache, device=device))
    return held.account(SHAPE, MEMORY_BYTES).fitting_layers


def test_narrower_weights_and_caches_make_room_for_more_layers() -> None:
    exact = account(SHAPE, MEMORY_BYTES).fitting_layers
    assert layers("fp32") == exact
    assert exact <= layers("fp32", "int8") < layers("bf16") < layers("int8")
    assert layers("int8") < layers("int8", "int8")
    assert layers("int8", "int8") > 3.5 * exact
    assert layers("bf16", device="cuda:1") > layers("bf16")  # with caches in bf16 as well


def test_the_early_check_takes_the_narrowest_that_may_be_settled_on() -> None:
    assert narrowest(SHAPE, None, Wish()) == Format("int8", "fp32", "int8-cpu")
    assert narrowest(SHAPE, None, Wish(device="gpu")) == Format("fp16", "fp32", "fp16-cuda")
    wish = Wish("bf16", "int8")
    assert narrowest(SHAPE, None, wish) == Format("bf16", "int8", "bf16-kv8-cpu")


def test_only_the_llama_family_has_a_choice() -> None:
    assert narrowest(OTHER, None, Wish()) == Format("fp32", "fp32", "fp32-cpu")
    assert narrowest(OTHER, None, Wish("fp32")) == Format("fp32", "fp32", "fp32-cpu")
    for wish, option in ((Wish("int8"), "--precision"), (Wish(cache="int8"), "--cache")):
        with pytest.raises(UsageError) as caught:
            narrowest(OTHER, None, wish)
        assert option in caught.value.hint
    # A line's next version may be of another family than the one before.
    assert format_of(OTHER, None, "int8", Wish(cache="int8")).compute_class == "fp32-cpu"


def test_a_gguf_counts_what_llama_cpp_takes_and_all_of_its_slots(tmp_path: Path) -> None:
    make_gguf(tmp_path)
    folder = open_folder(tmp_path / "gguf" / "f16")
    assert isinstance(folder, GgufFolder)
    shape = folder.manifest.shape
    held = narrowest(shape, folder, Wish())
    assert (held.precision, held.compute_class) == ("auto", "gguf-f16-cpu")
    cache_bytes = SLOTS * shape.max_positions * shape.position_elements * 2
    each_bytes = folder.gguf.layer_memory_bytes + cache_bytes
    found = held.account(shape, 3 * each_bytes + 1000)
    assert found.fitting_layers == 3
    assert found.caches_bytes >= 3 * cache_bytes
    assert held.account(shape, 3 * each_bytes - 1000).fitting_layers == 2
    for wish in (Wish("int8"), Wish(cache="int8")):
        with pytest.raises(UsageError, match="GGUF"):
            narrowest(shape, folder, wish)


def test_a_format_names_the_class_that_engines_have(tmp_path: Path) -> None:
    from gennode.engine.engines import shard_engine
    from gennode.engine.llama.shard import LlamaShard
    from gennode.engine.options import EngineOptions

    make_llama(tmp_path, num_hidden_layers=1, head_dim=32)
    folder = open_model(tmp_path)
    wish = Wish("fp32", "int8")
    held = narrowest(folder.manifest.shape, folder, wish)
    assert held.precision != "auto"
    engine = shard_engine(folder, EngineOptions(precision=held.precision, cache=held.cache))
    assert isinstance(engine, LlamaShard)
    assert engine.compute_class == held.compute_class == "fp32-kv8-cpu"
