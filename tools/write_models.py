"""Writes docs/models.md: tries every causal language model of transformers in three spans.

python -m tools.write_models            the whole table, in some minutes
python -m tools.write_models gemma2     tries single types and prints what comes of them
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gennode.engine.any.owner import AnyOwner
from gennode.engine.any.shard import AnyShard
from gennode.engine.checkpoint.any_config import parse_any
from gennode.engine.checkpoint.architectures import SUPPORTED
from gennode.engine.checkpoint.llama_config import FAMILY
from gennode.engine.checkpoint.weights import ModelFolder, open_model
from gennode.engine.seam import Logits, StepInput
from gennode.errors import GennodeError
from gennode.wire.ids import Span
from tools.tiny_models import NOT_TRIED, VOCABULARY, make_tiny

TABLE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
SPANS = (Span(0, 2), Span(2, 4), Span(4, 6))
PROMPT_TOKENS, ANSWER_TOKENS = 12, 3
EXACT = "exact"
PROMPT_ERROR = 1e-4  # of the largest logit: the head takes a prompt's rows one by one here

Table = Mapping[str, str]
"""`model_type` to EXACT, or to why not."""

_REASONS: dict[str, str] = {
    "deepseek_v4": "states between layers are several streams",
    "hy_v4": "states between layers are several streams",
    "gemma3n_text": "each layer has embeddings of its own, made of the tokens",
    "gemma4_assistant": "drafts for another model",
    "gemma4_unified_assistant": "drafts for another model",
    "minimax": "brings a cache of its own",
    "openai-gpt": "has no cache",
    "cpmant": "puts a prompt of its own before the tokens",
    "recurrent_gemma": "keeps its states in its modules",
    "rwkv": "keeps its states in a form of its own",
    "xlstm": "keeps its states in a form of its own",
    "zamba": "layers share weights",
    "zamba2": "layers share weights",
}
"""Why, in words, of models whose failure says less; others state what failed."""


def whole_logits(model: Any, tokens: Sequence[int]) -> Logits:
    """What the library's own model answers, a prompt first, then token by token."""
    parameters = inspect.signature(model.forward).parameters
    key = "past_key_values" if "past_key_values" in parameters else "cache_params"
    found, cache, position = [], None, 0
    for chunk in _chunks(tokens):
        wanted: dict[str, Any] = {"input_ids": torch.tensor([chunk]), "use_cache": True, key: cache}
        if "position_ids" in parameters:
            wanted["position_ids"] = torch.arange(position, position + len(chunk))[None]
        with torch.inference_mode():
            answer = model(**wanted)
        cache = answer[key]
        position += len(chunk)
        found.append(answer.logits[0].numpy())
    return np.concatenate(found)


def split_logits(folder: ModelFolder, tokens: Sequence[int]) -> Logits:
    """The same from an owner and one worker for each span."""
    owner, shards = AnyOwner(folder), []
    for span in SPANS:
        shard = AnyShard(folder)
        shard.load(span)
        shard.open("s", span, len(tokens))
        shards.append(shard)
    found: list[Logits] = []
    for chunk in _chunks(tokens):
        position = len(found)
        states = owner.embed(chunk, position)
        for shard in shards:
            [states] = shard.step([StepInput("s", position, states)])
        found += [owner.logits(row) for row in states]
    return np.array(found)


def _chunks(tokens: Sequence[int]) -> Iterator[list[int]]:
    yield list(tokens[:PROMPT_TOKENS])
    for token in tokens[PROMPT_TOKENS:]:
        yield [token]


def open_generic(folder: Path) -> ModelFolder:
    """A folder as the generic engine sees it, also where the fast one would take it."""
    with _all_supported():
        config = parse_any((folder / "config.json").read_bytes(), "config.json")
        return dataclasses.replace(open_model(folder), config=config)


