"""The engine on a GPU beside transformers: a random Llama of the 8 B shape in bf16."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import torch

from bench._engine_sides import CONTEXT, Ours, Side, Transformers, inputs
from bench._random_model import random_llama
from bench._report import median_of, report
from gennode.wire.manifest import ModelShape

LLAMA_8B = ModelShape(
    architecture="LlamaForCausalLM",
    layers=32,
    dim=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn_dim=14336,
    vocab=512,  # embedding and head are not measured; the published model has 128,256
    max_positions=8192,
)
QUICK_LAYERS = 4
ROUNDS, QUICK_ROUNDS = 9, 5
STEPS = 32
BATCH = 64
COPY_BYTES = 1 << 31
COPIES = 10


def measure_gpu(folder: Path, *, quick: bool) -> None:
    """Measure on the first CUDA device and report; needs 32 GB there, and 14 GB in `folder`.

    Layers alone, states in and out, as on the CPU. SystemExit where there is no such device.
    """
    if not torch.cuda.is_available():
        sys.exit("bench/engine.py --gpu needs a CUDA device that torch can use; there is none here")
    shape = msgspec.structs.replace(LLAMA_8B, layers=QUICK_LAYERS) if quick else LLAMA_8B
    print("writing random weights …", file=sys.stderr, flush=True)
    random_llama(folder, shape, seed=1)
    ours = Ours(folder, "bf16", "cuda")
    eager = Transformers(folder, torch.bfloat16, "cuda")
    prompt = inputs(CONTEXT, shape.dim, seed=0)
    for side in (ours, eager):
        side.fill([0], prompt)
    ours.fill(range(BATCH), prompt)
    turns: list[tuple[float, float, float, float]] = []
    for number in range((QUICK_ROUNDS if quick else ROUNDS) + 1):
        turn = (
            _decode_s(ours, shape.dim, 1),
            _decode_s(eager, shape.dim, 1),
            _decode_s(ours, shape.dim, BATCH),
            _copy_bytes_s(),
        )
        if number:  # the first warms up, and captures graphs where the engine has them
            turns.append(turn)
    weight_bytes = 2 * shape.layers * (shape.layer_parameters - 2 * shape.dim)
    single_s, eager_s, batch_s, copies = map(median_of, zip(*turns, strict=True))
    scale = shape.layers / LLAMA_8B.layers
    fraction = median_of(weight_bytes / copy / one for one, _, _, copy in turns)
    over_eager = median_of(other / one for one, other, _, _ in turns)
    batch = median_of(BATCH * one / many for one, _, many, _ in turns)
    report(
        "engine",
        {
            "gpu_bandwidth_fraction": round(fraction, 3),
            "gpu_over_transformers": round(over_eager, 2),
            "gpu_batch64_over_single": round(batch, 2),
            "gpu_copy_gb_s": round(copies / 1e9, 1),
            "layers": shape.layers,
        },
        columns=(f"{torch.cuda.get_device_name()}, layers alone, bf16", "tokens/s of 32 layers"),
        rows=[
            ("ours, single", scale / single_s),
            ("transformers, eager, single", scale / eager_s),
            (f"ours, batch {BATCH}", BATCH * scale / batch_s),
            ("ours, single, of weight bytes / copy bandwidth", fraction),
            ("ours, single, over transformers", over_eager),
            (f"ours, batch {BATCH} over single", batch),
        ],
    )


def _decode_s(side: Side, dim: int, batch: int) -> float:
    """Seconds of a step, the median of STEPS."""
    states = inputs(batch, dim, seed=1)
    times_s = []
    for position in range(CONTEXT, CONTEXT + STEPS):
        start_s = time.perf_counter()
        side.decode(range(batch), position, states)  # its result is on the CPU: it has ended
        times_s.append(time.perf_counter() - start_s)
    return median_of(times_s)


def _copy_bytes_s() -> float:
    """Bytes per second that a copy inside the device's memory reads and writes together."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    start_s = time.perf_counter()
    for _ in range(COPIES):
        target.copy_(source)
    torch.cuda.synchronize()
    return 2 * COPIES * COPY_BYTES / (time.perf_counter() - start_s)
