"""`gennode doctor`: what would keep a node on this machine from its work, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gennode.cli.options import (
    bootstrap_option,
    device_options,
    listen_options,
    memory_option,
    model_option,
    state_option,
    tame_threads,
)
from gennode.cli.output import JSON_OPTION, print_json, progress

if TYPE_CHECKING:
    from rich.table import Table

    from gennode.node.doctor.finding import Finding

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red"), "skip": ("–", "dim")}


@click.command(name="doctor", short_help="Examine this machine and its network for a node.")
@bootstrap_option
@listen_options
@state_option
@model_option
@memory_option
@device_options
@JSON_OPTION
@click.pass_context
def command(
    context: click.Context,
    *,
    bootstrap: tuple[str, ...],
    host: str | None,
    port: int,
    state: Path,
    model: str,
    memory: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Examine this machine and its network: what works, what does not, and what helps.

    Takes the options of `gennode join`, and tells what that would meet, within some twenty
    seconds. Of the device it measures how fast it reads weights, computes and copies. It leaves
    nothing behind but the model's hashes in the cache. With --bootstrap it also asks those peers
    how others can reach this machine, and if only a relay can, whether they carry for it (ten
    seconds more).

    The exit code is 0 if nothing fails (warnings are fine), else that with which `gennode join`
    would end: 2 settings, versions or the node's key; 3 the model; 4 the network; 6 memory,
    disk or open files; 7 the device.
    """
    tame_threads()
    import asyncio

    from gennode.node.doctor.diagnosis import diagnose
    from gennode.node.doctor.examine import examine
    from gennode.node.doctor.facts import Wanted
    from gennode.node.doctor.finding import exit_code
    from gennode.node.transports import Listening

    wanted = Wanted(
        state=str(state),
        model=model,
        host=Listening(bootstrap=bootstrap, host=host).where(),
        port=port,
        bootstrap=bootstrap,
        memory_bytes=memory,
        device=device,
    )
    facts = asyncio.run(examine(wanted, progress=progress))
    findings = diagnose(facts)
    if as_json:
        print_json({"findings": findings, "facts": facts})
    else:
        show(findings)
    context.exit(exit_code(findings))


def show(findings: tuple[Finding, ...]) -> None:
    """The findings as a table, and how many there are of each kind."""
    from rich.console import Console

    console = Console()
    console.print(_table(findings))
    counts = {level: sum(each.level == level for each in findings) for level in _MARKS}
    console.print(", ".join(f"{count} {level}" for level, count in counts.items() if count))


def _table(findings: tuple[Finding, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(max_width=16)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        words = Text(finding.words)  # peers' words among them: never markup
        if finding.fix:
            words.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(f"{mark} {finding.level}", style), finding.check, words)
    return table
