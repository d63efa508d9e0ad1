"""docs/models.md is what its generator writes, and the list of what is supported agrees."""

from __future__ import annotations

import os

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gennode.engine.checkpoint.architectures import SUPPORTED
from tools.write_models import EXACT, TABLE, Table, as_page, try_all

# A dozen of all kinds, so that the page can't be forgotten; the rest takes minutes.
REPRESENTATIVE = (
    *("gemma3_text", "gpt_neo", "bloom", "opt", "phi", "olmo2", "starcoder2"),
    *("qwen3_moe", "granitemoehybrid", "bert", "zamba2", "openai-gpt"),
)
WANTED = "TEST_ALL_MODELS"
IS_WANTED = os.environ.get(WANTED)


def stated() -> Table:
    """The verdicts that the page states."""
    lines = [line.strip("| \n").split(" | ") for line in TABLE.read_text().splitlines()]
    rows = [line for line in lines if line[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    return {name: EXACT if why in ("fast", "generic") else why for name, _, why in rows}


def test_the_page_is_what_the_generator_writes() -> None:
    found = stated()
    assert found.keys() == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
    assert TABLE.read_text() == as_page(found)
    assert {name for name, why in found.items() if why == EXACT} == SUPPORTED.keys()
    assert {name: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name] for name in SUPPORTED} == SUPPORTED


@pytest.mark.slow
def test_a_dozen_are_as_the_page_says() -> None:
    found = stated()
    assert try_all(REPRESENTATIVE) == {name: found[name] for name in REPRESENTATIVE}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not IS_WANTED, reason=f"takes minutes: set {WANTED}=1")
def test_all_are_as_the_page_says() -> None:
    assert try_all(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)) == stated()
