"""The two ends of a GGUF file: the same tokens, states and logits as transformers'."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from gennode.engine.gguf.folder import open_gguf
from gennode.engine.gguf.owner import GgufOwner
from gennode.engine.gguf.shard import GgufShard
from gennode.engine.seam import StepInput
from gennode.errors import LocalError
from gennode.wire.ids import Span
from tests.engine.gguf.conftest import needs_llama
from tests.engine.gguf.making import LAYERS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the library gguf is NOT INSTALLED"
)
Model = tuple[Path, LlamaForCausalLM]


@pytest.fixture
def owner(model: Model) -> GgufOwner:
    return GgufOwner(open_gguf(model[0] / "gguf" / "f16"))


def test_it_says_what_it_is(owner: GgufOwner, model: Model) -> None:
    assert (owner.dim, owner.layers, owner.max_positions) == (256, LAYERS, 512)
    assert owner.model == open_gguf(model[0] / "gguf" / "f16").manifest.model
    assert owner.is_end(257)
    assert not owner.is_end(256)


def test_text_goes_in_and_comes_out(owner: GgufOwner) -> None:
    tokens = owner.tokenize("abc")
    assert tokens[0] == 256
    assert owner.detokenize(tokens) == "abc"


def test_states_and_logits_are_those_of_the_weights(owner: GgufOwner, model: Model) -> None:
    library = model[1]
    tokens = [256, 1, 2, 299]
    embedding = library.model.embed_tokens.weight.detach().numpy()
    states = owner.embed(tokens, 0)
    assert states.dtype == np.float32
    assert np.allclose(states, embedding[tokens], atol=1e-4)
    assert owner.embed([], 0).shape == (0, 256)
    with torch.inference_mode():
        expected = library.lm_head(library.model.norm(torch.from_numpy(states[:1])))[0].numpy()
    assert np.allclose(owner.logits(states[0]), expected, atol=1e-2)
    assert np.abs(expected).max() > 1
    with pytest.raises(LocalError, match="vocabulary"):
        owner.embed([300], 0)
    with pytest.raises(LocalError, match="one float32 state"):
        owner.logits(states)


@needs_llama
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k"])
def test_a_whole_model_continues_a_text(kinds: Callable[[str], Path], kind: str) -> None:
    folder = open_gguf(kinds(kind))
    owner, shard = GgufOwner(folder), GgufShard(folder)
    shard.load(Span(0, LAYERS))
    shard.open("one", Span(0, LAYERS), 32)
    tokens = owner.tokenize("one two three")
    [states] = shard.step([StepInput("one", 0, owner.embed(tokens, 0))])
    logits = owner.logits(states[-1])
    assert logits.shape == (300,)
    assert np.isfinite(logits).all()
    assert logits.std() > 0.01
