"""Well-formed messages at the wrong time, from the wrong peer, or too many of them."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from gennode.engine.toy import TOY_DIM
from gennode.mesh.directory.admission import MAX_TOLD_BY_GROUP
from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.links.links import Links
from gennode.node.hops.admission import HopLimits
from gennode.node.live import LiveNode
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, ModelId, PeerId, SessionId, Span, session_id
from gennode.wire.messages import (
    MAX_ANNOUNCEMENTS,
    Accept,
    Acquaint,
    AgedAnnouncement,
    Announcements,
    Beats,
    CachePart,
    Close,
    Credit,
    Digest,
    Failed,
    Fed,
    Feed,
    Leaving,
    Message,
    Open,
    Ping,
    Pong,
    Refuse,
    Step,
)
from gennode.wire.signing import Key, Signed, seal
from tests.node.toys import ATTACKER_SEED, LAYERS, MANIFEST, THIRDS, Cast, staged, toy_worker, truth

PROMPT = "none of your business"
MAX_GROWTH_BYTES = 64 * 1024 * 1024
WAIT_S = 20.0
ATTACKER = Key(bytes([ATTACKER_SEED]) * 32)
SESSION = session_id(ATTACKER.peer, b"attacker")
NO_MODEL = ModelId("0" * 64)


class Attacker:
    """A peer that speaks the protocol and writes down how others react."""

    def __init__(self, cast: Cast) -> None:
        self.cast = cast
        self.heard: list[Message] = []
        self.downs: list[PeerId] = []
        self._asked = 1000
        self._changed = asyncio.Event()
        self.links = Links(cast.network.join(ATTACKER.peer), self._message, self._down)

    def _message(self, _peer: PeerId, message: Message, _payload: bytes) -> None:
        if not isinstance(message, Digest | Announcements | Beats):
            self.heard.append(message)
        self._changed.set()

    def _down(self, peer: PeerId, _reason: str, _breach: bool) -> None:
        self.downs.append(peer)
        self._changed.set()

    async def until(self, holds: Callable[[], bool], *, limit_s: float = WAIT_S) -> None:
        """Wait for something that a message or the loss of a link brings about."""
        async with asyncio.timeout(limit_s):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def cut_off(self, peer: PeerId, *, times: int = 1) -> None:
        """Until a peer has ended our link so many times."""
        await self.until(lambda: self.downs.count(peer) >= times)

    async def settled(self, peer: PeerId, *, limit_s: float = WAIT_S) -> None:
        """Until a peer has read all that was sent to it before: it answers in order.

        While it bans us it ends every link of ours, and we ask again.
        """
        async with asyncio.timeout(limit_s):
            while not await self._is_answered(peer):
                pass
        self.heard.pop()

    async def _is_answered(self, peer: PeerId) -> bool:
        self._asked += 1
        cut_off = self.downs.count(peer)
        question = Open(
            session=SESSION,
            attempt=self._asked,
            model=NO_MODEL,
            path=(Hop(peer, Span(0, 1)),),
            index=0,
            codec="raw",
            max_positions=1,
            replay_positions=0,
            rebuild_until=-1,
        )

        def answered() -> bool:
            return any(
                isinstance(heard, Refuse) and heard.attempt == question.attempt
                for heard in reversed(self.heard)
            )

        self.links.send(peer, question)
        await self.until(lambda: answered() or self.downs.count(peer) > cut_off, limit_s=60.0)
        return answered()


@asynccontextmanager
async def attacked() -> AsyncIterator[tuple[Cast, Attacker]]:
    """A swarm that gives the same answer, undisturbed, before, during and after an attack."""
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        expected = await truth(PROMPT)
        assert await cast.ask(PROMPT) == expected
        attacker = Attacker(cast)
        async with attacker.links:
            tracemalloc.start()
            try:
                yield cast, attacker
                assert await cast.ask(PROMPT) == expected
                _, peak_bytes = tracemalloc.get_traced_memory()
                assert peak_bytes < MAX_GROWTH_BYTES
            finally:
                tracemalloc.stop()
        assert cast.repairs == []


def _path(cast: Cast) -> tuple[Hop, ...]:
    peers = [worker.machine.peer for worker in cast.workers]
    return tuple(Hop(peer, span) for peer, span in zip(peers, THIRDS, strict=True))


def _opening(cast: Cast, index: int, session: SessionId = SESSION, attempt: int = 0) -> Open:
    return Open(
        session=session,
        attempt=attempt,
        model=MANIFEST.model,
        path=_path(cast),
        index=index,
        codec="raw",
        max_positions=64,
        replay_positions=0,
        rebuild_until=-1,
    )


def _step(session: SessionId = SESSION, layer: int = 0, number: int = 0) -> Step:
    return Step(
        session=session, attempt=0, number=number, layer=layer, position=0, rows=1,
        reply_rows=1, codec="raw", rebuild=False,
    )  # fmt: skip


def _live_session(node: LiveNode) -> SessionId:
    [key] = node.machine._hops._hosted
    return key.session


async def test_a_stranger_in_the_middle_of_a_session_changes_nothing() -> None:
    async with attacked() as (cast, attacker):
        struck: list[SessionId] = []
        row = bytes(4 * TOY_DIM)

        def strike(count: int) -> None:
            if count % 4:
                return
            session = _live_session(cast.workers[1])
            struck.append(session)
            owner = cast.owner.machine.peer
            for index, worker in enumerate(cast.workers):
                peer = worker.machine.peer
                attacker.links.send(peer, Close(session))
                attacker.links.send(peer, Ping(session, 9))
                attacker.links.send(peer, _opening(cast, index, session, attempt=5))
                layer = THIRDS[index].start
                attacker.links.send(peer, _step(session, layer, 10_000), row)
                for cache in (False, True):
                    attacker.links.send(peer, Feed(session, layer, ATTACKER.peer, 9, 0, cache))
                attacker.links.send(peer, CachePart(session, 0, layer, "toy", 0, 1), row)
                attacker.links.send(peer, Credit(session, 0, layer + 2, 1 << 40))
                attacker.links.send(peer, Acquaint(session, layer, ATTACKER.peer))
            for claim in (Accept(session, 0, 1), Refuse(session, 0, 1, "no"),
                          Failed(session, 0, 1, 0, "I said so"), Pong(session, 0, ()),
                          Credit(session, 0, 0, 1 << 40), Fed(session, 0, 1, 1),
                          Leaving(session, 0, 1, 1, 1)):  # fmt: skip
                attacker.links.send(owner, claim)
            attacker.links.send(owner, _step(session, LAYERS, 10_000), row)

        assert await cast.ask(PROMPT, at_token=strike) == await truth(PROMPT)
        assert len(struck) >= 8
        assert len(set(struck)) == 1


async def test_messages_of_no_session_draw_at_most_a_refusal() -> None:
    async with attacked() as (cast, attacker):
        row = bytes(4 * TOY_DIM)
        for node in (cast.owner, *cast.workers):
            peer = node.machine.peer
            for message in (Accept(SESSION, 0, 0), Refuse(SESSION, 0, 0, ""), Close(SESSION),
                            Failed(SESSION, 0, 0, 0, ""), Pong(SESSION, 0, ()),
                            Credit(SESSION, 0, 0, 1 << 40), Fed(SESSION, 0, 0, 1),
                            Leaving(SESSION, 0, 0, 1, 1), Acquaint(SESSION, 0, ATTACKER.peer),
                            Feed(SESSION, 0, ATTACKER.peer, 1, 0, cache=True)):  # fmt: skip
                attacker.links.send(peer, message)
            attacker.links.send(peer, CachePart(SESSION, 0, 0, "toy", 0, 1), row)
            attacker.links.send(peer, _step(), row)
        for worker in cast.workers:
            await attacker.settled(worker.machine.peer)
        assert attacker.heard == []
        assert attacker.downs == []
        await attacker.settled(cast.owner.machine.peer)  # it hosts nothing, and says so


@pytest.mark.parametrize("kind", ["elsewhere", "a gap", "an overlap", "other terms"])
async def test_a_route_that_can_not_be_costs_its_author_the_link(kind: str) -> None:
    async with attacked() as (cast, attacker):
        peer = cast.workers[1].machine.peer
        first, second, third = _path(cast)
        mine = Hop(ATTACKER.peer, first.span)
        good = msgspec.structs.replace(_opening(cast, 1), path=(mine, second, third))
        variants = {
            "elsewhere": msgspec.structs.replace(good, index=2),
            "a gap": msgspec.structs.replace(good, path=(mine, Hop(peer, Span(3, 4)), third)),
            "an overlap": msgspec.structs.replace(good, path=(mine, Hop(peer, Span(1, 4)), third)),
            "other terms": msgspec.structs.replace(good, attempt=1, codec="int8"),
        }
        bad = variants[kind]
        attacker.links.send(peer, good)
        await attacker.until(lambda: any(isinstance(heard, Accept) for heard in attacker.heard))
        attacker.links.send(peer, bad)
        await attacker.cut_off(peer)
        await attacker.settled(peer)  # it may come back, and is heard


@pytest.mark.parametrize("kind", ["another hop before", "another codec", "fewer positions"])
async def test_an_owner_can_not_have_one_worker_blamed_by_the_next(kind: str) -> None:
    # It opens the two with different words, so that what the first passes on looks wrong.
    async with attacked() as (cast, attacker):
        _, second, third = _path(cast)
        mine = Hop(ATTACKER.peer, THIRDS[0])
        near = msgspec.structs.replace(_opening(cast, 1), path=(mine, second, third))
        far = {
            "another hop before": msgspec.structs.replace(
                near, index=2, path=(mine, Hop(ATTACKER.peer, THIRDS[1]), third)
            ),
            "another codec": msgspec.structs.replace(near, index=2, codec="int8"),
            "fewer positions": msgspec.structs.replace(near, index=2, max_positions=1),
        }[kind]
        attacker.links.send(second.peer, near)
        attacker.links.send(third.peer, far)
        await attacker.until(lambda: len(attacker.heard) == 2)

        def strike(count: int) -> None:
            if count == 8:
                step = msgspec.structs.replace(_step(layer=2), rows=2)
                attacker.links.send(second.peer, step, bytes(2 * 4 * TOY_DIM))

        assert await cast.ask(PROMPT, at_token=strike) == await truth(PROMPT)


async def test_one_owner_can_not_take_all_sessions() -> None:
    async with attacked() as (cast, attacker):
        peer = cast.workers[1].machine.peer
        limits = HopLimits()
        for number in range(1000):
            session = session_id(ATTACKER.peer, number.to_bytes(8, "big"))
            attacker.links.send(peer, _opening(cast, 1, session))
        await attacker.until(lambda: len(attacker.heard) >= 1000)
        accepted = sum(isinstance(heard, Accept) for heard in attacker.heard)
        refused = [heard for heard in attacker.heard if isinstance(heard, Refuse)]
        assert accepted == limits.max_sessions_of_one_owner
        assert len(refused) == 1000 - accepted
        assert "one owner" in refused[0].reason
        assert cast.workers[1].machine.hosted_sessions == accepted


def announcement(key: Key, sequence: int = 1, *, speaks_for: PeerId | None = None) -> Signed:
    """A worker that claims to host everything, the fastest of all."""
    everything = Hosting(MANIFEST.model, (Span(0, LAYERS),), 0, 1e-9, 0.0, 16, "fp32-cpu")
    return seal(key, DOMAIN, hosting_alone(speaks_for or key.peer, everything, sequence))


def hosting_alone(peer: PeerId, hosting: Hosting, sequence: int = 1) -> Announcement:
    """What a peer says that hosts one thing."""
    return Announcement(peer, sequence, 0, 30.0, (hosting,), 0, False, "unknown", ())


def _forged(cast: Cast) -> dict[str, Signed]:
    victim = cast.workers[0].machine.peer
    own = announcement(ATTACKER)
    return {
        "a broken signature": msgspec.structs.replace(own, signature=bytes(64)),
        "a changed body": msgspec.structs.replace(own, body=own.body.replace(b"fp32", b"fp64")),
        "another's name inside": announcement(ATTACKER, speaks_for=victim),
        "another's name outside": msgspec.structs.replace(
            announcement(ATTACKER, 1 << 50, speaks_for=victim), peer=victim
        ),
        "no announcement": msgspec.structs.replace(own, body=b"\x93\x01\x02\x03"),
    }


async def test_forged_announcements_are_a_breach_and_believed_by_nobody() -> None:
    async with attacked() as (cast, attacker):
        before = cast.owner.live()
        peer = cast.owner.machine.peer
        for count, signed in enumerate(_forged(cast).values(), start=1):
            attacker.links.send(peer, Announcements((AgedAnnouncement(signed, 0.0),)))
            await attacker.cut_off(peer, times=count)
        assert [seen.peer for seen in cast.owner.live()] == [seen.peer for seen in before]


async def test_a_worker_that_promises_the_most_and_never_answers_is_replaced() -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        attacker = Attacker(cast)
        async with attacker.links:
            claims = Announcements((AgedAnnouncement(announcement(ATTACKER), 0.0),))
            attacker.links.send(cast.owner.machine.peer, claims)
            await attacker.settled(cast.owner.machine.peer)
            assert ATTACKER.peer in {seen.peer for seen in cast.owner.live()}
            assert await cast.ask(PROMPT) == await truth(PROMPT)
        assert any(isinstance(heard, Open) for heard in attacker.heard)
        assert cast.on_route() == [0, 1, 2]


@pytest.mark.slow  # five thousand signatures
async def test_a_flood_of_announcements_is_bounded_and_honest_workers_stay() -> None:
    chance = random.Random(1)
    async with attacked() as (cast, attacker):
        peer = cast.owner.machine.peer
        keys = [Key(chance.randbytes(32)) for _ in range(MAX_TOLD_BY_GROUP + 500)]
        items = [AgedAnnouncement(seal(key, DOMAIN, _useless(key.peer)), 0.0) for key in keys]
        for start in range(0, len(items), MAX_ANNOUNCEMENTS):
            some = tuple(items[start : start + MAX_ANNOUNCEMENTS])
            attacker.links.send(peer, Announcements(some))
        await attacker.settled(peer, limit_s=60.0)
        known = {seen.peer for seen in cast.owner.live()}
        assert len(known) <= MAX_TOLD_BY_GROUP + len(cast.workers)
        assert {worker.machine.peer for worker in cast.workers} <= known


def _useless(peer: PeerId) -> Announcement:
    """A worker of a model that nobody asks for."""
    return hosting_alone(peer, Hosting(NO_MODEL, (Span(0, 1),), 0, 1.0, 0.0, 16, "fp32-cpu"))
