"""How often a token differs after a hop was replaced: to the bit, by rounding, or by precision.

Answers of the bundled model on its own tasks, through two hops with the usual codec in between.
From a random token on another worker has the second hop's layers. It was given the frames again,
several in a step and cut as they may be; then it is given the rest, one by one. A token counts as
another where it is not the one that came first, with all that precedes it being equal. Greedy and
seeded answers are counted alike.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import numpy as np

from bench._report import report
from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.sample import Sampling, choose
from gennode.engine.seam import Precision, States, StepInput
from gennode.wire.activations import codec
from gennode.wire.ids import Span
from tools.demo_tasks import FAMILIES, held_out_examples

MODEL = "gennode-large"
CODEC = codec("int8-outlier")
PROMPTS_PER_FAMILY, PROMPTS_PER_FAMILY_QUICK = 48, 6
TOKENS_MAX = 64
FRAME_ROWS = 128
MAX_POSITIONS = 512
TEMPERATURE = 2.0  # the most there is: at 1 the model is as sure of its answers as greedily
SEED = 6


@dataclass
class Session:
    """An answer, and the frames that its second hop was given for it."""

    number: int
    sampling: Sampling
    prompt: list[int]
    frames: list[tuple[int, States]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """The first follows the last frame of the prompt, and so on."""
    results: list[States] = field(default_factory=list)
    """The row that each token was chosen from, as the second hop gave it."""

    @property
    def prompt_frames(self) -> int:
        """How many frames the prompt has."""
        return -(-len(self.prompt) // FRAME_ROWS)


@dataclass
class Count:
    """Tokens that were compared, those whose states have the same bits, those that differ, and
    answers with one of these."""

    tokens: int = 0
    equal: int = 0
    flips: int = 0
    sessions: int = 0
    changed: int = 0

    def add(self, other: Count) -> None:
        """What was counted elsewhere as well."""
        self.tokens += other.tokens
        self.equal += other.equal
        self.flips += other.flips

    @property
    def rate(self) -> float:
        """The share of tokens that differ."""
        return self.flips / max(1, self.tokens)


class Bench:
    """A model's owner, and engines that have all its layers."""

    def __init__(self) -> None:
        folder = open_model(find_model(MODEL))
        layers = folder.manifest.shape.layers
        self.owner = LlamaOwner(folder)
        self.front, self.back = Span(0, layers // 2), Span(layers // 2, layers)
        self._folder = folder

    def engine(self, precision: Precision) -> LlamaShard:
        """A worker's engine."""
        shard = LlamaShard(self._folder, precision=precision)
        shard.load(Span(self.front.start, self.back.end))
        return shard

    def answer(self, precision: Precision, sessions: Sequence[Session]) -> None:
        """Generate all answers, in batches of all sessions that have not ended."""
        front, back = self.engine(precision), self.engine(precision)
        for one in sessions:
            front.open(one.number, self.front, MAX_POSITIONS)
            back.open(one.number, self.back, MAX_POSITIONS)
        running = list(sessions)
        while running:
            inputs = [
                StepInput(one.number, position, carried(self.owner.embed(tokens, position)))
                for one in running
                for position, tokens in [next_tokens(one)]
            ]
            middle = [carried(states) for states in front.step(inputs)]
            for one, item, states in zip(running, inputs, middle, strict=True):
                one.frames.append((item.position, states))
            results = back.step([StepInput(one.number, *one.frames[-1]) for one in running])
            for one, states in zip(running, results, strict=True):
                if len(one.frames) >= one.prompt_frames:
                    one.results.append(states[-1:])
                    one.tokens.append(self.token(one, len(one.tokens), states))
            running = [one for one in running if not self.is_over(one)]

    def is_over(self, one: Session) -> bool:
        """Whether an answer has ended."""
        if not one.tokens:
            return False
        return self.owner.is_end(one.tokens[-1]) or len(one.tokens) == TOKENS_MAX

    def token(self, one: Session, place: int, states: States) -> int:
        """The token at a place of an answer, from what the second hop gives before it."""
        logits = self.owner.logits(carried(states)[-1])
        return choose(logits, one.sampling, len(one.prompt) + place)

    def replaced(self, precision: Precision, sessions: Sequence[Session]) -> Count:
        """What a worker of this precision gives from a random token of each answer on."""
        engine, count, chance = self.engine(precision), Count(), random.Random(SEED)
        longer = [one for one in sessions if len(one.tokens) > 1]
        begins = {one.number: chance.randrange(1, len(one.tokens)) for one in longer}
        for one in longer:
            engine.open(one.number, self.back, MAX_POSITIONS)
            known = one.frames[: one.prompt_frames + begins[one.number] - 1]
            for window in windows(known, engine.cut_rows, chance):
                engine.step([StepInput(one.number, *frame) for frame in window])
        changed: set[int] = set()
        for step in range(TOKENS_MAX):
            running = [one for one in longer if begins[one.number] + step < len(one.tokens)]
            places = [begins[one.number] + step for one in running]
            inputs = [
                StepInput(one.number, *one.frames[one.prompt_frames - 1 + place])
                for one, place in zip(running, places, strict=True)
            ]
            for one, place, states in zip(running, places, engine.step(inputs), strict=True):
                count.tokens += 1
                count.equal += np.array_equal(states, one.results[place])
                if self.token(one, place, states) != one.tokens[place]:
                    count.flips += 1
                    changed.add(one.number)
        count.sessions, count.changed = len(longer), len(changed)
        return count


def next_tokens(one: Session) -> tuple[int, list[int]]:
    """The next step's position and tokens: a part of the prompt, or the token chosen last."""
    if one.tokens:
        return len(one.prompt) + len(one.tokens) - 1, one.tokens[-1:]
    start = len(one.frames) * FRAME_ROWS
    return start, one.prompt[start : start + FRAME_ROWS]


def carried(states: States) -> States:
    """States as the next hop gets them."""
    return np.ascontiguousarray(CODEC.decode(CODEC.encode(states), states.shape[1]))


def windows(
    frames: Sequence[tuple[int, States]], cut_rows: int, chance: random.Random
) -> list[list[tuple[int, States]]]:
    """Frames again, cut at random where they may be, several to a step."""
    found: list[list[tuple[int, States]]] = [[]]
    for position, states in frames:
        cuts = [rows for rows in range(cut_rows, len(states), cut_rows) if chance.random() < 0.2]
        for start, end in zip([0, *cuts], [*cuts, len(states)], strict=True):
            if chance.random() < 0.1 and found[-1]:
                found.append([])
            found[-1].append((position + start, states[start:end]))
    return found


def asked(bench: Bench, per_family: int, *, seeded: bool) -> list[Session]:
    """New sessions with all tasks' prompts."""
    prompts = [
        example.prompt
        for family in FAMILIES
        for example in held_out_examples(family, SEED, per_family)
    ]
    return [
        Session(
            number,
            Sampling(temperature=TEMPERATURE if seeded else 0.0, seed=number),
            bench.owner.tokenize(prompt),
        )
        for number, prompt in enumerate(prompts)
    ]


CASES: dict[str, tuple[Precision, Precision]] = {
    "same_class": ("int8", "int8"),
    "int8_after_fp32": ("fp32", "int8"),
    "fp32_rounding": ("fp32", "fp32"),
}
"""The precision of the worker that is lost, and of the one that takes its place."""


def main() -> None:
    """Answer, replace, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer prompts, within 50 s")
    per_family = PROMPTS_PER_FAMILY_QUICK if parser.parse_args().quick else PROMPTS_PER_FAMILY
    bench, rows = Bench(), []
    totals = {case: Count() for case in CASES}
    for seeded in (False, True):
        answered: dict[Precision, list[Session]] = {}
        for precision in ("int8", "fp32"):
            answered[precision] = asked(bench, per_family, seeded=seeded)
            bench.answer(precision, answered[precision])
        for case, (lost, standby) in CASES.items():
            count = bench.replaced(standby, answered[lost])
            totals[case].add(count)
            kind = "seeded" if seeded else "greedy"
            same_bits = f"{count.equal / count.tokens:.1%}"
            shown = (count.tokens, same_bits, count.flips, f"{count.rate:.3%}")
            rows.append((case, kind, *shown, f"{count.changed} of {count.sessions}"))
    report(
        "exactness",
        {f"flip_rate_{case}": round(count.rate, 6) for case, count in totals.items()}
        | {
            f"same_bits_{case}": round(count.equal / count.tokens, 4)
            for case, count in totals.items()
        }
        | {"tokens": sum(count.tokens for count in totals.values())},
        columns=(
            "replaced",
            "tokens are",
            "compared",
            "same bits",
            "differ",
            "share",
            "answers changed",
        ),
        rows=rows,
    )


if __name__ == "__main__":
    main()
