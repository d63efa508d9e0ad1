"""What people and programs see: results on standard output, progress and errors beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from gennode.errors import GennodeError
from gennode.wire.ids import Hop, PeerId, Span

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_json(value: object) -> None:
    """One JSON object on one line of standard output."""
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def note(text: str) -> None:
    """A line for the person who watches; never part of the result."""
    print(text, file=sys.stderr, flush=True)


def show_error(error: GennodeError, *, as_json: bool) -> None:
    """What went wrong and what to do next: for people on standard error, or as JSON."""
    if as_json:
        told: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
        print(json.dumps({"error": told | {"hint": error.hint, "exit_code": error.exit_code}}))
        return
    note(f"error: {error}")
    if error.hint:
        note(f"try:   {error.hint}")


def short(peer: PeerId) -> str:
    """A peer id that fits on a line; the first characters are the same in all of them."""
    return f"…{peer[-6:]}"


def route_text(hops: Sequence[Hop], names: dict[PeerId, str]) -> str:
    """A route as one line: owner → worker-1 [0:3] → … → owner."""
    middle = [f"{names.get(hop.peer, short(hop.peer))} [{hop.span}]" for hop in hops]
    return " → ".join(["owner", *middle, "owner"])


def spans_text(spans: Sequence[Span]) -> str:
    """Spans as one word."""
    return ",".join(str(span) for span in spans) or "none"


def counted(count: int, word: str) -> str:
    """So many of something: 1 session, 2 sessions."""
    return f"{count} {word}{'s' * (count != 1)}"


@contextmanager
def progress(title: str, *, unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told (done, in all); silent where nobody watches."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    hidden = not console.is_terminal
    counts = (
        (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    )
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


REACH_TEXT = {
    "direct": "others dial this node directly",
    "relayed": "behind a NAT: others reach this node through a relay, or by punching a hole",
    "unknown": "nobody can dial this node, and no relay takes it: gennode doctor says why",
}
"""What each way of being reached means, in words."""
