"""The engine beside transformers and llama.cpp: one shape, one set of random weights, one run.

Layers alone on every side: states go in and come out, without embedding, final norm and head,
as a worker computes them. Sides take turns, and each figure is the median over the turns of a
ratio within one turn, so that whatever else runs on the machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import msgspec
import numpy as np

from bench._engine_gpu import measure_gpu
from bench._random_model import LLAMA_1B, random_llama
from bench._report import Figure, median_of, report
from gennode.wire.manifest import ModelShape

FP32, INT8 = "ours fp32", "ours int8"
EAGER = "transformers fp32"
F16, Q8 = "llama.cpp f16", "llama.cpp q8_0"
WEIGHT_BYTES = {FP32: 4.0, INT8: 1.0, EAGER: 4.0, F16: 2.0, Q8: 34 / 32}
"""Bytes per weight of a layer's matrices. Q8_0 has a scale of two bytes for every 32."""

BATCH = 8
PROMPT = 512
ERROR_STEPS = 16
BANDWIDTH_REPEATS = 3
START_S = time.perf_counter()
LLAMA_CPP = ("llama_cpp", "gguf")  # the packages that its sides take


@dataclass(frozen=True)
class Plan:
    """How much to measure; `prefill`: the sides that are timed with a prompt."""

    layers: int
    vocab: int
    rounds: int
    end_s: float
    single_steps: int
    batch_steps: int
    prefill: tuple[str, ...]


FULL = Plan(22, 32000, 7, 1200.0, 16, 8, (FP32, INT8, EAGER, F16, Q8))
QUICK = Plan(4, 512, 6, 44.0, 12, 6, (INT8, Q8))


@dataclass
class Turns:
    """What each round gave: seconds per step of each (case, side), and the memory's bytes/s."""

    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    bandwidth: list[float] = field(default_factory=list)

    def ratio(self, case: str, mine: str, other: str) -> float:
        """How many times faster `mine` is, the median over the rounds."""
        pairs = zip(self.seconds[case, mine], self.seconds[case, other], strict=True)
        return median_of(theirs / ours for ours, theirs in pairs)

    def rate(self, case: str, side: str, tokens: int) -> float:
        """Tokens per second, the median over the rounds."""
        return median_of(tokens / each for each in self.seconds[case, side])

    def fraction(self, side: str, shape: ModelShape) -> float:
        """Of the memory's measured speed, how much single decoding reads weights with."""
        read_bytes = WEIGHT_BYTES[side] * shape.layers * (shape.layer_parameters - 2 * shape.dim)
        pairs = zip(self.seconds["single", side], self.bandwidth, strict=True)
        return median_of(read_bytes / seconds / speed for seconds, speed in pairs)


class Child:
    """A side in its process; see bench/_engine_sides.py."""

    def __init__(self, name: str, folder: Path, layers: int) -> None:
        script = Path(__file__).with_name("_engine_sides.py")
        # As `gennode join` sets it; llama.cpp is quickest with its own.
        tamed = {} if name.startswith("llama") else {"GOMP_SPINCOUNT": "20000"}
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(script), name, str(folder), str(layers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **tamed},
        )

    def answer(self) -> dict[str, float]:
        """The next line it writes. RuntimeError if it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side {self.name!r} ended with {self.process.wait()}")
        result: dict[str, float] = json.loads(line)
        return result

    def tell(self, **request: str | int) -> None:
        """One request."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def ask(self, **request: str | int) -> dict[str, float]:
        """One request and its answer."""
        self.tell(**request)
        return self.answer()

    def close(self) -> None:
        """End it, at once."""
        self.process.kill()
        self.process.communicate()


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="finish within 50 s")
    parser.add_argument("--gpu", action="store_true", help="a random 8 B model in bf16 on CUDA")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    start_s = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # weights don't stay on the disk
    with tempfile.TemporaryDirectory(prefix="gennode-engine-") as path:
        if options.gpu:
            measure_gpu(Path(path), quick=options.quick)
            return
        plan = QUICK if options.quick else FULL
        if options.rounds:
            plan = Plan(**{**vars(plan), "rounds": options.rounds})
        _measure_cpu(Path(path), plan, start_s)


def _measure_cpu(folder: Path, plan: Plan, start_s: float) -> None:
    shape = msgspec.structs.replace(LLAMA_1B, layers=plan.layers, vocab=plan.vocab)
    sides = [FP32, INT8, EAGER]
    if missing := [name for name in LLAMA_CPP if importlib.util.find_spec(name) is None]:
        _say(f"NO llama.cpp HERE: {', '.join(missing)} not installed; its sides and the three "
             "int8 ratios to it are left out. pip install llama-cpp-python gguf")  # fmt: skip
    else:
        sides += [F16, Q8]
    with _children([*sides, "memory"], folder, plan.layers) as children:
        _write(folder, shape, sides)
        for child in children.values():  # one by one, for they'd wait for each other's threads
            child.ask(do="load")
            _say(f"{child.name} is loaded")
        turns = Turns()
        last_s = 0.0
        for number in range(plan.rounds + 1):  # the first warms caches
            begun_s = time.perf_counter() - start_s
            if number > 1 and begun_s + last_s > plan.end_s:
                break
            _round(children, sides, plan, turns if number else Turns(), backwards=number % 2 == 1)
            last_s = time.perf_counter() - start_s - begun_s
            _say(f"round {number} of {plan.rounds} …")
        errors = _errors(children, sides, folder)
        dependence = children[INT8].ask(do="dependence")["relative"]
    figures = _figures(turns, sides, shape) | {
        "int8_relative_error": _rounded(errors[INT8]),
        "int8_batch_dependence": _rounded(dependence),
    }
    report("engine", figures, columns=_COLUMNS, rows=_rows(turns, sides, shape, plan, errors))


