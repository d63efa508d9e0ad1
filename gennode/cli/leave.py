"""`gennode leave`: have the node on this machine hand its sessions over, and leave."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gennode.cli.options import state_option
from gennode.cli.output import JSON_OPTION, counted, note, print_json
from gennode.errors import NetworkError

F = TypeVar("F", bound=Callable[..., Any])

END_LIMIT_S = 10.0  # for its processes to end, once it has said goodbye
POLL_S = 0.05


def now_option(command: F) -> F:
    """`--now`: hand nothing over."""
    return click.option(
        "--now",
        "at_once",
        is_flag=True,
        help="Leave at once; owners of its sessions find others when they miss it.",
    )(command)


@click.command(name="leave", short_help="Have the node on this machine leave the swarm.")
@now_option
@state_option
@JSON_OPTION
def command(*, at_once: bool, state: Path, as_json: bool) -> None:
    """Have the node that runs on this machine leave, and wait until it is gone.

    Its sessions go over to other workers first, while it still serves them: their answers come
    without a pause. What has nobody to go to is left behind after 10 s, as it is with --now, or
    if you call this again meanwhile.
    """
    run_leave(state, at_once=at_once, as_json=as_json)


def run_leave(state: Path, *, at_once: bool, as_json: bool) -> None:
    """Have the node leave that runs from a state folder; NetworkError if none does."""
    import asyncio

    from gennode.node.control import tell_to_leave
    from gennode.node.state import StateFolder

    folder = StateFolder(state)
    card = folder.card()
    if card is None:
        raise NetworkError(f"no node runs from {state}", hint="see who does: gennode status")
    telling = tell_to_leave(card.control, at_once=at_once, on_waiting=tell_leaving)
    left_behind = asyncio.run(telling)
    deadline_s = time.monotonic() + END_LIMIT_S
    while folder.is_running():
        if time.monotonic() > deadline_s:
            raise NetworkError(f"process {card.pid} does not end", hint=f"kill {card.pid}")
        time.sleep(POLL_S)
    if as_json:
        print_json({"peer": card.peer, "left_behind": left_behind})
        return
    note(left_text(left_behind))


def tell_leaving(sessions: int) -> None:
    """What a node waits for that leaves."""
    note(f"leaving: {counted(sessions, 'session')} to hand over …" if sessions else "leaving …")


def left_text(left_behind: int) -> str:
    """How it went."""
    if not left_behind:
        return "left."
    return f"left, and {counted(left_behind, 'session')} behind: their owners find others."
