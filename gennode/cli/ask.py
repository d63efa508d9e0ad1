"""`gennode ask`: one prompt, answered by the swarm, or an interrupted answer gone on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gennode.cli.options import (
    bootstrap_option,
    is_given,
    model_option,
    sampling_options,
    state_option,
    tame_threads,
    transport_option,
)
from gennode.cli.output import (
    JSON_OPTION,
    counted,
    note,
    print_json,
    progress,
    route_text,
    short,
)
from gennode.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from gennode.node.ask import Answer, Failover
    from gennode.node.sessions.journal import Interrupted, Journal, Journals
    from gennode.wire.ids import Hop, PeerId

F = TypeVar("F", bound=Callable[..., Any])

KEPT_TERMS = ("temperature", "top_p", "seed", "max_tokens", "codec", "chat")
"""What an interrupted answer was begun with, and has to go on with: else its tokens change."""

_WHERE = re.compile(r" /\S+/p2p/.*")  # an address that nobody answers at, and each try to dial it


def prompt_options(command: F) -> F:
    """The prompt, or which interrupted answer to go on with."""
    for option in (
        click.option(
            "--no-journal",
            is_flag=True,
            help="Write no journal: an answer that is interrupted is lost.",
        ),
        click.option(
            "--resume",
            is_flag=False,
            flag_value="",
            metavar="[NAME]",
            help="Go on with an answer that was interrupted. Without NAME: with the only one, or "
            "list them if there are several.",
        ),
        click.argument("prompt", required=False),
    ):
        command = option(command)
    return command


@click.command(name="ask", short_help="Ask the swarm one prompt.")
@prompt_options
@model_option
@bootstrap_option
@transport_option
@sampling_options
@state_option
@JSON_OPTION
def command(
    *, model: str, bootstrap: tuple[str, ...], state: Path, as_json: bool, **how: Any
) -> None:
    """Ask the swarm one prompt; the answer streams to standard output.

    --model may also be PEER/NAME: the newest version that this publisher has released and
    workers cover.

    Without --bootstrap it asks through the node that runs on this machine, or else through
    peers that a node met here before.

    Until the answer is whole, the prompt and the answer so far are kept in a journal in the
    state folder, which your user alone can read. If it is interrupted, even by kill -9, --resume
    goes on with the same tokens. What nobody resumes is removed after 30 days.
    """
    from gennode.node.state import StateFolder

    folder = StateFolder(state)
    with chosen(folder.sessions, "gennode ask", as_json=as_json, **how) as asked:
        remembered = bootstrap or asked.bootstrap
        met = remembered or local_addresses(state, or_else=folder.peers)
        peers = None if folder.is_running() else folder.peers  # a node that runs keeps the file
        run_ask(
            asked, asked.model(model), met,
            as_json=as_json, peers=peers, remembered=remembered, **how,
        )  # fmt: skip


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


@dataclass(frozen=True)
class Asked:
    """What is wanted: the answer to a prompt, or the rest of the one in an open journal."""

    prompt: str
    journals: Journals | None
    journal: Journal | None = None

    @property
    def bootstrap(self) -> tuple[str, ...]:
        """Whom the asker of an interrupted answer was told to meet first."""
        return self.journal.header.bootstrap if self.journal is not None else ()

    def model(self, otherwise: str) -> str:
        """The interrupted answer's model, unless a person says where it is now."""
        if self.journal is None or is_given("model"):
            return otherwise
        return self.journal.header.named


@contextmanager
def chosen(
    folder: Path,
    caller: str,
    *,
    prompt: str | None,
    resume: str | None,
    no_journal: bool,
    as_json: bool,
    **_how: Any,
) -> Iterator[Asked]:
    """What is asked, by the options; or a list of what was interrupted, and the command ends.

    `folder`: where journals are; `caller`: the command that takes `--resume` for them.
    """
    from gennode.node.sessions.journal import Journals, Watch

    state = click.get_current_context().params["state"]
    again = f"{caller} --state {state} --resume" if is_given("state") else f"{caller} --resume"

    def on_kept(journal: Journal) -> None:
        note(f"\n[{journal.tokens} tokens are kept; go on with: {again} {journal.name}]")

    journals = Journals(folder, Watch(lambda text: note(f"warning: {text}"), on_kept))
    if resume is None:
        if prompt is None:
            raise UsageError("there is no prompt", hint=f'{caller} "count from 1 to 9 ="')
        yield Asked(prompt, None if no_journal else journals)
        return
    if prompt is not None or no_journal:
        raise UsageError(
            "--resume needs the journal, and takes no prompt: it knows what was asked",
            hint="leave out " + ("the prompt" if prompt is not None else "--no-journal"),
        )
    for name in KEPT_TERMS:
        if is_given(name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option} stays as it was when an answer goes on", hint="leave it out"
            )
    found = journals.interrupted() if not resume else []
    if not resume and len(found) != 1:
        _list(found, again, as_json=as_json)
        click.get_current_context().exit(0)
    with journals.resume(resume or found[0].name) as journal:
        yield Asked("", journals, journal)


