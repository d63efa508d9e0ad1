"""Many sessions on one worker: what batches that change with every step give, and what they cost.

One process, the worker's own queue and engine, no mesh. Sessions arrive at random (Poisson) and
have prompts and answers of random lengths. Beside them, in turns: the same sessions in batches
that are filled before they begin, all of them there from the start (what an offline job can
do); and frames one after the other in the order in which they come.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import msgspec
import numpy as np

if TYPE_CHECKING:
    from gennode.engine.seam import ShardEngine, States
    from gennode.node.actions import HopKey, OpenJob, StepJob
    from gennode.node.worker import Worker
    from gennode.wire.manifest import ModelShape

CACHE = Path(__file__).resolve().parent.parent / ".bench"
SESSIONS = 32
STATIC_BATCHES = (8, 16, 32)
PROMPT_ROWS, ANSWER_TOKENS = (16, 160), (16, 64)
CHUNK_ROWS = 128  # as owners send prompts
ARRIVING_SHARE = 0.3  # of the time that static batches take, in which sessions arrive on average
LONG_ROWS = 4096
LISTENERS = 8  # sessions that read their answers when the long prompt comes
CALM_STEPS = 24
SHARED_ROWS, OWN_ROWS = 512, 64  # a system prompt, and what differs


class Session(NamedTuple):
    """What somebody asks: when, rows of the prompt, tokens of the answer."""

    arrives_s: float
    prompt: int
    answer: int


@dataclass
class Run:
    """What came of some sessions."""

    wall_s: float = 0.0
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    @property
    def rate_token_s(self) -> float:
        return self.tokens / self.wall_s


class Desk:
    """One worker with its queue: whoever asks is a key, and a clock runs."""

    def __init__(self, worker: Worker) -> None:
        from gennode.node.batches import Batches

        self.worker, self.batches = worker, Batches()
        self._count = 0
        chance = np.random.default_rng(1)
        self._rows = chance.standard_normal((LONG_ROWS, worker.engine.dim), np.float32)

    def open(self, *, owner: int = 0) -> HopKey:
        """Ask for a new sequence; `work` tells when it is there."""
        from gennode.node.actions import HopKey, OpenJob
        from gennode.wire.ids import PeerId, SessionId, Span

        self._count += 1
        key = HopKey(SessionId(self._count.to_bytes(16, "little")), 0)
        model, whole = self.worker.engine.model, Span(0, self.worker.layers)
        who = PeerId(f"owner{owner or self._count}")
        self.batches.add(self.worker, OpenJob(model, key, 0, whole, 2 * LONG_ROWS, who))
        return key

    def close(self, key: HopKey) -> None:
        from gennode.node.actions import CloseJob

        self.batches.add(self.worker, CloseJob(self.worker.engine.model, key))

    def send(self, key: HopKey, position: int, rows: int, *, last: bool = True) -> None:
        """A frame of that many rows."""
        from gennode.node.actions import StepJob

        payload = self.states(position, rows).tobytes()
        model = self.worker.engine.model
        job = StepJob(model, key, 0, 0, position, rows, int(last), False, "raw", payload)
        self.batches.add(self.worker, job)

    def prompt(self, key: HopKey, rows: int, start: int = 0) -> None:
        """All frames of a prompt at once, as owners send them."""
        for first in range(start, rows, CHUNK_ROWS):
            end = min(rows, first + CHUNK_ROWS)
            self.send(key, first, end - first, last=end == rows)

    def states(self, position: int, rows: int) -> States:
        """Some inputs, not the same at each position."""
        first = position % (LONG_ROWS - rows + 1)
        return np.asarray(self._rows[first : first + rows])

    def work(self) -> Iterator[OpenJob | StepJob]:
        """One turn; what is done."""
        from gennode.errors import GennodeError
        from gennode.node.actions import OpenJob, StepJob

        for job, outcome in self.batches.work():
            if isinstance(outcome, GennodeError):
                raise outcome
            if isinstance(job, OpenJob | StepJob):
                yield job


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as `gennode join` sets it
    from bench._random_model import LLAMA_1B
    from bench._report import report

    small = msgspec.structs.replace(
        LLAMA_1B, layers=10, dim=1024, heads=16, ffn_dim=2816, vocab=512, max_positions=16384
    )
    large = msgspec.structs.replace(LLAMA_1B, vocab=512, max_positions=16384)
    names = {"113m": small} if options.quick else {"113m": small, "1.1b": large}
    figures, rows = dict[str, float](), list[tuple[str, ...]]()
    for name, shape in names.items():
        worker = a_worker(name, shape, options.precision)
        more, lines = measure(worker, 1 if options.quick else 3, options.quick)
        figures |= {
            key if name == "113m" else f"{key}_{name}": value for key, value in more.items()
        }
        rows += [(name, *line) for line in lines]
    report("batching", figures, columns=("shape", "", "value"), rows=rows)


def a_worker(name: str, shape: ModelShape, precision: Any) -> Worker:
    """A worker with all layers of a random model."""
    from bench._random_model import random_llama
    from gennode.engine.checkpoint.weights import open_model
    from gennode.engine.llama.shard import LlamaShard
    from gennode.node.worker import Worker
    from gennode.wire.ids import Span

    path = CACHE / f"random-llama-batching-{name}"
    say(f"loading {name} …")
    if not (path / "model.safetensors").exists():
        random_llama(path, shape, seed=1)
    engine = LlamaShard(open_model(path), precision=precision)
    engine.load(Span(0, shape.layers))
    return Worker(engine, shape.layers, shape.layers)


def say(text: str) -> None:
    """For whoever waits."""
    print(text, file=sys.stderr, flush=True)


def measure(
    worker: Worker, rounds: int, quick: bool
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Every comparison on one engine, side by side."""
    engine, desk = worker.engine, Desk(worker)
    warm_up(desk)
    ratios, tails, statics, runs = [], [], [], []
    for number in range(rounds):
        sessions = some_sessions(number)
        say(f"round {number + 1}: batches that are filled before …")
        static = {size: run_static(desk, sessions, size) for size in STATIC_BATCHES}
        size, best = max(static.items(), key=lambda one: one[1].rate_token_s)
        say(f"the best holds {size}; sessions that arrive at random …")
        run = run_arriving(desk, arriving(sessions, best.wall_s * ARRIVING_SHARE, number))
        ratios.append(run.rate_token_s / best.rate_token_s)
        tails.append(percentile(run.gaps_s, 0.99) / statistics.median(run.gaps_s))
        statics.append(best)
        runs.append(run)
    say("a long prompt in the middle …")
    ours = stall(desk, 48 if quick else 0)
    before = stall_in_order(engine, desk, 512 if quick else LONG_ROWS)
    say("prompts that begin alike …")
    cold_s, hit_s = shared_prefix(desk, 3 if quick else 7)
    figures = {
        "throughput_ratio": round(statistics.median(ratios), 3),
        "p99_over_median": round(statistics.median(tails), 3),
        "prefix_ttft_ratio": round(cold_s / hit_s, 2),
        "stall_steps": round(ours, 2),
        "stall_steps_in_order": round(before, 1),
    }
    gaps = [gap for run in runs for gap in run.gaps_s]
    first = [gap for run in runs for gap in run.first_s]
    lines = [
        ("layers", engine.profile().compute_class),
        ("tokens/s, arriving", f"{statistics.median(r.rate_token_s for r in runs):.1f}"),
        (
            "tokens/s, best static batch",
            f"{statistics.median(r.rate_token_s for r in statics):.1f}",
        ),
        ("between tokens, median, ms", f"{statistics.median(gaps) * 1e3:.1f}"),
        ("between tokens, p95, ms", f"{percentile(gaps, 0.95) * 1e3:.1f}"),
        ("between tokens, p99, ms", f"{percentile(gaps, 0.99) * 1e3:.1f}"),
        ("p99 over median", f"{figures['p99_over_median']:.2f}"),
        ("first token, median, ms", f"{statistics.median(first) * 1e3:.0f}"),
        (f"gap beside {LONG_ROWS} rows, p95, in steps", f"{ours:.2f}"),
        ("the same, frames in order", f"{before:.1f}" + " (512 rows)" * quick),
        (f"first token, {SHARED_ROWS} + {OWN_ROWS} rows, ms", f"{cold_s * 1e3:.0f}"),
        ("the same, prefix known, ms", f"{hit_s * 1e3:.0f}"),
    ]
    return figures, lines


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all are below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def some_sessions(seed: int) -> list[Session]:
    """Prompts and answers of random lengths, all there at once."""
    rng = random.Random(seed)
    draw = rng.randint
    return [Session(0.0, draw(*PROMPT_ROWS), draw(*ANSWER_TOKENS)) for _ in range(SESSIONS)]


