"""What a cache in 8 bits is told of keys and values is what they are like."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from gennode.engine.cache.pool import KvPool
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.attention import Rows
from gennode.engine.llama.model import load_layer, run_layer
from gennode.engine.llama.precision import arithmetic
from gennode.engine.llama.rotary import rotary_frequencies
from gennode.wire.ids import Span

CPU = torch.device("cpu")
POSITIONS = 512


def test_usual_sizes_are_those_that_keys_and_values_have(
    llamas: dict[str, tuple[Path, LlamaForCausalLM]],
) -> None:
    for variant in ("grouped", "biased"):
        folder = open_model(llamas[variant][0])
        config = folder.llama
        layer = load_layer(folder, 1, CPU, arithmetic("fp32", CPU), with_usual=True)
        assert layer.usual is not None
        pool = KvPool(config.kv_heads, config.head_width, pages=8)
        pool.add_layer(1)
        pool.open("s", Span(1, 2), POSITIONS)
        places = [pool.place("s", 0, POSITIONS)]
        chance = torch.Generator().manual_seed(0)
        states = torch.randn((POSITIONS, config.hidden_size), generator=chance)
        with torch.inference_mode():
            run_layer(layer, config, pool, Rows(places, rotary_frequencies(config)), states)
        for usual, found in zip(
            (layer.usual.keys, layer.usual.values), pool.read(1, places[0]), strict=True
        ):
            sizes = found.square().mean(dim=1).sqrt()
            ratio = sizes / usual
            assert (ratio / ratio.median() - 1).abs().max() < 0.12
            assert (sizes / sizes.median() - 1).abs().max() > 0.15  # there was something to know