def _list(found: list[Interrupted], again: str, *, as_json: bool) -> None:
    """What was interrupted, oldest first."""
    if as_json:
        views = [
            {
                "name": one.name,
                "tokens": one.tokens,
                "model": one.header.model,
                "named": one.header.named,
                "prompt": one.header.words,
                "began_s": one.header.began_s,
            }
            for one in found
        ]
        print_json({"interrupted": views})
        return
    if not found:
        note("no answer was interrupted")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="interrupted answers")
    for heading in ("name", "tokens", "model", "prompt"):
        table.add_column(heading, justify="right" if heading == "tokens" else "left")
    for one in found:
        named = Path(one.header.named).name[:24]
        table.add_row(one.name, str(one.tokens), Text(named), Text(one.header.words))
    Console().print(table)
    note(f"go on with: {again} NAME")


def run_ask(
    asked: Asked,
    model: str,
    bootstrap: tuple[str, ...],
    *,
    as_json: bool,
    names: dict[Any, str] | None = None,
    peers: Path | None = None,
    remembered: tuple[str, ...] = (),
    **how: Any,
) -> None:
    """Ask and show; `how` are the sampling options."""
    tame_threads()
    import asyncio

    from gennode.engine.sample import Sampling
    from gennode.engine.seam import ChatMessage
    from gennode.node.ask import Asker, asking

    sampling = Sampling(
        temperature=how["temperature"],
        top_p=how["top_p"],
        seed=how["seed"],
        max_tokens=how["max_tokens"],
    )
    prompt = [ChatMessage("user", asked.prompt)] if how["chat"] else asked.prompt
    screen = Screen(names or {}, asked)

    async def tell(asker: Asker) -> Answer:
        shown: dict[str, Any] = {}
        if not as_json:
            shown = {"on_text": screen.text, "on_route": screen.route}
        if asked.journal is not None:
            return await asker.resume(asked.journal, **shown)
        return await asker.ask(prompt, sampling, journals=asked.journals, **shown)

    async def ask() -> None:
        async with asking(
            model,
            bootstrap,
            codec_name=asked.journal.header.codec if asked.journal else how["codec"],
            transport_name=how["transport"],
            progress=progress,
            peers=peers,
            frugal=how["cheapest"],
            replicate=how["replicate"],
            on_failover=screen.change if not as_json else lambda _failover: None,
        ) as asker:
            asker.remembered = remembered
            answer = await tell(asker)
            if as_json:
                print_json(answer)
                return
            print(flush=True)
            note(_summary(answer))

    asyncio.run(ask())


@dataclass(frozen=True)
class Screen:
    """An answer as a person sees it come: its text, and beside that where it comes from."""

    names: dict[PeerId, str]
    asked: Asked

    def text(self, text: str) -> None:
        print(text, end="", flush=True)

    def route(self, route: tuple[Hop, ...]) -> None:
        below = "\n" if self.asked.journal is not None else ""  # below the text so far
        note(f"{below}[{route_text(route, self.names)}]")

    def change(self, failover: Failover) -> None:
        lost = ", ".join(self.names.get(peer, short(peer)) for peer in failover.lost)
        what = f"{lost} " if failover.is_planned else f"lost {lost}: "
        reason = _WHERE.sub(" it", failover.reason)
        note(f"\n[{what}{reason}; now {route_text(failover.after, self.names)}]")


def _summary(answer: Answer) -> str:
    told = [counted(len(answer.tokens), "token")]
    if answer.resumed_tokens:
        told.append(f"{answer.resumed_tokens} of them from before")
    if answer.seconds_per_token:
        told.append(f"{answer.seconds_per_token * 1e3:.1f} ms each")
    planned = sum(failover.is_planned for failover in answer.failovers)
    told.append(counted(len(answer.failovers) - planned, "failover"))
    if planned:
        told.append(counted(planned, "handover"))
    if answer.failovers:
        told.append(f"longest wait {answer.longest_gap_s:.2f} s")
    return f"[{', '.join(told)}]"
