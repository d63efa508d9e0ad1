"""Placing layers: our plan, the optimum, and the rules of Parallax and Petals on the same pools.

Random pools (`_pools.py`) of 8 to 256 machines and three models, 60 of each; `flow` judges all.

crashes                pools, those that can't hold the model included, where our planner raised,
                       held more than a machine can, or was wrong about what is missing
optimum_ratio_min      of 2 to 6 machines: what flows through ours over the best pipelines there are
                       (`_optimum.py`); the worst pool
parallax_ratio_median  our tokens per second over Parallax's (`_parallax.py`), at the latency that
petals_ratio_median    Parallax (Petals, `_petals.py`) chose (`_trial.py`); pools where it places
                       nothing are left out
worst_ratio            the least of all those ratios
plan_30_s              seconds that a plan for 30 machines (1,000, 10,000) takes: the slowest
                       model, each the median of three (10,000: of one); one process, at the
                       end; in short all of one, and 10,000 for the 70B alone
parallax_crashes       pools where Parallax's published code would have raised

Pools where ours gets less than 0.98 of a rival's are printed with their seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from bench._pools import MODELS, pool_of
from bench._report import Figure, median_of, report
from bench._trial import Duel, Result, Task, run
from gennode.sharding.plan.plan import plan

SIZES = (8, 12, 16, 24, 64, 256)
FULL_POOLS = 60
QUICK = {8: 3, 12: 1, 16: 1, 24: 1, 64: 1}
OPTIMUM_SIZES = (2, 3, 4, 5, 6)
QUICK_OPTIMA = 2
WORSE = 0.98
PLAN_SIZES, PLAN_RUNS = (30, 1000, 10_000), 3
COLUMNS = ("peers", "pools", "lack", "rival", "ratio", "worst", "latency", "alone", "raises")


def tasks(counts: dict[int, int], optima: int) -> Iterator[Task]:
    """The largest first, so that no process is left with one at the end."""
    for size in sorted(counts, reverse=True):
        for seed in range(counts[size]):
            for model in range(len(MODELS)):
                yield Task(seed, size, model)
    for size in OPTIMUM_SIZES:
        for seed in range(optima):
            for model in range(len(MODELS)):
                yield Task(seed, size, model, optimum=True)


def judged(work: Sequence[Task]) -> Iterator[Result]:
    """All results, as they come, on all cores; what is worth knowing at once goes to stderr."""
    with multiprocessing.get_context("fork").Pool() as processes:
        for count, result in enumerate(processes.imap_unordered(run, work), 1):
            for line in _remarks(result):
                print(line, file=sys.stderr, flush=True)
            if count % 50 == 0:
                print(f"{count} of {len(work)} pools", file=sys.stderr, flush=True)
            yield result


def _remarks(result: Result) -> Iterator[str]:
    if result.crash:
        yield f"crash: {result.task}: {result.crash}"
    for duel in result.duels:
        if duel.ratio < WORSE:
            what = f"ratio={duel.ratio:.3f} rival={duel.rival} limit_s={duel.limit_s:.4f}"
            yield f"worse: {result.task} {what}"
    if result.optimum is not None and result.optimum < WORSE:
        yield f"worse: {result.task} ratio={result.optimum:.3f} rival=optimum"


def plan_s(size: int, *, quick: bool) -> float:
    """Seconds of a plan for so many machines, for the slowest of the models."""
    slowest_s = 0.0
    for model in MODELS[1:2] if quick and size == max(PLAN_SIZES) else MODELS:
        snapshot = pool_of(1, size, model).snapshot(model.demand().step_limit_s)
        took_s = []
        for _ in range(1 if quick or size == max(PLAN_SIZES) else PLAN_RUNS):
            begun_s = time.perf_counter()
            plan(snapshot)
            took_s.append(time.perf_counter() - begun_s)
        slowest_s = max(slowest_s, median_of(took_s))
    return slowest_s


def duels_of(results: Iterable[Result], rival: str) -> list[Duel]:
    """All duels with one rival."""
    return [duel for result in results for duel in result.duels if duel.rival == rival]


def latency(duels: Iterable[Duel]) -> float:
    """The median of our latency over theirs at equal throughput, where it was looked for."""
    found = [duel.ours_limit_s / duel.limit_s for duel in duels if duel.ours_limit_s]
    return median_of(found) if found else 0.0


def rows(results: Sequence[Result]) -> Iterator[tuple[Figure, ...]]:
    """Per size, model and rival."""
    for size in sorted({result.task.size for result in results}):
        for index, model in enumerate(MODELS):
            some = [one for one in results if one.task.size == size and one.task.model == index]
            for rival in ("parallax", "petals"):
                duels = duels_of(some, rival)
                ratios = [duel.ratio for duel in duels]
                yield (
                    f"{size} {model.name}",
                    len(some),
                    sum(not one.fits for one in some),
                    rival,
                    median_of(ratios) if ratios else "none",
                    min(ratios) if ratios else "none",
                    latency(duels),
                    sum(rival in one.alone for one in some),
                    sum(one.parallax_crashed for one in some) if rival == "parallax" else "",
                )


def main() -> None:
    """Judge, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller pools")
    parser.add_argument(
        "--pools", type=int, default=FULL_POOLS, help="of each size and model, in a full run"
    )
    options = parser.parse_args()
    quick = options.quick
    full = tasks(dict.fromkeys(SIZES, max(1, options.pools)), max(1, options.pools))
    work = list(tasks(QUICK, QUICK_OPTIMA) if quick else full)
    results = list(judged(work))
    duelled = [one for one in results if not one.task.optimum]
    shares = [one.optimum for one in results if one.optimum is not None]
    ratios = {rival: duels_of(duelled, rival) for rival in ("parallax", "petals")}
    figures: dict[str, Figure] = {
        "crashes": sum(bool(one.crash) for one in results),
        "optimum_ratio_min": round(min(shares), 4),
        "optimum_ratio_median": round(median_of(shares), 4),
    }
    for rival, duels in ratios.items():
        figures[f"{rival}_ratio_median"] = round(median_of(duel.ratio for duel in duels), 3)
        figures[f"{rival}_latency_ratio_median"] = round(latency(duels), 3)
    figures["worst_ratio"] = round(min(duel.ratio for one in ratios.values() for duel in one), 3)
    for size in PLAN_SIZES:
        figures[f"plan_{size}_s"] = round(plan_s(size, quick=quick), 3)
    figures["parallax_crashes"] = sum(one.parallax_crashed for one in duelled)
    figures["pools"] = len(results)
    figures["pools_that_lack"] = sum(not one.fits for one in results)
    table = list(rows(duelled)) + [
        (name, "", "", "", figure, "", "", "", "") for name, figure in figures.items()
    ]
    report("allocator", figures, columns=COLUMNS, rows=table)


if __name__ == "__main__":
    main()
