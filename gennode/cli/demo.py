"""`gennode demo`: three workers, one prompt, one killed in the middle, the same answer."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gennode.cli.options import DEFAULT_MODEL, tame_threads
from gennode.cli.output import JSON_OPTION, note, print_json, route_text
from gennode.errors import LocalError

if TYPE_CHECKING:
    from gennode.node.ask import Answer, Asker
    from gennode.node.testnet import Testnet
    from gennode.wire.ids import PeerId

PROMPT = "count from 12 to 40 ="
KILL_AFTER_TOKENS = 12
WORKERS = 3
MAX_TOKENS = 160


@click.command(name="demo", short_help="Three workers, one dies, the answer is the same.")
@click.option("--prompt", default=PROMPT, show_default=True)
@JSON_OPTION
def command(*, prompt: str, as_json: bool) -> None:
    """Raise three workers, ask them, kill one in the middle of the answer, compare.

    Every process is real, on this machine alone; all are gone when the command ends.
    """
    tame_threads()
    import asyncio

    from gennode.cli.testnet import even_spans
    from gennode.node.testnet import Testnet, WorkerOptions

    with tempfile.TemporaryDirectory(prefix="gennode-demo-") as folder:
        testnet = Testnet(Path(folder))
        note(f"starting {WORKERS} workers, each with a third of {DEFAULT_MODEL} …")
        cards = testnet.up(
            even_spans(DEFAULT_MODEL, WORKERS),
            WorkerOptions(DEFAULT_MODEL, memory="1G", leash=True),
            on_ready=lambda name, card: note(f"  {name} is ready (process {card.pid})"),
        )
        try:
            names = {card.peer: name for name, card in cards.items()}
            bootstrap = tuple(card.addresses[0] for card in cards.values())
            told = asyncio.run(_show(testnet, bootstrap, names, prompt, quiet=as_json))
        finally:
            testnet.down()
    if as_json:
        print_json(told)


async def _show(
    testnet: Testnet,
    bootstrap: tuple[str, ...],
    names: dict[PeerId, str],
    prompt: str,
    *,
    quiet: bool,
) -> dict[str, object]:
    from gennode.node.ask import asking

    async with asking(DEFAULT_MODEL, bootstrap) as asker:
        note(f"\n{prompt}")
        whole = await _ask(asker, prompt, quiet=quiet)
        note("\nthe same prompt again, and a worker is killed in the middle:")
        killed: list[str] = []

        def hurt() -> None:
            if asker.tokens_given >= min(KILL_AFTER_TOKENS, len(whole.tokens) // 2) and not killed:
                victim = names[asker.route[len(asker.route) // 2].peer]
                testnet.send_signal(victim, signal.SIGKILL)
                killed.append(victim)

        broken = await _ask(asker, prompt, quiet=quiet, after_token=hurt)
    if not broken.failovers or not killed:
        raise LocalError("the worker was killed too late to be missed")
    if broken.tokens != whole.tokens:
        raise LocalError(f"the answers differ: {whole.tokens} and {broken.tokens}")
    failover = broken.failovers[-1]
    if not quiet:
        print(f"\nroute before: {route_text(failover.before, names)}")
        print(f"killed:       {killed[0]} with SIGKILL after {failover.after_tokens} tokens")
        print(f"route after:  {route_text(failover.after, names)}")
        print(f"longest wait: {broken.longest_gap_s:.2f} s between two tokens")
        print(f"same {len(whole.tokens)} tokens", flush=True)
    return {
        "prompt": prompt,
        "text": whole.text,
        "tokens": whole.tokens,
        "killed": killed[0],
        "failovers": broken.failovers,
        "longest_gap_s": broken.longest_gap_s,
        "same": broken.tokens == whole.tokens,
    }


async def _ask(
    asker: Asker, prompt: str, *, quiet: bool, after_token: Callable[[], None] = lambda: None
) -> Answer:
    def on_text(text: str) -> None:
        if not quiet:
            print(text, end="", flush=True)
        after_token()

    from gennode.engine.sample import Sampling

    answer = await asker.ask(prompt, Sampling(max_tokens=MAX_TOKENS), on_text=on_text)
    if not quiet:
        print(flush=True)
    return answer