def _write(folder: Path, shape: ModelShape, sides: Sequence[str]) -> None:
    _say(f"writing {shape.layers} layers of random weights …")
    random_llama(folder, shape, seed=1)
    if Q8 in sides:
        from bench._engine_gguf import quantise, write_f16

        write_f16(folder, shape, folder / "f16.gguf")
        quantise(folder / "f16.gguf", folder / "q8_0.gguf", os.cpu_count() or 1)


@contextlib.contextmanager
def _children(names: Sequence[str], folder: Path, layers: int) -> Iterator[dict[str, Child]]:
    """One process for each side, still without weights."""
    with contextlib.ExitStack() as stack:
        children = {}
        for name in names:
            children[name] = Child(name, folder, layers)
            stack.callback(children[name].close)
        yield children


def _round(
    children: Mapping[str, Child],
    sides: Sequence[str],
    plan: Plan,
    turns: Turns,
    *,
    backwards: bool,
) -> None:
    """Each case on each side; in every other round the last side begins."""
    order = list(reversed(sides)) if backwards else list(sides)
    speeds = []
    for side in order:
        seconds = children[side].ask(do="decode", batch=1, count=plan.single_steps)["seconds"]
        turns.seconds.setdefault(("single", side), []).append(seconds)
        memory = children["memory"].ask(do="read", count=BANDWIDTH_REPEATS)
        speeds.append(memory["bytes_per_s"])
    turns.bandwidth.append(max(speeds))  # whatever else runs can only make it seem slower
    for side in order:
        seconds = children[side].ask(do="decode", batch=BATCH, count=plan.batch_steps)["seconds"]
        turns.seconds.setdefault(("batch", side), []).append(seconds)
    for side in order:
        if side in plan.prefill:
            seconds = children[side].ask(do="prefill")["seconds"]
            turns.seconds.setdefault(("prefill", side), []).append(seconds)


def _errors(children: Mapping[str, Child], sides: Sequence[str], folder: Path) -> dict[str, float]:
    """The median over rows of |side - fp32| / |fp32|, after the last layer."""
    results = {}
    for number, side in enumerate(sides):
        file = folder / f"states-{number}.npy"
        children[side].ask(do="states", count=ERROR_STEPS, file=str(file))
        results[side] = np.load(file)
    exact = results[FP32]
    norms = np.linalg.norm(exact, axis=1)
    return {
        side: float(np.median(np.linalg.norm(states - exact, axis=1) / norms))
        for side, states in results.items()
    }


def _figures(turns: Turns, sides: Sequence[str], shape: ModelShape) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    if Q8 in sides:
        figures["int8_single_ratio"] = _rounded(turns.ratio("single", INT8, Q8))
        figures["int8_batch8_ratio"] = _rounded(turns.ratio("batch", INT8, Q8))
        figures["int8_prefill_ratio"] = _rounded(turns.ratio("prefill", INT8, Q8))
    figures["fp32_over_transformers"] = _rounded(turns.ratio("single", FP32, EAGER))
    figures["fp32_over_transformers_batch8"] = _rounded(turns.ratio("batch", FP32, EAGER))
    figures["fp32_bandwidth_fraction"] = _rounded(turns.fraction(FP32, shape))
    figures["bandwidth_gb_s"] = _rounded(median_of(turns.bandwidth) / 1e9)
    figures["layers"] = shape.layers
    return figures


_COLUMNS = (
    "side (layers alone, tokens/s of 22 layers)", "single", "of bandwidth", "batch 8",
    "prefill 512", "error",
)  # fmt: skip


def _rows(
    turns: Turns,
    sides: Sequence[str],
    shape: ModelShape,
    plan: Plan,
    errors: Mapping[str, float],
) -> Iterator[Sequence[Figure]]:
    scale = shape.layers / LLAMA_1B.layers
    for side in sides:
        prefill = turns.rate("prefill", side, PROMPT) * scale if side in plan.prefill else "–"
        yield (
            side,
            turns.rate("single", side, 1) * scale,
            turns.fraction(side, shape),
            turns.rate("batch", side, BATCH) * scale,
            prefill,
            errors[side],
        )
    yield f"memory, read: {median_of(turns.bandwidth) / 1e9:.1f} GB/s", *[""] * 5
    if shape.layers != LLAMA_1B.layers:
        yield f"measured with {shape.layers} of {LLAMA_1B.layers} layers, and scaled", *[""] * 5


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _say(text: str) -> None:
    print(f"{time.perf_counter() - START_S:.1f}", text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
