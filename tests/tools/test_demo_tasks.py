"""The tasks are repeatable, right and split; the shipped models are small and load."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.demo_tasks import (
    ANIMALS,
    FAMILIES,
    MOODS,
    Example,
    examples,
    held_out_examples,
    is_held_out,
)

MODELS = Path(__file__).resolve().parents[2] / "gennode" / "models"
FOLDERS = [MODELS / f"gennode-{size}" for size in ("small", "medium", "large")]
FAMILY_BYTES_MAX = 12_000_000
DRAWN = 300
SENTENCE_WORDS_MIN = 4


def drawn(family: str, *, held_out: bool, seed: int = 7) -> list[Example]:
    """The first examples of one side of the split."""
    source: Iterator[Example] = examples(family, random.Random(seed), held_out=held_out)
    return list(islice(source, DRAWN))


def is_right(example: Example) -> bool:
    """Checks an answer by counting on another road than the task took."""
    words, answer = example.prompt.removesuffix(" =").split(), example.answer.split()
    match words:
        case ["add", first, second]:
            return int(answer[0]) - int(second) == int(first)
        case ["sort", *items]:
            left = list(items)
            for word in answer:
                left.remove(word)
            ranks = [int(word) if word.isdigit() else ord(word) for word in answer]
            return not left and all(one <= next_one for one, next_one in pairwise(ranks))
        case ["reverse", word]:
            (said,) = answer
            size = len(word)
            return len(said) == size and all(said[size - 1 - i] == word[i] for i in range(size))
        case ["count", "from", first, "to", last]:
            numbers = [int(word) for word in answer]
            steps = {after - before for before, after in pairwise(numbers)}
            return (numbers[0], numbers[-1], steps) == (int(first), int(last), {1})
        case ["count", wanted, "in", *items]:
            units = items if len(items) > 1 else list(items[0])
            return answer == [str(sum(unit == wanted for unit in units))]
        case ["find", wanted, "in", *table]:
            return answer == [table[table.index(wanted) + 1]]
        case _:
            return is_english(example)


def is_english(example: Example) -> bool:
    """Whole sentences about the animals of the prompt, and no word from nowhere."""
    sentences = example.answer.strip().removesuffix(".").split(". ")
    named = [word for word in re.findall("[a-z]+", example.prompt) if word in ANIMALS]
    wishes = [mood.wish for name, mood in MOODS.items() if name in example.prompt.split()]
    capitals = all(sentence[0].isupper() for sentence in sentences[1:])
    long_enough = all(len(sentence.split()) >= SENTENCE_WORDS_MIN for sentence in sentences)
    about = all(ANIMALS[name].home in example.answer for name in named)
    wished = all(wish in example.answer for wish in wishes)
    return example.answer.endswith(".") and capitals and long_enough and about and wished


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_draws_the_same_examples_again(family: str) -> None:
    assert drawn(family, held_out=False) == drawn(family, held_out=False)
    assert drawn(family, held_out=False) != drawn(family, held_out=False, seed=8)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_right(family: str, held_out: bool) -> None:
    wrong = [one for one in drawn(family, held_out=held_out) if not is_right(one)]
    assert not wrong


@pytest.mark.parametrize("family", FAMILIES)
def test_no_held_out_prompt_is_trained_on(family: str) -> None:
    trained = {example.prompt for example in drawn(family, held_out=False)}
    kept = {example.prompt for example in held_out_examples(family, seed=5, count=50)}
    assert kept
    assert not trained & kept
    assert not any(is_held_out(prompt) for prompt in trained)


def test_the_twin_of_a_held_out_sum_is_held_out_too() -> None:
    for example in held_out_examples("addition", seed=3, count=50):
        _, first, second, _ = example.prompt.split()
        assert is_held_out(f"add {second} {first} =")


def test_the_shipped_family_is_small_and_shares_one_tokenizer() -> None:
    files = [path for folder in FOLDERS for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) <= FAMILY_BYTES_MAX
    assert len({(folder / "tokenizer.json").read_bytes() for folder in FOLDERS}) == 1


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_shipped_folder_loads_and_answers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("sort 2 1 =", return_tensors="pt", return_token_type_ids=False)
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=8)[0]
    assert tokens[-1] == tokenizer.eos_token_id
    new = tokens[prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == " 1 2"