@contextmanager
def _all_supported() -> Iterator[None]:
    """To try what is not in the list, too."""
    before = dict(SUPPORTED)
    SUPPORTED.update(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    try:
        yield
    finally:
        SUPPORTED.clear()
        SUPPORTED.update(before)


def verdict(model_type: str, folder: Path) -> str:
    """EXACT if spans of a tiny model give its own bits, else what went wrong."""
    chance = np.random.default_rng(1)
    tokens = chance.integers(2, VOCABULARY - 50, PROMPT_TOKENS + ANSWER_TOKENS).tolist()
    try:
        model = make_tiny(model_type, folder)
        expected = whole_logits(model, tokens)
    except Exception as error:  # noqa: BLE001 - task root: a model that is none is a finding
        return f"a tiny one could not be made: {type(error).__name__}"
    try:
        found = split_logits(open_generic(folder), tokens)
    except GennodeError as error:
        return str(error)
    if not np.array_equal(found[PROMPT_TOKENS:], expected[PROMPT_TOKENS:]):
        return "gives other logits in spans"
    worst = np.abs(found - expected).max() / np.abs(expected).max()
    return EXACT if worst < PROMPT_ERROR else "gives other logits in spans"


def try_all(model_types: Sequence[str]) -> Table:
    """Verdicts on these types."""
    found = {}
    for model_type in model_types:
        if model_type in NOT_TRIED:
            found[model_type] = NOT_TRIED[model_type]
            continue
        with tempfile.TemporaryDirectory() as folder:
            answer = verdict(model_type, Path(folder))
        found[model_type] = answer if answer == EXACT else _REASONS.get(model_type, answer)
    return found


def as_page(table: Table) -> str:
    """The text of docs/models.md."""
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    exact = [each for each in sorted(table) if table[each] == EXACT]
    rest = [each for each in sorted(table) if table[each] != EXACT]
    rows = [
        f"| {each} | {names[each]} | {'fast' if names[each] in FAMILY else 'generic'} |"
        for each in exact
    ]
    refused = [f"| {each} | {names[each]} | {table[each]} |" for each in rest]
    return "\n".join(
        [
            "# Models",
            "",
            "`python -m tools.write_models` wrote this page. It makes a tiny random checkpoint of",
            f"each causal language model of transformers {transformers.__version__}, saves it in",
            "Hugging Face format, and has three workers with two of its six layers each answer: a",
            f"prompt of {PROMPT_TOKENS} tokens, then {ANSWER_TOKENS} more. A model is supported if "
            "the logits of these",
            "tokens have the same bits as the library's own from the whole model. Real checkpoints",
            "were not downloaded: who uses one for the first time should compare an answer.",
            "",
            "The **generic** engine runs the library's own classes in fp32. The **fast** engine",
            "has code of its own, also in int8, and agrees with the library to rounding.",
            "Names are `model_type` and `architectures` of `config.json`. Checkpoints that are",
            "quantised or have text as one part of several are refused by name; code that one",
            "brings is never run. Refused too: rotary embeddings of type `dynamic`, for one",
            "sequence would change another's, and layers that share keys, embeddings or indices.",
            "Recurrent layers can go back 8 steps, others to anywhere.",
            "",
            f"## Supported: {len(exact)}",
            "| model_type | architecture | engine |",
            "|---|---|---|",
            *rows,
            "",
            f"## Not supported: {len(rest)}",
            "| model_type | architecture | why |",
            "|---|---|---|",
            *refused,
            "",
        ]
    )


def main(model_types: Sequence[str]) -> None:
    """Try some and print, or all and write the page."""
    if model_types:
        for model_type, answer in try_all(model_types).items():
            print(model_type, answer)
        return
    table = try_all(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    TABLE.write_text(as_page(table))
    exact = {each for each, answer in table.items() if answer == EXACT}
    print(f"{len(exact)} of {len(table)} are exact; see {TABLE}")
    for missing in sorted(exact ^ set(SUPPORTED)):
        print(f"checkpoint/architectures.py and the table disagree on {missing}")


if __name__ == "__main__":
    main(sys.argv[1:])
