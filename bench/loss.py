"""One packet in twenty lost at 200 ms of round trip: how much slower do tokens come?

An owner and three workers, each on a host of its own in a lab of network namespaces, in rings of
TCP connections. Every packet takes 100 ms from any host to any other one. Answers with and
without losses take turns, by the same processes and connections; only the links change. A hop's
frame is two packets: the model has the widths of 1.1 B parameters. Needs Linux and root.

- tokens_per_s_*: tokens after the first over the time that they took, over all rounds.
- ratio: with 5 % of all packets lost, each way, over without.
- first_token_*_s: from asking to the first token, for a prompt of 24 tokens.
- repairs: times that the owner took a hop for dead; nothing died.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench._random_model import LLAMA_1B, random_llama
from bench._report import Figure, report
from bench._swarm_processes import room_for
from bench.nat import Talker
from localnet.natlab import Lab, Link, available

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"
LAYERS = 8  # of the 22: enough for a frame's way to weigh as it does
WORKERS = {"worker1": "0:3", "worker2": "3:6", "worker3": "6:8"}
HOSTS = ("owner", *WORKERS)
ONE_WAY_MS = 100.0
LOSS = 0.05
PORT = 4001
# A packet crosses its sender's link and its receiver's: each has half of the way, and of the luck.
CALM = Link(delay_ms=ONE_WAY_MS / 2)
LOSSY = Link(delay_ms=ONE_WAY_MS / 2, loss=1 - (1 - LOSS) ** 0.5)
PROMPT = "what came of 24 tokens"  # each letter is one, and the beginning


@dataclass
class Side:
    """What came of the answers over one kind of links."""

    gaps_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    repairs: list[str] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """Of all tokens but the first ones."""
        return len(self.gaps_s) / sum(self.gaps_s)

    def gap_s(self, share: float) -> float:
        """What this share of all tokens take at most."""
        return sorted(self.gaps_s)[int(share * (len(self.gaps_s) - 1))]


class Swarm:
    """The owner and the workers on their hosts."""

    def __init__(self, lab: Lab, folder: Path, model: Path) -> None:
        self._lab, self._folder, self._model = lab, folder, model
        self._asked = 0

    def raise_all(self) -> None:
        """Workers one after the other, so that each knows those before; then the owner."""
        known: list[str] = []
        room = room_for(3, msgspec.structs.replace(LLAMA_1B, layers=LAYERS))
        for name, layers in WORKERS.items():
            command = ["gennode", "join", "--json", "--model", str(self._model)]
            command += ["--layers", layers, "--memory", str(room), "--precision", "int8"]
            command += ["--host", self._lab.address(name), "--port", str(PORT)]
            command += ["--state", str(self._folder / name), "--leash"]
            for address in known:
                command += ["--bootstrap", address]
            known.append(self._talk(name, command).hear()["addresses"][0])
            say(f"{name} serves layers {layers}")
        self._owner = self._talk("owner", ["bench._loss_owner", str(self._model), *known])
        self._owner.hear()

    def _talk(self, host: str, command: Sequence[str]) -> Talker:
        log = self._folder / f"{host}.log"
        process = self._lab.popen(
            host,
            [sys.executable, "-m", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self._folder)},
        )
        return Talker(process, log)

    def attach(self, link: Link) -> None:
        """Give every host this link."""
        for host in HOSTS:
            self._lab.set_link(host, link)

    def ask(self, tokens: int, side: Side) -> None:
        """One answer."""
        self._asked += 1  # no two prompts are the same, or workers would know the first frames
        told = self._owner.ask({"prompt": f"{self._asked:02} {PROMPT}"[:23], "tokens": tokens})
        times_s = told["times_s"]
        side.first_s.append(times_s[0])
        side.gaps_s += [end - start for start, end in itertools.pairwise(times_s)]
        side.repairs += told["repairs"]


def main() -> None:
    """Measure, print, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 24 tokens a side")
    parser.add_argument(
        "--congestion",
        default="reno",
        help="TCP's congestion control on all hosts; the default backs off no less than cubic, "
        "and a kernel lets every namespace have it",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if reason := available():
        raise SystemExit(f"no lab can run here: {reason}")

    model = CACHE / f"random-llama-1.1b-{LAYERS}-layers"
    if not (model / "model.safetensors").exists():
        say("writing a random model …")
        random_llama(model, msgspec.structs.replace(LLAMA_1B, layers=LAYERS), seed=1)
    rounds, tokens = (1, 24) if options.quick else (5, 64)
    calm, lossy = Side(), Side()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gennode-loss-")))
        lab = stack.enter_context(Lab({}, public=dict.fromkeys(HOSTS, CALM), seed=options.seed))
        for host in HOSTS:
            setting = f"net.ipv4.tcp_congestion_control={options.congestion}"
            lab.run(host, ["sysctl", "-qw", setting])
        swarm = Swarm(lab, folder, model)
        swarm.raise_all()
        swarm.ask(4, Side())  # everybody's first step is slow
        for number in range(rounds):
            for side, link in ((calm, CALM), (lossy, LOSSY)):
                swarm.attach(link)
                swarm.ask(tokens, side)
            say(f"{number + 1} of {rounds}: {calm.tokens_per_s:.2f} and {lossy.tokens_per_s:.2f}")
        swarm.attach(CALM)  # for all to part in peace
    show(calm, lossy, options.congestion)


def say(text: str) -> None:
    """For whoever waits; the figures go to standard output."""
    print(text, file=sys.stderr, flush=True)


def show(calm: Side, lossy: Side, congestion: str) -> None:
    """The two sides beside each other, and the figures."""
    for reason in lossy.repairs:
        say(f"repaired: {reason}")
    rows = [
        ("tokens per second", *(f"{side.tokens_per_s:.3f}" for side in (calm, lossy))),
        *(
            (f"token, {share:.0%} within, s", *(f"{s.gap_s(share):.2f}" for s in (calm, lossy)))
            for share in (0.5, 0.9, 0.99, 1.0)
        ),
        ("first token, s", *(f"{statistics.median(s.first_s):.2f}" for s in (calm, lossy))),
        ("tokens", len(calm.gaps_s), len(lossy.gaps_s)),
        ("repairs", len(calm.repairs), len(lossy.repairs)),
    ]
    figures: dict[str, Figure] = {
        "ratio": round(lossy.tokens_per_s / calm.tokens_per_s, 3),
        "tokens_per_s_loss_free": round(calm.tokens_per_s, 3),
        "tokens_per_s_lossy": round(lossy.tokens_per_s, 3),
        "first_token_loss_free_s": round(statistics.median(calm.first_s), 3),
        "first_token_lossy_s": round(statistics.median(lossy.first_s), 3),
        "longest_gap_lossy_s": round(lossy.gap_s(1.0), 3),
        "repairs": len(calm.repairs) + len(lossy.repairs),
        "tokens": len(lossy.gaps_s),
        "loss": LOSS,
        "round_trip_ms": 2 * ONE_WAY_MS,
        "workers": len(WORKERS),
        "congestion_control": congestion,
    }
    report("loss", figures, columns=("", "no loss", f"{LOSS:.0%} lost"), rows=rows)


if __name__ == "__main__":
    main()