def arriving(sessions: Sequence[Session], within_s: float, seed: int) -> list[Session]:
    """The same at random moments: a Poisson process."""
    rng, rate = random.Random(seed), len(sessions) / within_s
    moments = itertools.accumulate(rng.expovariate(rate) for _ in sessions)
    return [one._replace(arrives_s=when) for one, when in zip(sessions, moments, strict=True)]


def warm_up(desk: Desk) -> None:
    """First steps are slow, and the cost of each kind is learned, as after a minute of service."""
    run_arriving(desk, [Session(0.0, 40 + 16 * n, 6) for n in range(16)])


def run_static(desk: Desk, sessions: Sequence[Session], size: int) -> Run:
    """Batches of so many sessions; who has finished leaves, nobody comes before all have."""
    from gennode.engine.seam import StepInput
    from gennode.wire.ids import Span

    engine, run = desk.worker.engine, Run()
    whole = Span(0, desk.worker.layers)
    start_s = time.perf_counter()
    for first in range(0, len(sessions), size):
        group = dict(enumerate(sessions[first : first + size]))
        for key, one in group.items():
            engine.open(key, whole, 2 * LONG_ROWS)
            for at in range(0, one.prompt, CHUNK_ROWS):
                rows = min(CHUNK_ROWS, one.prompt - at)
                engine.step([StepInput(key, at, desk.states(at, rows))])
        for token in range(max(one.answer for one in group.values())):
            left = [key for key, one in group.items() if one.answer > token]
            ends = [group[key].prompt + token for key in left]
            batch = zip(left, ends, strict=True)
            engine.step([StepInput(key, end, desk.states(end, 1)) for key, end in batch])
            run.tokens += len(left)
        for key in group:
            engine.close(key)
    run.wall_s = time.perf_counter() - start_s
    return run


