"""One side of bench/engine.py in a process of its own: told what to time, one line at a time.

Each side has its own process, so that no side's idle threads take part in another's turn.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import msgspec
import numpy as np
import torch

from bench._random_model import LLAMA_1B
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.engines import shard_engine
from gennode.engine.options import EngineOptions
from gennode.engine.seam import Precision, States, StepInput
from gennode.wire.ids import Span
from gennode.wire.manifest import ModelShape

CONTEXT = 64  # positions that every decoded sequence has before
PROMPT = 512
BATCH = 8
POSITIONS = 640  # room for each sequence
GPU_CACHE_BYTES = 8 * 1024**3
LOUD = 50.0  # how much larger the other sequences' states are when one's bits are watched
BANDWIDTH_ELEMENTS = 1 << 27  # 512 MiB of fp32: far more than processors keep at hand


class Side(Protocol):
    """Layers that push states on; sequences 0 to BATCH - 1 decode, and BATCH takes prompts."""

    def fill(self, sequences: Sequence[int], states: States) -> States | None:
        """Empty these sequences, and give each the same prompt; the last one's results."""

    def decode(self, sequences: Sequence[int], position: int, states: States) -> States | None:
        """One row for each of the sequences, all at `position`."""


class Ours:
    """This project's engine, as a node would choose it for a precision."""

    def __init__(self, folder: Path, precision: Precision, device: str = "cpu") -> None:
        model = open_model(folder)
        options = EngineOptions(device=device, precision=precision)
        if device != "cpu":  # 64 sequences of an 8 B model
            options = dataclasses.replace(options, max_cache_bytes=GPU_CACHE_BYTES)
        self._shard = shard_engine(model, options)
        self._span = Span(0, model.config.shape.layers)
        self._shard.load(self._span)
        compute_class = self._shard.profile().compute_class
        if not compute_class.startswith(precision):
            raise RuntimeError(f"asked for {precision}, the engine computes {compute_class}")

    def fill(self, sequences: Sequence[int], states: States) -> States | None:
        result = None
        for sequence in sequences:
            self._shard.open(sequence, self._span, POSITIONS)
            [result] = self._shard.step([StepInput(sequence, 0, states)])
        return result

    def decode(self, sequences: Sequence[int], position: int, states: States) -> States | None:
        rows = enumerate(sequences)
        batch = [StepInput(each, position, states[row : row + 1]) for row, each in rows]
        return np.concatenate(self._shard.step(batch))


