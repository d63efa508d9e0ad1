"""A tokenizer takes text, within bounds, and says so when its file is spoilt."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from gennode.engine.text.tokenizer import MAX_TEXT_CHARACTERS, ModelTokenizer
from gennode.errors import ModelError, UsageError

TEXTS = ("plain words", "naïve café — 你好 🙂👍🏽", "", "a\n\tb  c")


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_tokens(llama_folder: Path, text: str) -> None:
    tokenizer = ModelTokenizer(llama_folder, 300)
    tokens = tokenizer.encode(text)
    assert tokens[0] == 256
    assert tokenizer.encode(text, bare=True) == tokens[1:]
    assert tokenizer.decode(tokens) == text


def test_what_is_no_text_or_too_much_is_a_usage_error(llama_folder: Path) -> None:
    tokenizer = ModelTokenizer(llama_folder, 300)
    for text in ("\ud800", "x" * (MAX_TEXT_CHARACTERS + 1)):
        with pytest.raises(UsageError) as caught:
            tokenizer.encode(text)
        assert caught.value.hint


def test_settings_for_batches_do_not_cut_or_pad(llama_folder: Path) -> None:
    saved = Tokenizer.from_file(str(llama_folder / "tokenizer.json"))
    saved.enable_truncation(3)
    saved.enable_padding(length=8)
    saved.save(str(llama_folder / "tokenizer.json"))
    assert len(ModelTokenizer(llama_folder, 300).encode("four")) == 5
    assert len(ModelTokenizer(llama_folder, 300).encode("1")) == 2


def test_a_tokenizer_of_another_model_is_refused(llama_folder: Path) -> None:
    with pytest.raises(ModelError, match="258 tokens, the weights 200"):
        ModelTokenizer(llama_folder, 200)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b'{"version": "1.0", "model": 1}'])
def test_a_damaged_file_is_a_model_error(llama_folder: Path, content: bytes) -> None:
    (llama_folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        ModelTokenizer(llama_folder, 300)