def run_arriving(desk: Desk, sessions: Sequence[Session]) -> Run:
    """Sessions come at their times; each asks for its next token as soon as it has one."""
    from gennode.node.actions import OpenJob

    run, waiting = Run(), list(sessions)
    running: dict[HopKey, tuple[Session, int, float]] = {}  # tokens so far, when the last came
    start_s = time.perf_counter()
    while waiting or running:
        now_s = time.perf_counter() - start_s
        if not running and waiting[0].arrives_s > now_s:
            time.sleep(waiting[0].arrives_s - now_s)
        while waiting and waiting[0].arrives_s <= time.perf_counter() - start_s:
            one = waiting.pop(0)
            running[desk.open()] = one, -1, start_s + one.arrives_s
        for job in desk.work():
            one, tokens, last_s = running[job.key]
            if isinstance(job, OpenJob):
                desk.prompt(job.key, one.prompt)
                continue
            end = job.position + job.rows
            if end < one.prompt:
                continue
            now_s = time.perf_counter()
            (run.gaps_s if tokens >= 0 else run.first_s).append(now_s - last_s)
            run.tokens += tokens >= 0
            if tokens + 1 == one.answer:
                desk.close(job.key)
                del running[job.key]
            else:
                running[job.key] = one, tokens + 1, now_s
                desk.send(job.key, end, 1)
    run.wall_s = time.perf_counter() - start_s
    return run