class Transformers:
    """The library's own model, eager, with its own attention and cache."""

    def __init__(
        self, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._cache_class = transformers.DynamicCache
        model = transformers.AutoModel.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self._model = model.eval().to(device)
        self._model.norm = torch.nn.Identity()  # the final norm is no layer's
        self._dtype, self._device = dtype, device
        self._caches: dict[int, transformers.DynamicCache] = {}

    def fill(self, sequences: Sequence[int], states: States) -> States | None:
        cache = self._cache_class(config=self._model.config)
        self._caches[len(sequences)] = cache
        batch = np.repeat(states[None], len(sequences), axis=0)
        result: States = self._run(batch, cache)[-1]
        return result

    def decode(self, sequences: Sequence[int], position: int, states: States) -> States | None:
        cache = self._caches[len(sequences)]
        if extra := cache.get_seq_length() - position:
            cache.crop(-extra)
        return self._run(states[:, None], cache)[:, 0]

    @torch.inference_mode()
    def _run(self, states: States, cache: object) -> States:
        rows = torch.from_numpy(np.ascontiguousarray(states)).to(self._device, self._dtype)
        result = self._model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
        return np.asarray(result.last_hidden_state.float().cpu().numpy())


class Gguf:
    """llama.cpp; its states are looked at only where they are asked for."""

    def __init__(self, file: Path, shape: ModelShape, *, tap: bool = False) -> None:
        from bench._engine_llamacpp import LlamaCpp

        self._engine = LlamaCpp(
            file,
            layers=shape.layers,
            dim=shape.dim,
            sequences=BATCH + 1,
            positions=POSITIONS,
            threads=torch.get_num_threads(),
            tap=tap,
        )
        self._length = dict.fromkeys(range(BATCH + 1), 0)

    def fill(self, sequences: Sequence[int], states: States) -> States | None:
        result = None
        for sequence in sequences:
            self._engine.truncate(sequence, 0)
            self._length[sequence] = len(states)
            result = self._engine.step(states, [(sequence, row) for row in range(len(states))])
        return result

    def decode(self, sequences: Sequence[int], position: int, states: States) -> States | None:
        for sequence in sequences:
            if self._length[sequence] > position:
                self._engine.truncate(sequence, position)
            self._length[sequence] = position + 1
        return self._engine.step(states, [(sequence, position) for sequence in sequences])


class Memory:
    """How fast memory can be read: the best of some sums of 512 MiB of fp32, on all cores."""

    def __init__(self) -> None:
        self._numbers = torch.ones(BANDWIDTH_ELEMENTS)

    def bytes_per_s(self, repeats: int) -> float:
        times_s = []
        for _ in range(repeats):
            start_s = time.perf_counter()
            self._numbers.sum()
            times_s.append(time.perf_counter() - start_s)
        return self._numbers.nbytes / min(times_s)


def inputs(rows: int, dim: int, seed: int) -> States:
    """States as large as those that the random folder's embedding gives."""
    chance = np.random.default_rng(seed)
    states: States = chance.standard_normal((rows, dim), dtype=np.float32)
    states *= dim**-0.5
    return states


def decode_s(side: Side, dim: int, batch: int, steps: int) -> float:
    """Seconds of a step, the median; the sequences are at CONTEXT at first, as `fill` left them."""
    sequences = range(batch)
    states = inputs(steps * batch, dim, seed=1).reshape(steps, batch, dim)
    times_s = []
    for step in range(steps):
        start_s = time.perf_counter()
        side.decode(sequences, CONTEXT + step, states[step])
        times_s.append(time.perf_counter() - start_s)
    return statistics.median(times_s)


def prefill_s(side: Side, dim: int) -> float:
    """Seconds that a prompt takes in an empty sequence."""
    states = inputs(PROMPT, dim, seed=2)
    start_s = time.perf_counter()
    side.fill([BATCH], states)
    return time.perf_counter() - start_s


def outputs(side: Side, dim: int, steps: int) -> States:
    """What comes out of a prompt and some single steps after it; the same inputs on all sides."""
    states = inputs(CONTEXT + steps, dim, seed=3)
    results = [side.fill([0], states[:CONTEXT])]
    for position in range(CONTEXT, CONTEXT + steps):
        results.append(side.decode([0], position, states[position : position + 1]))
    tapped: States = np.concatenate([each for each in results if each is not None])
    return tapped


def dependence(side: Side, dim: int) -> float:
    """How far a row moves when others in its batch are LOUD times larger, relative."""
    side.fill(range(BATCH), inputs(CONTEXT, dim, seed=4))
    states = inputs(BATCH, dim, seed=5)
    quiet = side.decode(range(BATCH), CONTEXT, states)
    states[1:] *= LOUD
    loud = side.decode(range(BATCH), CONTEXT, states)
    assert quiet is not None
    assert loud is not None
    return float(np.linalg.norm(loud[0] - quiet[0]) / np.linalg.norm(quiet[0]))


def _make(name: str, folder: Path, shape: ModelShape, *, tap: bool = False) -> Side:
    if name.startswith("ours "):
        return Ours(folder, "int8" if name == "ours int8" else "fp32")
    if name == "transformers fp32":
        return Transformers(folder)
    return Gguf(folder / f"{name.removeprefix('llama.cpp ')}.gguf", shape, tap=tap)


def main() -> None:
    """Load at the first line on standard input, say so, and answer those that follow."""
    name, path, layers = sys.argv[1:]
    shape = msgspec.structs.replace(LLAMA_1B, layers=int(layers))
    folder = Path(path)
    if name.startswith("transformers"):
        importlib.import_module("transformers.models.llama.modeling_llama")  # takes a while
    if not sys.stdin.readline():  # until the weights are written
        return
    memory = Memory() if name == "memory" else None
    side = None if memory else _make(name, folder, shape)
    if side:
        for sequences in (range(1), range(BATCH)):
            side.fill(sequences, inputs(CONTEXT, shape.dim, seed=0))
    print(json.dumps({"loaded": name}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if memory:
            answer = {"bytes_per_s": memory.bytes_per_s(request["count"])}
        elif side:
            answer = _answer(side, request, lambda: _make(name, folder, shape, tap=True), shape.dim)
        print(json.dumps(answer), flush=True)


def _answer(
    side: Side, request: dict[str, Any], tapped: Callable[[], Side], dim: int
) -> dict[str, float]:
    """What a request asks for; `tapped` loads llama.cpp once more, with its states looked at."""
    kind = request["do"]
    if kind == "decode":
        return {"seconds": decode_s(side, dim, request["batch"], request["count"])}
    if kind == "prefill":
        return {"seconds": prefill_s(side, dim)}
    if kind == "dependence":
        return {"relative": dependence(side, dim)}
    seen = tapped() if isinstance(side, Gguf) else side
    np.save(request["file"], outputs(seen, dim, request["count"]))
    return {}


if __name__ == "__main__":
    main()
