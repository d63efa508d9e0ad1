"""Asking the swarm: a short-lived owner that finds workers and streams one answer after another."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec

from gennode.engine.engines import owner_engine
from gennode.engine.folders import Folder, open_folder
from gennode.engine.sample import Sampling
from gennode.engine.seam import ChatMessage, OwnerEngine
from gennode.engine.text.stream import TextStream
from gennode.errors import ModelError, NetworkError
from gennode.node.actions import Opened, Rerouted
from gennode.node.fetch import fetch_span, is_model_id, weights_folder
from gennode.node.hub import find_or_download
from gennode.node.live import LiveNode
from gennode.node.progress import ShowProgress, unwatched
from gennode.node.prompt import answer
from gennode.node.rolls.roll import choose_version
from gennode.node.running import running
from gennode.node.sessions.journal import MAX_WORDS, Header, Journal, Journals
from gennode.node.state import hash_cache
from gennode.node.transports import Listening, TransportName
from gennode.wire.fields import CodecName
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId
from gennode.wire.release import Line, is_line, parse_line
from gennode.wire.signing import SEED_BYTES, Key

RELEASE_POLL_S = 0.1
FIND_TIMEOUT_S = 10.0  # for the directory to show workers for every layer


class Failover(msgspec.Struct, frozen=True):
    """One change of the route in the middle of an answer.

    `is_planned`: the workers that were left were still there, and nothing had to wait for it.
    """

    lost: tuple[PeerId, ...]
    reason: str
    before: tuple[Hop, ...]
    after: tuple[Hop, ...]
    after_tokens: int
    is_planned: bool


class Answer(msgspec.Struct, frozen=True):
    """A whole answer and how it came about."""

    text: str
    tokens: tuple[int, ...]
    resumed_tokens: int
    """How many of them an earlier run gave out; the times are of the others."""
    route: tuple[Hop, ...]
    standins: tuple[tuple[Hop, ...] | None, ...]
    """For each hop of the route, who was chosen to take its place; None where nobody was yet."""
    codec: CodecName
    first_token_s: float
    seconds_per_token: float
    """Mean over all tokens but the first; 0 if there is one only."""
    longest_gap_s: float
    """The longest wait between two tokens."""
    failovers: tuple[Failover, ...]


@dataclass
class Asker:
    """A peer that owns prompts of one model."""

    node: LiveNode
    owner: OwnerEngine
    on_failover: Callable[[Failover], None]
    named: str = ""
    """What finds the same model again."""
    remembered: tuple[str, ...] = ()
    """Whom somebody who resumes an answer is to meet first."""
    failovers: list[Failover] = field(default_factory=list)
    route: tuple[Hop, ...] = ()
    standins: tuple[tuple[Hop, ...] | None, ...] = ()
    tokens_given: int = 0
    _session: SessionId = SessionId(b"")

    async def ask(
        self,
        prompt: str | Sequence[ChatMessage],
        sampling: Sampling,
        *,
        on_text: Callable[[str], None] = lambda _text: None,
        on_route: Callable[[tuple[Hop, ...]], None] = lambda _route: None,
        journals: Journals | None = None,
    ) -> Answer:
        """Stream one answer; `on_text` gets each piece of text as it is certain.

        `prompt`: text as it is, or a conversation, to be told by the model's chat template.
        `journals`: where to keep a journal of the answer for as long as it is not whole.
        """
        if isinstance(prompt, str):
            words, tokens = prompt, self.owner.tokenize(prompt)
        else:
            words = prompt[-1].content
            tokens = await asyncio.to_thread(self.owner.chat, prompt)
        header = Header(
            model=self.owner.model,
            named=self.named,
            words=" ".join(words.split())[:MAX_WORDS],
            prompt=tuple(tokens),
            sampling=sampling,
            codec=self.node.codec,
            is_chat=not isinstance(prompt, str),
            bootstrap=self.remembered,
            began_s=time.time(),
        )
        journal = journals.begin(header) if journals is not None else None
        with journal or nullcontext():
            return await self._tell(header, (), journal, on_text, on_route)

    async def resume(
        self,
        journal: Journal,
        *,
        on_text: Callable[[str], None] = lambda _text: None,
        on_route: Callable[[tuple[Hop, ...]], None] = lambda _route: None,
    ) -> Answer:
        """Tell an interrupted answer as far as it is known, and go on with the same tokens.

        ModelError if the journal, which is to be open, is of another model.
        """
        if journal.header.model != self.owner.model:
            raise ModelError(
                f"{journal.name} was begun with model {journal.header.model}, and this is another",
                hint="give the folder of that model, or its id, with --model",
            )
        return await self._tell(journal.header, journal.given, journal, on_text, on_route)

    async def _tell(
        self,
        asked: Header,
        given: Sequence[int],
        journal: Journal | None,
        on_text: Callable[[str], None],
        on_route: Callable[[tuple[Hop, ...]], None],
    ) -> Answer:
        self.failovers.clear()
        self.route = self.standins = ()
        tokens, times_s = [*given], [time.perf_counter()]
        self.tokens_given = len(tokens)
        text = TextStream(self.owner.detokenize)
        pieces = ["".join(text.push(token) for token in given)]
        on_text(pieces[-1])
        coming = answer(asked.prompt, self.owner, self.node, asked.sampling, given=given)
        async with aclosing(coming) as stream:
            async for token in stream:
                times_s.append(time.perf_counter())
                if len(tokens) == len(given):
                    on_route(self.route)
                if not self.failovers:  # they are chosen once the answer has begun
                    self.standins = self.node.machine.owning.standins(self._session)
                tokens.append(token)
                self.tokens_given = len(tokens)
                if journal is not None:
                    journal.add(token)
                pieces.append(text.push(token))
                on_text(pieces[-1])
        pieces.append(text.finish())
        on_text(pieces[-1])
        first_token_s, *gaps_s = [later - earlier for earlier, later in pairwise(times_s)] or [0.0]
        return Answer(
            text="".join(pieces),
            tokens=tuple(tokens),
            resumed_tokens=len(given),
            route=self.route,
            standins=self.standins,
            codec=self.node.codec,
            first_token_s=first_token_s,
            seconds_per_token=sum(gaps_s) / len(gaps_s) if gaps_s else 0.0,
            longest_gap_s=max(gaps_s, default=0.0),
            failovers=tuple(self.failovers),
        )

    def heard(self, event: Opened | Rerouted) -> None:
        """Remember the route, and each change of it."""
        if isinstance(event, Opened):
            self._session, self.route = event.session, event.route
            return
        failover = Failover(
            lost=event.lost,
            reason=event.reason,
            before=event.before,
            after=event.after,
            after_tokens=self.tokens_given,
            is_planned=event.is_planned,
        )
        self.failovers.append(failover)
        self.on_failover(failover)


@asynccontextmanager
async def asking(
    model: str,
    bootstrap: Sequence[str],
    *,
    codec_name: CodecName = "int8-outlier",
    transport_name: TransportName = "p2pd",
    on_failover: Callable[[Failover], None] = lambda _failover: None,
    progress: ShowProgress = unwatched,
    peers: Path | None = None,
    frugal: bool = False,
    replicate: bool = False,
) -> AsyncIterator[Asker]:
    """An owner on the mesh that knows workers for every layer, if there are any.

    `model`: a folder, a name or an id; or `PEER/NAME` for the newest version of a line.
    `peers`: the file by which it finds old acquaintances again, if it is given no `bootstrap`.
    `frugal`: a low price counts for more than a quick answer, as long as workers have room.
    `replicate`: stand-ins get copies of the workers' caches.
    """
    owner, named = None, model
    if not is_model_id(model) and not is_line(model):
        path = find_or_download(model, progress)
        named = str(path.resolve()) if path == Path(model) else model
        with progress("checking the model's files") as report:
            folder = open_folder(path, progress=report, cache=hash_cache())
        owner = await _load(folder, progress)
    async with running(
        Key(os.urandom(SEED_BYTES)),
        Listening(bootstrap=tuple(bootstrap), transport_name=transport_name),
        codec_name=codec_name,
        peers=peers,
        on_event=lambda event: asker.heard(event),  # noqa: PLW0108 - it is not there yet
    ) as started:
        node = started.node
        node.machine.owning.be_frugal(frugal)
        node.replicate = replicate
        with progress("looking for workers", unit="steps"):
            await node.bootstrap(bootstrap)
            if owner is not None:
                await node.find_workers(owner.model, owner.layers, timeout_s=FIND_TIMEOUT_S)
        if owner is None:
            found = await _newest(node, parse_line(model)) if is_line(model) else ModelId(model)
            named = str(found)
            owner = await _load(await _fetch(node, found, progress), progress)
            await node.find_workers(owner.model, owner.layers, timeout_s=FIND_TIMEOUT_S)
        asker = Asker(node, owner, on_failover, named)
        yield asker


async def _newest(node: LiveNode, line: Line) -> ModelId:
    """The newest version of a line that workers cover; NetworkError if nobody knows the line."""
    releases = node.machine.releases
    releases.follow(line)
    deadline_s = time.monotonic() + FIND_TIMEOUT_S
    while (release := releases.newest(line)) is None:
        if time.monotonic() > deadline_s:
            raise NetworkError(
                f"no peer knows one newest release of {line}",
                hint="check the name, and that its publisher or a worker that follows it is up",
            )
        await asyncio.sleep(RELEASE_POLL_S)
    await node.hear(release.model)
    return choose_version(release, node.live())


async def _load(folder: Folder, progress: ShowProgress) -> OwnerEngine:
    with progress("loading the head", unit="steps"):
        return await asyncio.to_thread(owner_engine, folder)


async def _fetch(node: LiveNode, model: ModelId, progress: ShowProgress) -> Folder:
    """What an owner needs of a model, from peers."""
    await node.hear(model)
    path = weights_folder(model)
    await fetch_span(node, model, None, owner=True, folder=path, progress=progress)
    return await asyncio.to_thread(open_folder, path)
