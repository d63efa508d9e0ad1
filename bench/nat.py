"""Peers behind every pair of NATs: do they connect, answer a prompt, and how directly?

Two rows of homes stand behind an open router, a cone NAT and a symmetric one, with five relays on
the open internet between them: three rows' workers, three columns' owners, nine pairs. Delays are
real (a user-space line of packets); nothing leaves the machine. Needs Linux and root.

- connects: of 9 pairs, how many get a connection that carries 8 KB.
- answers: of 9, how many prompts an owner in one home gets answered right by a worker in the
  other, by the commands `gennode join` and `gennode ask`.
- direct_cone_cone: 1 if two cone NATs end up with a direct connection.
- relay_address_s: from the start of a node behind a NAT to its first address at a relay (median).
- rtt_ratio_max: 8 KB there and back, less 5 ms, over what plain TCP takes for it on the same
  links, measured in the same run (for a relayed path: to the relay and to the relay); the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._report import report
from localnet.natlab import Home, Lab, Link, Nat, available

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"open": Nat.OPEN, "cone": Nat.CONE, "symmetric": Nat.SYMMETRIC}
MODELS = dict(zip(KINDS, ("gennode-small", "gennode-medium", "gennode-large"), strict=True))
RELAYS = tuple(f"relay{number}" for number in range(1, 6))  # go-libp2p wants four observers
HOME_MS, RELAY_MS = 10.0, 20.0  # one way
RULER = "ruler"  # an open home like the others, for plain TCP to reach
ALLOWED_S = 0.005  # what encryption, three processes on each side and two busy cores may add
PORT = 4001
PROMPT, RIGHT = "reverse PLANET =", "TENALP"  # all three models know it
READY_S, ASK_S = 90.0, 60.0


@dataclass
class Talker:
    """A child that prints one JSON object per line."""

    process: subprocess.Popen[str]
    log: Path
    about: dict[str, Any] = field(default_factory=dict)

    def hear(self) -> dict[str, Any]:
        """Its next word."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            words = self.log.read_text(errors="replace").strip()[-2000:]
            raise SystemExit(f"{self.log.stem} ended with {self.process.wait()}:\n{words}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer to a question."""
        assert self.process.stdin is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self.hear()


@dataclass(frozen=True)
class Pair:
    """What came of one pair of homes."""

    worker: str
    owner: str
    connected: bool
    answered: bool
    direct_s: float | None
    path: str
    round_trip_s: float
    ideal_s: float

    @property
    def ratio(self) -> float:
        """Round trip over the ideal, after what it is allowed on top."""
        return max(0.0, self.round_trip_s - ALLOWED_S) / self.ideal_s


class Swarm:
    """A lab with its relays, workers and homes."""

    def __init__(self, lab: Lab, folder: Path, kinds: list[str]) -> None:
        self.lab, self.folder, self.kinds = lab, folder, kinds
        self.relays: list[str] = []
        self.direct_s = self.relay_s = 0.0

    def talk(self, host: str, module: str, *arguments: str) -> Talker:
        """Start a module on a host."""
        log = self.folder / f"{host}-{module}.log"
        process = self.lab.popen(
            host,
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
            env=self.environment(),
        )
        return Talker(process, log)

    def environment(self) -> dict[str, str]:
        """Ours, with temporary folders where they end with the lab, even after SIGKILL."""
        return {**os.environ, "TMPDIR": str(self.folder)}

    def state(self, name: str) -> tuple[str, str]:
        """A state folder for a node."""
        return "--state", str(self.folder / name)

    def raise_relays(self) -> None:
        """Five of them; the first is whom the others meet."""
        first, *others = RELAYS
        self.relays.append(self.relay(first).hear()["addresses"][0])
        for relay in [self.relay(name, *self.bootstrap()) for name in others]:
            self.relays.append(relay.hear()["addresses"][0])

    def relay(self, name: str, *known: str) -> Talker:
        """One of them, by the product's own command."""
        where = ("--host", self.lab.address(name), "--port", str(PORT), *self.state(name))
        return self.talk(name, "gennode", "relay", "--json", *where, *known)

    def bootstrap(self) -> list[str]:
        """Options that name every relay."""
        return [word for relay in self.relays for word in ("--bootstrap", relay)]

    def raise_workers(self) -> None:
        """One per kind, each with a model of its own, so that an owner can choose by it."""
        workers = []
        for kind in self.kinds:
            name = f"w-{kind}"
            options = ("--json", "--model", MODELS[kind], "--memory", "64M", "--threads", "1")
            place = ("--layers", f"0:{LAYERS[MODELS[kind]]}", *self.state(name))
            workers.append(self.talk(name, "gennode", "join", *options, *place, *self.bootstrap()))
        for worker in workers:
            worker.about = worker.hear()

    def raise_homes(self, side: str) -> dict[str, Talker]:
        """A measuring peer in every home of one side, side by side."""
        homes = {}
        for kind in self.kinds:
            host = f"{side}-{kind}"
            address = self.lab.home_address(host)
            homes[kind] = self.talk(host, "bench._nat_home", address, str(PORT), *self.relays)
        for home in homes.values():
            home.about = home.hear()
        return homes

    def measure_ideals(self) -> None:
        """How long plain TCP takes between two homes, and from a home to a relay."""
        for host in (RULER, RELAYS[0]):
            command = [*RULE, "serve"]
            serving = self.lab.popen(host, command, cwd=ROOT, stdout=subprocess.PIPE)
            assert serving.stdout is not None
            serving.stdout.readline()
        there = (self.lab.home_address(RULER), self.lab.address(RELAYS[0]))
        host = f"o-{self.kinds[0]}"
        self.direct_s, self.relay_s = (
            float(self.lab.run(host, [*RULE, "measure", address], cwd=ROOT).stdout)
            for address in there
        )

    def ideal_s(self, path: str) -> float:
        """What plain TCP takes over the links of a path."""
        return 2 * self.relay_s if "/p2p-circuit" in path else self.direct_s

    def ask(self, owner: str, kind: str) -> bool:
        """Whether the command `gennode ask` in a home gets the right answer."""
        command = [sys.executable, "-m", "gennode", "ask", "--json", "--model", MODELS[kind]]
        result = self.lab.run(
            f"o-{owner}", [*command, *self.bootstrap(), PROMPT], check=False, cwd=ROOT,
            timeout=ASK_S, env=self.environment(),
        )  # fmt: skip
        if result.returncode:
            print(f"ask {owner} → {kind}: {result.stderr.strip()[-300:]}", file=sys.stderr)
            return False
        return str(json.loads(result.stdout)["text"]).strip() == RIGHT


RULE = (sys.executable, "-m", "bench._nat_ruler")
LAYERS = {"gennode-small": 3, "gennode-medium": 5, "gennode-large": 8}


def measure(swarm: Swarm) -> tuple[list[Pair], list[float]]:
    """All pairs, and how long homes took to get an address at a relay."""
    progress("homes")
    there, here = swarm.raise_homes("w"), swarm.raise_homes("o")
    swarm.measure_ideals()
    measured = {}
    progress("every pair meets")
    others = [{word: other.about[word] for word in ("peer", "addresses")}
              for other in there.values()]  # fmt: skip
    for owner, home in here.items():
        for worker, seen in zip(there, home.ask({"others": others})["met"], strict=True):
            measured[worker, owner] = seen
    settled = [
        home.about["relay_address_s"]
        for home in (*there.values(), *here.values())
        if home.about["relay_address_s"] is not None
    ]
    for home in (*there.values(), *here.values()):
        assert home.process.stdin is not None
        home.process.stdin.close()
        home.process.wait()
    progress("workers")
    swarm.raise_workers()
    progress("prompts")
    answers = ask_all(swarm)
    pairs = []
    for (worker, owner), seen in measured.items():
        connected = "error" not in seen
        if not connected:
            print(f"{worker} ← {owner}: {seen['error']}", file=sys.stderr)
        path = seen.get("path", "")
        pairs.append(
            Pair(
                worker, owner, connected, answers[worker, owner], seen.get("direct_s"), path,
                seen.get("round_trip_s", 0.0), swarm.ideal_s(path),
            )
        )  # fmt: skip
    return pairs, settled


def ask_all(swarm: Swarm) -> dict[tuple[str, str], bool]:
    """Every owner asks every worker; owners side by side."""
    answers: dict[tuple[str, str], bool] = {}

    def ask(owner: str) -> None:
        for worker in swarm.kinds:
            answers[worker, owner] = swarm.ask(owner, worker)

    threads = [threading.Thread(target=ask, args=(owner,)) for owner in swarm.kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def progress(what: str) -> None:
    """What comes next, for whoever waits."""
    print(f"{what} …", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="cone and symmetric only: 4 pairs")
    options = parser.parse_args()
    if reason := available():
        raise SystemExit(f"the NAT lab can't run here: {reason}")
    kinds = ["cone", "symmetric"] if options.quick else list(KINDS)
    homes = {
        f"{side}-{kind}": Home(KINDS[kind], Link(delay_ms=HOME_MS))
        for side in ("w", "o")
        for kind in kinds
    }
    homes[RULER] = Home(Nat.OPEN, Link(delay_ms=HOME_MS))
    public = dict.fromkeys(RELAYS, Link(delay_ms=RELAY_MS))
    start_s = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gennode-nat-")))
        swarm = Swarm(stack.enter_context(Lab(homes, public=public)), folder, kinds)
        progress("relays")
        swarm.raise_relays()
        pairs, settled = measure(swarm)
    show(pairs, settled, time.perf_counter() - start_s)


def show(pairs: list[Pair], settled: list[float], took_s: float) -> None:
    """The table and the figures."""
    direct = {(pair.worker, pair.owner): pair.direct_s for pair in pairs}
    cone = direct["cone", "cone"]
    figures: dict[str, float | int | str] = {
        "connects": sum(pair.connected for pair in pairs),
        "answers": sum(pair.answered for pair in pairs),
        "pairs": len(pairs),
        "direct_cone_cone": int(cone is not None),
        "relay_address_s": round(statistics.median(settled), 3),
        "rtt_ratio_max": round(max(pair.ratio for pair in pairs if pair.connected), 3),
        "bench_s": round(took_s, 1),
    }
    if cone is not None:
        figures["direct_cone_cone_s"] = round(cone, 3)
    rows = [
        (
            pair.worker, pair.owner, "yes" if pair.connected else "no",
            "right" if pair.answered else "no",
            "relayed" if "/p2p-circuit" in pair.path else "direct",
            "–" if pair.direct_s is None else f"{pair.direct_s:.2f}",
            f"{pair.round_trip_s * 1e3:.1f}", f"{pair.ideal_s * 1e3:.1f}", f"{pair.ratio:.3f}",
        )
        for pair in pairs
    ]  # fmt: skip
    columns = (
        "worker", "owner", "connects", "answer", "path", "direct after s", "8 KB ms", "TCP ms",
        "ratio",
    )  # fmt: skip
    report("nat", figures, columns=columns, rows=rows)


if __name__ == "__main__":
    main()
