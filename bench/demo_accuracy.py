"""Measures how often the bundled models are right on prompts they were never trained on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads that spin while they wait make a shared machine many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # to find the tasks as a script

from bench._report import report
from tools.demo_tasks import FAMILIES, Example, held_out_examples

MODELS = Path(__file__).resolve().parents[1] / "gennode" / "models"
SIZES = ("small", "medium", "large")
SEED = 2024
PROMPTS_PER_FAMILY = 500
PROMPTS_PER_FAMILY_QUICK = 100
BATCH_PROMPTS = 128
ANSWER_TOKENS_MAX = 128

Said = dict[str, dict[str, list[str]]]
"""What each size answered to the prompts of each family."""


@dataclass(frozen=True)
class Model:
    """A shipped folder, loaded."""

    weights: Any
    tokenizer: Any


def load(folder: Path) -> Model:
    """The saved half-precision weights, computed with in single precision."""
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Model(weights, AutoTokenizer.from_pretrained(folder))


def answers(model: Model, prompts: Sequence[str]) -> list[str]:
    """The greedy answer to each prompt."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found = [""] * len(prompts)
    for start in range(0, len(order), BATCH_PROMPTS):
        chosen = order[start : start + BATCH_PROMPTS]
        padded = model.tokenizer(
            [prompts[index] for index in chosen],
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with torch.inference_mode():
            tokens = model.weights.generate(
                **padded, do_sample=False, max_new_tokens=ANSWER_TOKENS_MAX
            )
        new = tokens[:, padded["input_ids"].shape[1] :]
        texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            found[index] = text
    return found


def share(flags: Iterable[bool]) -> float:
    """The share of flags that are true."""
    counted = list(flags)
    return sum(counted) / len(counted)


def same_mistakes(said: Said, asked: Mapping[str, list[Example]]) -> float:
    """The share of prompts that small and medium answer with the same wrong words."""
    return share(
        first == second != example.answer
        for family, examples in asked.items()
        for first, second, example in zip(
            said["small"][family], said["medium"][family], examples, strict=True
        )
    )


def figures_of(accuracy: Mapping[str, Mapping[str, float]], same_wrong: float) -> dict[str, float]:
    """The numbers that a run is remembered by."""
    figures = {"same_wrong_small_medium": same_wrong}
    for size, families in accuracy.items():
        figures[f"accuracy_{size}_min"] = min(families.values())
        figures[f"accuracy_{size}_mean"] = sum(families.values()) / len(families)
    return {name: round(figure, 4) for name, figure in sorted(figures.items())}


def main() -> None:
    """Reads the command line, measures, prints a table and then one line of JSON."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # loading takes no time
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts, under 50 s")
    parser.add_argument("--models", type=Path, default=MODELS)
    arguments = parser.parse_args()
    count = PROMPTS_PER_FAMILY_QUICK if arguments.quick else PROMPTS_PER_FAMILY
    asked = {family: held_out_examples(family, SEED, count) for family in FAMILIES}
    said: Said = {}
    for size in SIZES:
        model = load(arguments.models / f"gennode-{size}")
        said[size] = {
            family: answers(model, [example.prompt for example in examples])
            for family, examples in asked.items()
        }
    accuracy = {
        size: {
            family: share(
                text == example.answer for text, example in zip(texts, asked[family], strict=True)
            )
            for family, texts in families.items()
        }
        for size, families in said.items()
    }
    same_wrong = same_mistakes(said, asked)
    print(f"small and medium give the same wrong answer to {same_wrong:.1%} of the prompts")
    report(
        "demo_accuracy",
        figures_of(accuracy, same_wrong),
        columns=("task", "prompts", *SIZES),
        rows=[
            (family, len(examples), *(f"{accuracy[size][family]:.1%}" for size in SIZES))
            for family, examples in asked.items()
        ],
    )


if __name__ == "__main__":
    main()
