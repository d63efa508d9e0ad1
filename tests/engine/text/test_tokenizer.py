"""A tokenizer takes text, within bounds, and says so when its file is spoilt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def with_rule(folder: Path, rule: dict[str, Any]) -> None:
    """Have text changed by this rule before it is cut."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": rule}))


def test_rules_that_blow_text_up_are_refused_and_usual_ones_are_not(llama_folder: Path) -> None:
    longer = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}
    with_rule(llama_folder, {"type": "Sequence", "normalizers": [longer, longer]})
    with pytest.raises(ModelError, match="as long"):
        ModelTokenizer(llama_folder, 300)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    with_rule(llama_folder, {"type": "Sequence", "normalizers": [prepend, space]})
    assert ModelTokenizer(llama_folder, 300).encode("a b")


def test_a_rule_that_never_ends_is_the_models_fault(llama_folder: Path) -> None:
    endless = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}
    with_rule(llama_folder, endless)
    with pytest.raises(ModelError, match="damaged"):
        ModelTokenizer(llama_folder, 300).encode("a" * 64 + "c")
