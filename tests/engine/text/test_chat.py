"""Conversations become the text that a checkpoint's own template makes of them."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gennode.engine.checkpoint.weights import open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.seam import ChatMessage
from gennode.engine.text.chat import (
    MAX_MESSAGES,
    MAX_TEMPLATE_CHARACTERS,
    ChatTemplate,
    check_messages,
    read_template,
)
from gennode.engine.text.tokenizer import MAX_TEXT_CHARACTERS
from gennode.errors import ModelError, UsageError
from tests.engine.text.templates import ALL, TURNS

TALKS = {
    "one": [("user", "hi")],
    "told": [("system", " Be brief. \n"), ("user", "Why is <b> & 'c' é 🙂?\n")],
    "long": [
        ("system", "s"),
        ("user", "1 + 1"),
        ("assistant", "<t>\nhm\n</t>\n\n2 "),
        ("user", "<r>and</r>"),
        ("assistant", "{{ 7 * 6 }} {% raise %}"),
        ("user", "last"),
    ],
}


def said(*turns: tuple[str, str]) -> list[ChatMessage]:
    return [ChatMessage(role, content) for role, content in turns]


def configure(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    )


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", ALL)
def test_templates_give_what_transformers_gives(name: str, talk: str, llama_folder: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    configure(llama_folder, chat_template=ALL[name], **special)
    library = PreTrainedTokenizerFast.from_pretrained(llama_folder)
    messages = [{"role": role, "content": content} for role, content in TALKS[talk]]
    expected = library.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    template = read_template(llama_folder)
    assert template is not None
    assert template.special == special
    assert template.render(said(*TALKS[talk])) == expected
    tokens = library.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert LlamaOwner(open_model(llama_folder)).chat(said(*TALKS[talk])) == tokens
    assert tokens.count(256) == expected.count("<s>")


def test_a_begin_token_is_not_doubled_and_the_date_is_an_argument(llama_folder: Path) -> None:
    configure(llama_folder, bos_token={"content": "<s>"}, chat_template="{{ bos_token }}a")
    owner = LlamaOwner(open_model(llama_folder))
    assert owner.chat(said(("user", "x"))) == owner.tokenize("a")
    dated = ChatTemplate("{{ strftime_now('%d %B %Y') }}", {})
    now = datetime.fromisoformat("2031-02-03T04:05:06")
    assert dated.render(said(("user", "x")), now=now) == "03 February 2031"


def test_the_file_counts_before_the_config_and_of_several_the_default(llama_folder: Path) -> None:
    assert read_template(llama_folder) is None
    with pytest.raises(ModelError, match="no chat template") as caught:
        LlamaOwner(open_model(llama_folder)).chat(said(("user", "x")))
    assert caught.value.hint
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    configure(llama_folder, chat_template=named)
    assert read_template(llama_folder) == ChatTemplate("d", {})
    configure(llama_folder, chat_template=named[:1], eos_token=None)
    assert read_template(llama_folder) is None
    configure(llama_folder, chat_template="config's")
    (llama_folder / "chat_template.jinja").write_text("file's é")
    assert read_template(llama_folder) == ChatTemplate("file's é", {})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"chat_template": 7}'),
        ("tokenizer_config.json", b'{"bos_token": ["a"]}'),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b" " * (1024 * 1024 + 1)),
        ("chat_template.jinja", b"\xff"),
        ("chat_template.jinja", b"x" * (MAX_TEMPLATE_CHARACTERS + 1)),
        ("chat_template.jinja", b"x" * (1024 * 1024 + 1)),
    ],
)
def test_damaged_files_are_model_errors(llama_folder: Path, file: str, content: bytes) -> None:
    (llama_folder / file).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        read_template(llama_folder)
    assert caught.value.hint


def test_a_template_may_refuse_a_conversation() -> None:
    template = ChatTemplate(TURNS, {})
    with pytest.raises(ModelError, match="Roles must alternate"):
        template.render(said(("user", "a"), ("user", "b")))
    with pytest.raises(ModelError, match=r"\?\[2J") as caught:
        ChatTemplate("{{ raise_exception('\x1b[2J') }}", {}).render(said(("user", "a")))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "messages",
    [
        [],
        said(("user", "x")) * (MAX_MESSAGES + 1),
        said(("", "x")),
        said(("u" * 65, "x")),
        said(("user", "x" * MAX_TEXT_CHARACTERS), ("user", "y")),
        said(("user", "\ud800")),
    ],
)
def test_what_is_no_conversation_is_a_usage_error(messages: list[ChatMessage]) -> None:
    with pytest.raises(UsageError) as caught:
        check_messages(messages)
    assert caught.value.hint


def test_a_long_conversation_fits() -> None:
    messages = said(*[("user", "é" * 900), ("assistant", "x" * 900)] * 500)
    text = ChatTemplate(TURNS, {}).render(messages)
    assert text.count("x") == text.count("é") == 900 * 500
