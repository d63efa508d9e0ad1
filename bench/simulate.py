"""Seeded stories of failing swarms: are all answers identical, and how much faster than life?

Each story runs whole sessions on the product's own machines in virtual time, over a network of
volunteers (20 to 240 ms there and back, 10 to 60 ms of computing per hop and token), while
workers crash, hang, restart, leave and slow down, networks split and clocks jump. `identical`
counts stories of which every answer is identical to that of one machine that never fails, or
ended in one clear error; `refused` those errors, `abandoned` prompts whose owner vanished.
`life_speed` is virtual time by the wall clock over all processes, `life_speed_per_core` by the
processor time of one.
"""

from __future__ import annotations

import argparse
import sys
import time

from bench._report import Figure, report
from gennode.errors import LocalError
from gennode.node.stories.telling import Tally, cores, tell_all

SEEDS, QUICK_SEEDS = 500, 40


def main() -> int:
    """Tell the stories and report; 1 if one of them did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} stories")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=cores())
    chosen = parser.parse_args()
    seeds = QUICK_SEEDS if chosen.quick else chosen.seeds
    tally, broken, tokens = Tally(), 0, 0
    start_s = time.monotonic()
    for told in tell_all(range(seeds), chosen.jobs):
        try:
            tally.add(told)
        except LocalError as error:
            broken += 1
            print(f"{error}; try {error.hint}", file=sys.stderr, flush=True)
        tokens += told.story.wrong
    wall_s = time.monotonic() - start_s
    figures: dict[str, Figure] = {
        "seeds": seeds,
        "identical": tally.stories,
        "broken": broken,
        "wrong": tokens,
        "answers": tally.prompts,
        "answers_right": tally.right,
        "refused": tally.refused,
        "abandoned": tally.abandoned,
        "faults": sum(tally.faults.values()),
        "failovers": tally.failovers,
        "events": tally.events,
        "virtual_h": round(tally.virtual_s / 3600, 2),
        "longest_wait_s": round(tally.longest_wait_s, 1),
        "wall_s": round(wall_s, 1),
        "jobs": chosen.jobs,
        "life_speed": round(tally.virtual_s / wall_s, 1),
        "life_speed_per_core": round(tally.speed_per_core, 1),
    }
    rows: list[tuple[Figure, ...]] = list(figures.items())
    rows += [(f"fault: {name}", count) for name, count in sorted(tally.faults.items())]
    rows += [(f"path: {name}", count) for name, count in sorted(tally.paths.items())]
    report("simulate", figures, columns=("figure", "value"), rows=rows)
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
