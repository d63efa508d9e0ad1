"""`gennode ask`: one prompt, answered by the swarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gennode.cli.options import (
    bootstrap_option,
    model_option,
    sampling_options,
    state_option,
    tame_threads,
    transport_option,
)
from gennode.cli.output import JSON_OPTION, note, print_json, progress, route_text, short
from gennode.errors import NetworkError


@click.command(name="ask", short_help="Ask the swarm one prompt.")
@click.argument("prompt")
@model_option
@bootstrap_option
@transport_option
@sampling_options
@state_option
@JSON_OPTION
def command(
    *, prompt: str, model: str, bootstrap: tuple[str, ...], state: Path, as_json: bool, **how: Any
) -> None:
    """Ask the swarm one prompt; the answer streams to standard output.

    --model may also be PEER/NAME: the newest version that this publisher has released and
    workers cover.

    Without --bootstrap it asks through the node that runs on this machine, or else through
    peers that a node met here before.
    """
    from gennode.node.state import StateFolder

    folder = StateFolder(state)
    if not bootstrap:
        bootstrap = local_addresses(state, or_else=folder.peers)
    peers = None if folder.is_running() else folder.peers  # a node that runs keeps the file
    run_ask(prompt, model, bootstrap, as_json=as_json, peers=peers, **how)


def local_addresses(state: Path, *, or_else: Path) -> tuple[str, ...]:
    """Addresses of the node that runs from a state folder, or none if there is a file of peers.

    NetworkError if there is neither.
    """
    from gennode.node.state import StateFolder

    card = StateFolder(state).card()
    if card is None and or_else.exists():
        return ()
    if card is None:
        raise NetworkError(
            "no node runs on this machine, and no --bootstrap address was given",
            hint="start one with `gennode join`, or give --bootstrap ADDR",
        )
    return card.addresses


def run_ask(
    prompt: str,
    model: str,
    bootstrap: tuple[str, ...],
    *,
    as_json: bool,
    names: dict[Any, str] | None = None,
    peers: Path | None = None,
    **how: Any,
) -> None:
    """Ask and show; `how` are the sampling options."""
    tame_threads()
    import asyncio

    from gennode.engine.sample import Sampling
    from gennode.engine.seam import ChatMessage
    from gennode.node.ask import Failover, asking

    sampling = Sampling(
        temperature=how["temperature"],
        top_p=how["top_p"],
        seed=how["seed"],
        max_tokens=how["max_tokens"],
    )
    asked = [ChatMessage("user", prompt)] if how["chat"] else prompt
    known = names or {}

    def on_failover(failover: Failover) -> None:
        lost = ", ".join(known.get(peer, short(peer)) for peer in failover.lost)
        note(f"\n[lost {lost}: {failover.reason}; now {route_text(failover.after, known)}]")

    def on_text(text: str) -> None:
        print(text, end="", flush=True)

    async def ask() -> None:
        quiet = {"on_failover": on_failover} if not as_json else {}
        async with asking(
            model,
            bootstrap,
            codec_name=how["codec"],
            transport_name=how["transport"],
            progress=progress,
            peers=peers,
            frugal=how["cheapest"],
            **quiet,
        ) as asker:
            if as_json:
                print_json(await asker.ask(asked, sampling))
                return
            answer = await asker.ask(
                asked,
                sampling,
                on_text=on_text,
                on_route=lambda route: note(f"[{route_text(route, known)}]"),
            )
            print(flush=True)
            speed = f", {answer.seconds_per_token * 1e3:.1f} ms each" if answer.tokens[1:] else ""
            note(f"[{len(answer.tokens)} tokens{speed}, {len(answer.failovers)} failovers]")

    asyncio.run(ask())
