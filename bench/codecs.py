"""How hidden states travel: bytes, what is lost, and the time to encode and decode.

Losses are taken on a random net with and without outliers (`_codec_net.py`), and on the bundled
trained model. Times are of one thread at dim 4096 and are the shortest of several rounds, since
whatever is slower was disturbed by others.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is loaded
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to find its neighbours

import numpy as np

from bench._codec_net import HOPS, NetShape, measure_net
from bench._codec_trained import MODEL, measure_trained
from bench._report import report
from gennode.wire.activations import NAMES, codec
from gennode.wire.fields import CodecName

DIM = 4096
DEFAULT: CodecName = "int8-outlier"
EXACT = ("raw", "lossless")
BATCHES = (1, 16, 128)
QUICK_NET = NetShape(dim=1024, ffn_dim=2048, heads=8, vocab=4096, sequences=1, tokens=48)
WHOLE_NET = NetShape(dim=4096, ffn_dim=4096, heads=32, vocab=8192, sequences=2, tokens=64)
SEED = 1
ROUNDS = 200  # of few calls each: some fall between what others do


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller net, within 50 s")
    quick = parser.parse_args().quick
    shape = QUICK_NET if quick else WHOLE_NET
    lossy = [name for name in NAMES if name not in EXACT and name != "bf16-planes"]
    say("timing …")
    states = heavy_states(max(BATCHES))
    times = {name: [times_us(name, states[:rows]) for rows in BATCHES] for name in NAMES}
    say(f"a random net of dim {shape.dim}, without outliers and with …")
    plain = measure_net(lossy, shape, outliers=False, seed=SEED)
    heavy = measure_net(lossy, shape, outliers=True, seed=SEED)
    say(f"answers of {MODEL} …")
    trained, positions = measure_trained(lossy, 1 if quick else 20)
    exact("raw", states, states)
    exact("lossless", states, states)
    exact("bf16-planes", states, codec("bf16").decode(codec("bf16").encode(states), DIM))
    token_bytes = {name: len(codec(name).encode(states)) / len(states) for name in NAMES}
    plain["bf16-planes"], heavy["bf16-planes"] = plain["bf16"], heavy["bf16"]  # see `exact`
    trained["bf16-planes"] = trained["bf16"]
    rows = []
    for name in NAMES:
        cells: list[str] = [name, f"{token_bytes[name]:.0f}"]
        if name not in EXACT:
            for net in (plain, heavy):
                cells += [f"{net[name].snr_db:.1f}", shown(net[name].kl_nats)]
            cells.append(shown(trained[name].kl_nats))
            cells.append(f"{trained[name].agreement[max(HOPS)]:.1%}")
        else:
            cells += ["exact", "0", "exact", "0", "0", "100.0%"]
        rows.append(cells)
    print(f"µs per token at dim {DIM}, one thread: encode + decode of 1 row, of 16, of 128")
    for name in NAMES:
        print(f"  {name:13}", *(f"{encode:8.1f} + {decode:5.1f}" for encode, decode in times[name]))
    print(f"\nBytes at dim {DIM}. Two random nets of dim {shape.dim}, {shape.sequences} ×")
    print(f"{shape.tokens} tokens; SNR without outlier channels. {MODEL}: dim 192, {positions}")
    print("positions of prompts and its answers. KL: mean divergence in nats after 1/3/7 hops;")
    print("same: share of positions whose likeliest token is the same after 7.")
    report(
        "codecs",
        {
            "default_bytes_per_element": round(token_bytes[DEFAULT] / DIM, 4),
            "default_kl_1hop_outliers": float(f"{heavy[DEFAULT].kl_nats[1]:.3g}"),
            "default_us_per_token_4096": round(sum(times[DEFAULT][0]), 1),
            "lossless_ratio": round(token_bytes["lossless"] / token_bytes["raw"], 4),
            "bf16_planes_ratio": round(token_bytes["bf16-planes"] / token_bytes["bf16"], 4),
        },
        columns=(
            "codec", "bytes", "dB", "KL, plain", "dB", "KL, outliers", "KL, trained", "same",
        ),
        rows=rows,
    )  # fmt: skip


def shown(kl_nats: dict[int, float]) -> str:
    """Divergences in the order of the hops, short."""
    return " ".join(f"{kl_nats[hops]:.1e}".replace("e-0", "e-") for hops in HOPS)


def say(text: str) -> None:
    """For whoever waits; the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


def heavy_states(rows: int) -> np.ndarray:
    """Normal states with six large channels, and two massive ones on the first token."""
    rng = np.random.default_rng(SEED)
    states = rng.standard_normal((rows, DIM)).astype(np.float32)
    channels = rng.choice(DIM, 8, replace=False)
    states[:, channels[:6]] *= 40
    states[0, channels[6:]] = 900, -450
    return states


def exact(name: CodecName, states: np.ndarray, expected: np.ndarray) -> None:
    """Stop unless this is, bit for bit, what comes back."""
    if codec(name).decode(codec(name).encode(states), DIM).tobytes() != expected.tobytes():
        raise SystemExit(f"{name} lost something")


def times_us(name: CodecName, states: np.ndarray) -> tuple[float, float]:
    """Microseconds per token to encode and to decode."""
    chosen, rows = codec(name), len(states)
    payload = chosen.encode(states)
    encode_us = _shortest_us(lambda: chosen.encode(states), rows)
    return encode_us / rows, _shortest_us(lambda: chosen.decode(payload, DIM), rows) / rows


def _shortest_us(act: Callable[[], object], rows: int) -> float:
    calls = max(1, 16 // rows)
    shortest = float("inf")
    for _ in range(ROUNDS // rows + 20):
        start_s = time.perf_counter()
        for _ in range(calls):
            act()
        shortest = min(shortest, (time.perf_counter() - start_s) / calls)
    return 1e6 * shortest


if __name__ == "__main__":
    main()
