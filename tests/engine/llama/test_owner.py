"""The owner's end of a model: text in, text out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.seam import OwnerEngine
from gennode.errors import LocalError, ModelError, UsageError

Llamas = dict[str, tuple[Path, LlamaForCausalLM]]
TEXTS = ("plain words", "naïve café — 你好 🙂👍🏽", "", "a\n\tb  c")


@pytest.fixture(scope="module")
def owner(llamas: Llamas) -> OwnerEngine:
    return LlamaOwner(open_model(llamas["plain"][0]))


def test_sizes_and_end(owner: OwnerEngine) -> None:
    assert (owner.layers, owner.dim, owner.max_positions) == (4, 32, 512)
    assert owner.is_end(257)
    assert not owner.is_end(256)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_tokens(owner: OwnerEngine, text: str) -> None:
    tokens = owner.tokenize(text)
    assert tokens[0] == 256
    assert owner.detokenize(tokens) == text


def test_embed_takes_rows_and_logits_one_state(owner: OwnerEngine, llamas: Llamas) -> None:
    table = llamas["plain"][1].model.embed_tokens.weight.detach().numpy()
    np.testing.assert_array_equal(owner.embed([5, 299, 5], 0), table[[5, 299, 5]])
    assert owner.embed([], 0).shape == (0, 32)
    state = owner.embed([7], 3)
    assert owner.logits(state).shape == (300,)
    np.testing.assert_array_equal(owner.logits(state), owner.logits(state[0]))
    for token in (-1, 300):
        with pytest.raises(LocalError):
            owner.embed([token], 0)
    with pytest.raises(LocalError):
        owner.logits(state.astype(np.float64))


def test_a_prompt_that_is_no_text_is_a_usage_error(owner: OwnerEngine) -> None:
    for text in ("\ud800", "x" * (4 * 1024 * 1024 + 1)):
        with pytest.raises(UsageError) as caught:
            owner.tokenize(text)
        assert caught.value.hint


def test_end_tokens_may_be_several(llama_folder: Path) -> None:
    (llama_folder / "generation_config.json").write_text('{"eos_token_id": [3, 257]}')
    several = LlamaOwner(open_model(llama_folder))
    assert [token for token in range(300) if several.is_end(token)] == [3, 257]


def test_a_tokenizer_of_another_model_is_refused(llama_folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(llama_folder / "tokenizer.json"))
    tokenizer.add_tokens([f"word{index}" for index in range(100)])
    tokenizer.save(str(llama_folder / "tokenizer.json"))
    with pytest.raises(ModelError, match="358 tokens"):
        LlamaOwner(open_model(llama_folder))
