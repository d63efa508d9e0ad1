"""A worker is hurt in the middle of an answer: how long until the next token, and which?

Three worker processes host a model of the 1.1 B shape in int8: one its first half, two the other
half. Whichever of the two serves is hurt at a random moment of an answer of 48 tokens; what comes
is compared with an undisturbed session of another owner.

- *_gap_*_s: the longest wait between two tokens at the owner, from the moment of the fault on.
- replay_compute_s: how long the other worker computed up to the next token after a kill (median).
- kill_wait_*_s: the gap less that.
- identical, of `trials`: answers with the undisturbed session's tokens.
- restart_gap_s: from asking anew, with as many positions as were there in the middle, to the
  first token (median): the wait without repairs, less the time to notice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench._report import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench._faults import Fault, Plan, Trial

CACHE = Path(__file__).resolve().parent.parent / ".bench"
QUICK_LAYERS = 8  # of the 22


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--kills", type=int, help="as many, and no other faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `gennode join` sets it

    from bench._faults import Plan, measure
    from bench._random_model import LLAMA_1B, random_llama

    times: dict[Fault, int] = {"kill": 20, "stop": 5, "leave": 5}
    layers, tokens, repeats = LLAMA_1B.layers, 48, 5
    if options.quick:
        times = {"kill": 2, "stop": 1, "leave": 1}
        layers, tokens, repeats = QUICK_LAYERS, 24, 2
    if options.kills:
        times = {"kill": options.kills}
    faults = [fault for fault, count in times.items() for _ in range(count)]
    chance = random.Random(options.seed)
    chance.shuffle(faults)
    plan = Plan(layers, tokens, tuple(faults), repeats, options.threads)
    model = CACHE / f"random-llama-1.1b-{layers}-layers"
    if not (model / "model.safetensors").exists():
        say("writing a random model …")
        random_llama(model, msgspec.structs.replace(LLAMA_1B, layers=layers), seed=1)
    with tempfile.TemporaryDirectory(prefix="gennode-bench-") as folder:
        trials, again_s = asyncio.run(measure(model, Path(folder), plan, chance, say))
    show(plan, trials, again_s)


def say(text: str) -> None:
    """For whoever waits; the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


def show(plan: Plan, trials: Sequence[Trial], again_s: Sequence[float]) -> None:
    """A row per kind of fault, and the figures."""
    from bench._faults import PROMPT_LETTERS, SIGNALS

    of = {fault: [one for one in trials if one.fault == fault] for fault in SIGNALS}
    of = {fault: some for fault, some in of.items() if some}
    figures: dict[str, float | int | str] = {}
    for fault, some in of.items():
        figures[f"{fault}_gap_median_s"] = _median([one.gap_s for one in some])
        figures[f"{fault}_gap_worst_s"] = round(max(one.gap_s for one in some), 3)
    kills = of["kill"]
    waits_s = [max(0.0, one.gap_s - one.replay_s) for one in kills]
    figures |= {
        "kill_wait_median_s": _median(waits_s),
        "kill_wait_worst_s": round(max(waits_s), 3),
        "replay_compute_s": _median([one.replay_s for one in kills]),
        "restart_gap_s": _median(again_s),
        "median_token_s": _median([one.token_s for one in trials]),
        "identical": sum(one.is_same for one in trials),
        "trials": len(trials),
        "prompt_tokens": PROMPT_LETTERS,
        "answer_tokens": plan.tokens,
        "layers": plan.layers,
    }
    rows = [
        (
            fault, len(some), figures[f"{fault}_gap_median_s"], figures[f"{fault}_gap_worst_s"],
            _median([one.replay_s for one in some]), sum(one.is_same for one in some),
        )
        for fault, some in of.items()
    ]  # fmt: skip
    again = ("ask again", len(again_s), _median(again_s), round(max(again_s), 3), "", "")
    columns = (
        f"{plan.layers} layers", "times", "gap median s", "worst s", "of it computing s",
        "same tokens",
    )  # fmt: skip
    report("failover", figures, columns=columns, rows=[*rows, again])


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
