"""Real workers find their places, and find them again when one comes or is killed.

Five processes of different speed (`--share`: each rests between its steps) host 24 layers that
fit on them once. `off_by_layers` is how far a worker's part of the plan is from its share of
the speed that all announce; `moved_by_join` how many others move when one more comes;
`recover_s` the time from a SIGKILL until live workers announce every layer again. A prompt is
asked all the while; `answers_right` of `answers` have the tokens of one process.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench._flexible import watch, watch_a_kill
from bench._report import median_of, report

ROUNDS = 3


def main() -> None:
    """Run the story a few times and report the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three workers, and a kill alone")
    if parser.parse_args().quick:
        _quick()
        return
    outcomes = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="gennode-bench-") as folder:
            outcomes.append(asyncio.run(watch(Path(folder), _say)))
    asked = [one.asked for one in outcomes]
    report(
        "moves",
        {
            "settle_s": round(median_of(one.settle_s for one in outcomes), 1),
            "off_by_layers": round(max(one.off_by_layers for one in outcomes), 2),
            "moved_by_join": max(one.moved_by_join for one in outcomes),
            "recover_s": round(median_of(one.recover_s for one in outcomes), 1),
            "recover_s_max": round(max(one.recover_s for one in outcomes), 1),
            "answers": sum(one.right + one.wrong + len(one.failures) for one in asked),
            "answers_right": sum(one.right for one in asked),
            "rounds": ROUNDS,
        },
    )


def _quick() -> None:
    with tempfile.TemporaryDirectory(prefix="gennode-bench-") as folder:
        recover_s, asked = asyncio.run(watch_a_kill(Path(folder), _say))
    answers = asked.right + asked.wrong + len(asked.failures)
    figures = {
        "recover_s": round(recover_s, 1),
        "answers": answers,
        "answers_right": asked.right,
        "rounds": 1,
    }
    report("moves", figures)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
