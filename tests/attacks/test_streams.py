"""Floods and misers over real daemons: an honest peer beside them is served, memory is bounded."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psutil
import pytest

from gennode.errors import NetworkError
from gennode.mesh.links import incoming
from gennode.mesh.links.limits import MESSAGES_BURST, MESSAGES_PER_S
from gennode.mesh.links.outgoing import PROTOCOL
from gennode.mesh.links.protocol import LINK_ID_BYTES, MAX_QUEUED_BYTES, Kind, Reply, reply
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.mesh.transport import Stream
from gennode.wire.frames import MAX_FRAME_BYTES, encode
from gennode.wire.ids import PeerId
from gennode.wire.messages import Message
from gennode.wire.signing import Key
from tests.mesh.ends import Diary, Raw, ping

MAX_GROWTH_BYTES = 128 * 1024 * 1024  # of a process that also holds the attacker's own buffers
WAIT_S = 60.0
BLOCK_BYTES = 256 * 1024
_RECORD = struct.Struct(">BQI")


class Echo(Diary):
    """Answers everybody but the stranger, who would be given up as soon as that failed."""

    stranger: PeerId

    def _message(self, peer: PeerId, message: Message, payload: bytes) -> None:
        self.echo = peer != self.stranger
        super()._message(peer, message, payload)

    def taken(self) -> int:
        """How many of the stranger's messages have been acted on."""
        return sum(peer == self.stranger for peer, _, _ in self.got)


class Scene:
    """A victim that echoes, an honest peer with a link to it, and a stranger."""

    def __init__(self, transports: list[P2pdTransport]) -> None:
        self.victim = Echo(transports[0])
        self.victim.stranger = transports[2].peer
        self.honest = Diary(transports[1])
        self.stranger = transports[2]
        self.asked = 0
        ours = psutil.Process()
        control = f"-listen=/unix{transports[0].folder}/control"
        daemon = next(
            process
            for process in psutil.process_iter(["cmdline"])
            if control in (command := process.info["cmdline"] or []) and "sh" not in command
        )
        self._processes = (ours, daemon)
        self._before = [process.memory_info().rss for process in self._processes]
        self.growth = [0, 0]

    @property
    def peer(self) -> PeerId:
        return self.victim.transport.peer

    def measure(self) -> None:
        """Note by how much we and the victim's daemon have grown at most."""
        for index, process in enumerate(self._processes):
            grown = process.memory_info().rss - self._before[index]
            self.growth[index] = max(self.growth[index], grown)

    async def ask(self) -> None:
        """The honest peer's question is answered."""
        self.asked += 1
        self.honest.links.send(self.peer, ping(self.asked), bytes(8192))
        await self.honest.wait_for(messages=self.asked)
        self.measure()

    async def open(self, link: int | None = None) -> Raw:
        """A stream of the stranger's; with the greeting of a link of that number."""
        raw = Raw(await self.stranger.open(self.peer, PROTOCOL, timeout_s=WAIT_S))
        if link is not None:
            name = link.to_bytes(LINK_ID_BYTES, "big")
            raw.stream.write(_RECORD.pack(Kind.HELLO, 0, LINK_ID_BYTES) + name)
        return raw


async def write(raw: Raw, data: bytes, times: int = 1) -> None:
    """Send it so many times, or as often as the far end takes it before it closes."""
    for start in list(range(0, len(data), BLOCK_BYTES)) * times:
        raw.stream.write(data[start : start + BLOCK_BYTES])
        while raw.stream.unsent_bytes() > BLOCK_BYTES and not raw.reason:  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def attacked() -> AsyncIterator[Scene]:
    async with asyncio.timeout(WAIT_S), AsyncExitStack() as stack:
        transports = []
        for number in range(3):
            transports.append(await P2pdTransport.start(Key(bytes([number, 9]) * 16)))
            stack.push_async_callback(transports[-1].close)
        scene = Scene(transports)
        await stack.enter_async_context(scene.victim.links)
        await stack.enter_async_context(scene.honest.links)
        scene.honest.links.learn(scene.peer, transports[0].addresses())
        await scene.ask()
        await scene.stranger.connect(*transports[0].addresses(), timeout_s=WAIT_S)
        yield scene
        await scene.ask()
        assert max(scene.growth) < MAX_GROWTH_BYTES, scene.growth
        assert not scene.honest.downs


