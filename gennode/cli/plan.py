"""`gennode plan`: who hosts which layers, and who should."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gennode.cli.options import bootstrap_option, model_option, state_option, transport_option
from gennode.cli.output import JSON_OPTION, note, print_json, progress, short

if TYPE_CHECKING:
    from gennode.node.survey import Survey
    from gennode.node.transports import TransportName


@click.command(name="plan", short_help="Show who hosts which layers, and who should.")
@model_option
@bootstrap_option
@transport_option
@state_option
@JSON_OPTION
def command(
    *,
    model: str,
    bootstrap: tuple[str, ...],
    transport: TransportName,
    state: Path,
    as_json: bool,
) -> None:
    """Show who hosts which layers of a model, and who should.

    What is shown is what workers compute themselves; whether they move is theirs to agree on,
    and they do so only where the plan gains more than its moves cost.

    Without --bootstrap it asks through the node that runs on this machine, or else through
    peers that a node met here before.
    """
    import asyncio

    from gennode.cli.ask import local_addresses
    from gennode.node.state import StateFolder
    from gennode.node.survey import survey

    folder = StateFolder(state)
    if not bootstrap:
        bootstrap = local_addresses(state, or_else=folder.peers)
    peers = None if folder.is_running() else folder.peers  # a node that runs keeps the file
    found = asyncio.run(
        survey(model, bootstrap, transport_name=transport, peers=peers, progress=progress)
    )
    if as_json:
        print_json(found)
        return
    _show(found)


def _show(found: Survey) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found.layers} layers of model {found.model[:12]}")
    for heading in ("peer", "room", "ms/layer", "hosts", "should", "computes", "pipeline"):
        table.add_column(heading)
    for one in found.peers:
        is_used = one.pipeline and one.should_host.layers
        table.add_row(
            short(one.peer),
            str(one.capacity_layers),
            f"{one.layer_time_s * 1e3:.2f}",
            str(one.hosts) if one.hosts.layers else "nothing",
            str(one.should_host) if one.should_host.layers else "nothing",
            str(one.share) if is_used else "nothing",
            str(one.pipeline) if is_used else "spare",
        )
    Console().print(table)
    limit_ms = found.step_limit_s * 1e3
    note(f"at up to {limit_ms:.0f} ms a token, all sessions together:")
    if found.step_now_s is None:
        note("  now   nothing")
    else:
        now_ms = found.step_now_s * 1e3
        note(f"  now   {found.rate_now_token_s:8.1f} tokens/s, {now_ms:.0f} ms each")
    planned_ms = found.step_planned_s * 1e3
    note(f"  plan  {found.rate_planned_token_s:8.1f} tokens/s, {planned_ms:.0f} ms each")
    if found.missing:
        note(found.missing)
    note(("a re-plan is due: " if found.is_due else "nobody needs to move: ") + found.why)
