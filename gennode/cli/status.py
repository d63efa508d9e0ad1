"""`gennode status`: the node on this machine and what it knows of the swarm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gennode.cli.leave import tell_leaving
from gennode.cli.options import state_option
from gennode.cli.output import JSON_OPTION, print_json, short, spans_text
from gennode.errors import NetworkError

if TYPE_CHECKING:
    from gennode.node.control import NodeStatus
    from gennode.wire.ids import PeerId


@click.command(name="status", short_help="Show the node on this machine and its swarm.")
@state_option
@click.option("--limits", is_flag=True, help="Show what peers use of this node's limits.")
@JSON_OPTION
def command(*, state: Path, limits: bool, as_json: bool) -> None:
    """Show the node that runs on this machine, and the workers that it knows."""
    import asyncio

    from gennode.node.control import ask_status
    from gennode.node.state import StateFolder

    card = StateFolder(state).card()
    if card is None:
        raise NetworkError(f"no node runs from {state}", hint="start one: gennode join")
    status = asyncio.run(ask_status(card.control))
    if as_json:
        print_json(status)
        return
    (show_limits if limits else show)(status, {})
    if status.is_leaving:
        tell_leaving(status.sessions)


def show_limits(status: NodeStatus, names: dict[PeerId, str]) -> None:
    """A node's limits towards its peers as a table."""
    from rich.console import Console
    from rich.table import Table

    name = names.get(status.peer, short(status.peer))
    table = Table(title=f"what peers use of {name} in all")
    table.add_column("limit of")
    for heading in ("limit", "used", "highest"):
        table.add_column(heading, justify="right")
    for use in status.limits:
        table.add_row(use.name, f"{use.limit:,}", f"{use.used:,}", f"{use.highest:,}")
    Console().print(table)


def show(status: NodeStatus, names: dict[PeerId, str]) -> None:
    """A node's status as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"workers that {names.get(status.peer, short(status.peer))} knows")
    for heading in ("peer", "model", "layers", "spare", "ms per layer", "sessions", "computes"):
        table.add_column(heading)
    for worker in status.workers:
        name = names.get(worker.peer, short(worker.peer)) + " (relay)" * worker.relay
        if not worker.hosting:
            table.add_row(name, "", "", "", "", str(worker.sessions), "")
        for hosting in worker.hosting:
            table.add_row(
                name,
                hosting.model[:12],
                spans_text(hosting.spans),
                str(hosting.spare_layers),
                f"{hosting.layer_time_s * 1e3:.2f}",
                str(worker.sessions),
                Text(hosting.compute_class),  # a peer's words, never markup
            )
    console = Console()
    console.print(table)
    for address in status.addresses:
        console.print(f"--bootstrap {address}", soft_wrap=True)