async def beside(scene: Scene, attack: Callable[[Scene], Awaitable[None]]) -> None:
    """Attack while the honest peer goes on asking."""
    attacking = asyncio.ensure_future(attack(scene))
    try:
        while not attacking.done():
            await scene.ask()
        await attacking
    finally:
        attacking.cancel()


async def stream_flood(scene: Scene) -> None:
    """All but a few of many streams are closed, and their author is cut off."""
    raws = []
    for _ in range(400):
        with suppress(NetworkError):
            raws.append(await scene.open())
    for raw in raws:
        await raw.wait_for(closed=True)


async def drip_of_frames(scene: Scene) -> None:
    """The most that can be begun of the largest frames, on as many streams as there may be."""
    begun = struct.pack(">II", MAX_FRAME_BYTES, 64)
    head, block = _RECORD.pack(Kind.FRAME, 0, MAX_FRAME_BYTES), bytes(BLOCK_BYTES)
    async with asyncio.TaskGroup() as group:
        for number in range(incoming.MAX_STREAMS_PER_PEER):
            raw = await scene.open(number)
            raw.stream.write(head, begun)
            group.create_task(write(raw, block, MAX_FRAME_BYTES // BLOCK_BYTES - 1))
    [held] = (use for use in scene.victim.links.uses() if use.name == "unfinished frames (bytes)")
    one_read = BLOCK_BYTES  # is counted before the stream that brought it is cut
    assert MAX_FRAME_BYTES < held.highest <= incoming.MAX_PEER_BUFFERED_BYTES + one_read, held


async def torn_streams(scene: Scene) -> None:
    """Frames that end in the middle, over and over."""
    body = b"".join(bytes(part) for part in encode(ping(1), bytes(100_000)))
    for number in range(40):
        raw = await scene.open(number % 4)
        await write(raw, _RECORD.pack(Kind.FRAME, 0, len(body)) + body[: 2000 * number])
        raw.stream.close()
        await raw.wait_for(closed=True)


async def message_flood(scene: Scene) -> None:
    """Small messages, faster than they are taken: what is left waits, and nobody else."""
    body = b"".join(bytes(part) for part in encode(ping(1)))
    raw, loop = await scene.open(1), asyncio.get_running_loop()
    flood = b"".join(_RECORD.pack(Kind.FRAME, n, len(body)) + body for n in range(60_000))
    start_s = loop.time()
    sending = asyncio.ensure_future(write(raw, flood))
    asked = scene.asked
    while scene.victim.taken() < MESSAGES_BURST or scene.asked < asked + 50:  # noqa: ASYNC110
        await asyncio.sleep(0)
    one_read = 256 * 1024 // len(body)
    assert scene.victim.taken() <= (
        MESSAGES_BURST + MESSAGES_PER_S * (loop.time() - start_s) + one_read
    )
    sending.cancel()
    raw.stream.abort()


async def reads_nothing(scene: Scene) -> None:
    """What is sent to it is left lying: it is given up before long."""

    def leave_lying(stream: Stream) -> None:
        Raw(stream).stream.write(reply(Reply.WELCOME))
        stream.pause(True)

    await scene.stranger.accept(PROTOCOL, leave_lying)
    payload = bytes(1024 * 1024)
    for number in range(MAX_QUEUED_BYTES // len(payload) * 2):
        scene.victim.links.send(scene.stranger.peer, ping(number), payload)
        await asyncio.sleep(0)
        if scene.victim.downs:
            break
    await scene.victim.wait_for(downs=1)
    assert "too slow" in scene.victim.downs[0][1]


@pytest.mark.parametrize(
    "attack", [stream_flood, drip_of_frames, torn_streams, message_flood, reads_nothing]
)
@pytest.mark.slow  # three daemons start
async def test_an_honest_peer_is_served_beside(attack: Callable[[Scene], Awaitable[None]]) -> None:
    async with attacked() as scene:
        await beside(scene, attack)


@pytest.mark.slow  # three daemons start, and greetings time out
async def test_whoever_does_not_greet_is_closed() -> None:
    async with attacked() as scene:
        silent = [await scene.open() for _ in range(incoming.MAX_STREAMS_PER_PEER)]
        silent[0].stream.write(b"\x01")
        for raw in silent:
            await raw.wait_for(closed=True)
