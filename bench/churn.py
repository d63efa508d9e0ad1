"""Workers leave and join all the while, and readers go on asking: how many answers come right?

Twelve worker processes host thirds of a bundled model. For ten minutes a fifth of them leave in
each minute, at random moments, one by SIGKILL and the next by SIGTERM; for each a newcomer begins
at that moment. Four readers of one owner ask one prompt after another and take 20 tokens a second,
so that an answer is on its way for three seconds; its tokens are compared with one process's.

- right_fraction: whole answers with the right tokens, of all that were asked.
- wrong: whole answers with other tokens. refused: those that ended in an error. hung: neither.
- failovers: repairs of sessions. longest_gap_s: of any reader's waits between two tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path

from bench._report import report


def main() -> None:
    """Watch, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="six workers for 25 s; they leave five times as often"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `gennode join` sets it

    from bench._coming_and_going import Plan, watch

    plan = Plan(workers=12, leave_per_minute=0.2, duration_s=60 * options.minutes)
    if options.quick:
        plan = Plan(workers=6, leave_per_minute=1.0, duration_s=25.0)
    with tempfile.TemporaryDirectory(prefix="gennode-bench-") as folder:
        told = asyncio.run(watch(plan, Path(folder), options.seed, say))
    for kind in ("wrong", "refused", "hung"):
        for one in getattr(told, kind):
            say(f"{kind}: {one}")
    report(
        "churn",
        {
            "right_fraction": round(told.right / told.asked, 4),
            "asked": told.asked,
            "wrong": len(told.wrong),
            "refused": len(told.refused),
            "hung": len(told.hung),
            "failovers": told.failovers,
            "longest_gap_s": round(told.longest_gap_s, 2),
            "killed": told.left["SIGKILL"],
            "left": told.left["SIGTERM"],
            "came": told.came,
            "workers": plan.workers,
            "leave_per_minute": plan.leave_per_minute,
            "duration_s": plan.duration_s,
        },
    )


def say(text: str) -> None:
    """For whoever waits; the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
