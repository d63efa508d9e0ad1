"""`gennode join`: host layers of a model for the swarm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gennode.cli.leave import left_text, tell_leaving
from gennode.cli.options import (
    Finite,
    Layers,
    bootstrap_option,
    device_options,
    listen_options,
    memory_option,
    model_option,
    precision_option,
    state_option,
    tame_threads,
    transport_option,
)
from gennode.cli.output import (
    JSON_OPTION,
    REACH_TEXT,
    note,
    print_json,
    progress,
    spans_text,
)

if TYPE_CHECKING:
    from gennode.engine.seam import CachePrecision, Precision
    from gennode.node.join import Joined
    from gennode.node.transports import TransportName


@click.command(name="join", short_help="Host layers of a model for the swarm.")
@device_options
@model_option
@click.option(
    "--layers",
    type=Layers(),
    default="auto",
    show_default=True,
    help="Which layers; auto takes those that the swarm lacks most, and moves when others come "
    "or go.",
)
@bootstrap_option
@memory_option
@listen_options
@transport_option
@click.option(
    "--share",
    type=Finite(0.01, 1.0),
    default=1.0,
    show_default=True,
    help="Of the time, how much to compute at most: 0.25 leaves your machine free for you.",
)
@click.option(
    "--price",
    type=click.IntRange(0, 1 << 53),
    default=0,
    show_default=True,
    help="Credits to ask per layer for a million tokens.",
)
@precision_option
@click.option(
    "--cache",
    type=click.Choice(["fp32", "int8"]),
    default="fp32",
    show_default=True,
    help="How keys and values are held: int8 has room for almost four times as many positions, "
    "with a little noise (Llama family).",
)
@click.option("--follow", metavar="PEER/NAME", help="Go over to each version that it publishes.")
@click.option("--relay", is_flag=True, help="Carry traffic for peers behind NATs as well.")
@click.option("--leash", is_flag=True, help="Leave at once when standard input ends.")
@click.option("--threads", type=click.IntRange(1, 1024), show_default="all cores")
@state_option
@JSON_OPTION
def command(
    *,
    device: str,
    model: str,
    layers: tuple[int, int] | None,
    bootstrap: tuple[str, ...],
    memory: int | None,
    host: str | None,
    port: int,
    relay: bool,
    transport: TransportName,
    share: float,
    price: int,
    precision: Precision | Literal["auto"],
    cache: CachePrecision,
    follow: str | None,
    leash: bool,
    threads: int | None,
    state: Path,
    as_json: bool,
) -> None:
    """Host layers of a model for the swarm until Ctrl-C.

    Prints the address that other machines give as --bootstrap.

    On Ctrl-C, SIGTERM or `gennode leave` it first hands its sessions over to others, for 10 s at
    most; a second Ctrl-C leaves at once.
    """
    tame_threads(threads)
    import asyncio

    from gennode.node.join import JoinOptions, join
    from gennode.node.transports import Listening
    from gennode.wire.ids import Span
    from gennode.wire.release import parse_line

    def on_ready(joined: Joined) -> None:
        if as_json:
            print_json(joined)
            return
        _tell(joined)

    options = JoinOptions(
        state=state,
        model=model,
        device=device,
        span=Span(*layers) if layers else None,
        memory_bytes=memory,
        listening=Listening(bootstrap, host, port, relay, transport),
        leash=leash,
        follow=parse_line(follow) if follow else None,
        share=share,
        price=price,
        precision=precision,
        cache=cache,
    )
    left_behind = asyncio.run(
        join(options, on_ready=on_ready, on_leaving=tell_leaving, progress=progress)
    )
    note(left_text(left_behind))


def _tell(joined: Joined) -> None:
    """What is hosted, and how others get at it."""
    loaded = spans_text(joined.spans)
    each_ms = joined.layer_time_s * 1e3
    how = f"{each_ms:.2f} ms each, {joined.compute_class}"
    note(f"hosting layers {loaded} of {joined.layers} ({how})")
    note(joined.account.words)
    note(
        f"of model {joined.model}, which others can fetch from here with --model"
        if joined.is_fetchable
        else f"of model {joined.model}; others need the same GGUF file, and give its folder"
    )
    note(REACH_TEXT[joined.reach])
    note("others join, or ask, with:")
    for address in joined.addresses:
        print(f"  --bootstrap {address}", flush=True)
    note("Ctrl-C leaves, once its sessions have gone over to others; twice: at once.")