def stall(desk: Desk, steps: int) -> float:
    """The longest gap of sessions that read while a long prompt comes, in their own steps.

    `steps` 0: until the prompt is done; else so many tokens. The 95th percentile of gaps beside
    the prompt, over their median without it: the very longest belong to the machine.
    """
    keys = [desk.open() for _ in range(LISTENERS)]
    list(desk.work())
    for key in keys:
        desk.prompt(key, CHUNK_ROWS)
    for _ in range(2 * CALM_STEPS):  # all prompts done, and the first tokens
        _next_tokens(desk, keys)
    calm = [_next_tokens(desk, keys)[0] for _ in range(CALM_STEPS)]
    prompt, beside = desk.open(), []
    list(desk.work())
    desk.prompt(prompt, LONG_ROWS)
    for _ in range(steps or LONG_ROWS):
        gap_s, done = _next_tokens(desk, keys)
        beside.append(gap_s)
        if any(job.key == prompt and job.position + job.rows == LONG_ROWS for job in done):
            break
    for key in [*keys, prompt]:
        desk.close(key)
    return percentile(beside, 0.95) / statistics.median(calm)


def _next_tokens(desk: Desk, keys: Sequence[HopKey]) -> tuple[float, list[StepJob]]:
    """One turn, and each session that has a token asks for its next: seconds, what is done."""
    from gennode.node.actions import StepJob

    start_s = time.perf_counter()
    done = [job for job in desk.work() if isinstance(job, StepJob)]
    for job in done:
        if job.key in keys:
            desk.send(job.key, job.position + job.rows, 1)
    return time.perf_counter() - start_s, done


def stall_in_order(engine: ShardEngine, desk: Desk, rows: int) -> float:
    """The same where frames are computed in the order in which they came: one gap is enough."""
    from gennode.engine.seam import StepInput
    from gennode.wire.ids import Span

    whole = Span(0, desk.worker.layers)
    for key in (names := range(LISTENERS + 1)):
        engine.open(key, whole, 2 * LONG_ROWS)
        if key:
            engine.step([StepInput(key, 0, desk.states(0, CHUNK_ROWS))])
    times_s = []
    for number in range(CALM_STEPS):
        start_s = time.perf_counter()
        if number == CALM_STEPS - 1:
            for at in range(0, rows, CHUNK_ROWS):
                engine.step([StepInput(0, at, desk.states(at, CHUNK_ROWS))])
        at = CHUNK_ROWS + number
        engine.step([StepInput(key, at, desk.states(at, 1)) for key in names if key])
        times_s.append(time.perf_counter() - start_s)
    for key in names:
        engine.close(key)
    return times_s[-1] / statistics.median(times_s[:-1])


def shared_prefix(desk: Desk, rounds: int) -> tuple[float, float]:
    """Seconds to the first token of prompts that begin alike: of a new owner, and of a known."""
    from gennode.node.actions import StepJob

    took: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for times_s in took:
            key = desk.open(owner=10**6 + number)
            list(desk.work())
            start_s = time.perf_counter()
            desk.prompt(key, SHARED_ROWS)
            desk.send(key, SHARED_ROWS, OWN_ROWS - (times_s is took[1]))  # not the same
            while not any(
                isinstance(j, StepJob) and j.position == SHARED_ROWS for j in desk.work()
            ):
                pass
            times_s.append(time.perf_counter() - start_s)
            desk.close(key)
    return statistics.median(took[0]), statistics.median(took[1])


if __name__ == "__main__":
    main()
