"""An answer's text is given out as it comes, and never taken back."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.text.stream import TextStream

TEXTS = ("plain words", "naïve café — 你好 🙂👍🏽", "", "a\n\tb  c")


@pytest.fixture(scope="module")
def owner(llamas: dict[str, tuple[Path, LlamaForCausalLM]]) -> LlamaOwner:
    return LlamaOwner(open_model(llamas["plain"][0]))


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_adds_up_to_the_text_and_shows_no_half_character(
    owner: LlamaOwner, text: str
) -> None:
    stream = TextStream(owner.detokenize)
    pieces = [stream.push(token) for token in owner.tokenize(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_a_stream_does_not_wait_for_ever_for_broken_bytes(owner: LlamaOwner) -> None:
    stream = TextStream(owner.detokenize)
    half = owner.tokenize("🙂")[1:3]
    pieces = [stream.push(token) for token in half * 20]
    assert any(pieces)
    assert stream.push(owner.tokenize("x")[1]).endswith("x")
    assert stream.finish() == ""


def test_a_decoder_that_drops_a_first_space_keeps_the_later_ones() -> None:
    words = ["▁one", "▁two", "▁three"]
    tokenizer = Tokenizer.from_str(
        """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
        "split": true}, "model": {"type": "WordLevel", "unk_token": "▁one",
        "vocab": {"▁one": 0, "▁two": 1, "▁three": 2}}}"""
    )
    stream = TextStream(tokenizer.decode)
    assert [stream.push(token) for token in range(len(words))] == ["one", " two", " three"]
