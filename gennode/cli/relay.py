"""`gennode relay`: carry traffic for peers behind NATs."""

from __future__ import annotations

from pathlib import Path

import click

from gennode.cli.options import bootstrap_option, listen_options, state_option
from gennode.cli.output import JSON_OPTION, note, print_json, progress


@click.command(name="relay", short_help="Carry traffic for peers behind NATs.")
@bootstrap_option
@listen_options
@click.option("--leash", is_flag=True, help="Leave when standard input ends.")
@state_option
@JSON_OPTION
def command(
    *,
    bootstrap: tuple[str, ...],
    host: str | None,
    port: int,
    leash: bool,
    state: Path,
    as_json: bool,
) -> None:
    """Carry traffic for peers behind NATs until Ctrl-C, from a machine that anybody can dial.

    Peers meet here, see their own address in it, and reach each other through it where they
    can't do so directly. What passes is encrypted from end to end. Prints the address that
    others give as --bootstrap.
    """
    import asyncio

    from gennode.node.relaying import Relaying, RelayOptions, relay
    from gennode.node.transports import Listening

    def on_ready(ready: Relaying) -> None:
        if as_json:
            print_json(ready)
            return
        note("this relay carries what sessions need; others meet it with:")
        for address in ready.addresses:
            print(f"  --bootstrap {address}", flush=True)
        note("Ctrl-C leaves.")

    listening = Listening(bootstrap, host, port, relay=True)
    options = RelayOptions(state, listening, leash)
    asyncio.run(relay(options, on_ready=on_ready, progress=progress))
    note("left.")
