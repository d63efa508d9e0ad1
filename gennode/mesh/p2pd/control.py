"""Requests to the libp2p daemon over its control socket, each on a connection of its own."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from gennode.errors import NetworkError, RemoteError, UsageError
from gennode.mesh import multiaddr
from gennode.mesh.p2pd import p2pd_pb2 as pb
from gennode.mesh.p2pd.stream import pack, unpack
from gennode.wire.ids import PeerId

KEY_BYTES = 32
# CIDv1, codec raw, SHA-2-256 of 32 bytes: https://github.com/multiformats/cid
_CID_PREFIX = bytes([0x01, 0x55, 0x12, 0x20])


class DaemonGoneError(NetworkError):
    """The daemon ended before it answered."""


async def ask(
    control: str,
    request: pb.Request,
    timeout_s: float,
    take: Callable[[bytearray], bool] = lambda _: True,
) -> pb.Response:
    """Send one request and read the daemon's answer.

    `take` reads what follows the answer, until it says True. NetworkError in the daemon's words
    if it refuses or takes longer than `timeout_s`; DaemonGoneError if it ends.
    """
    answer = pb.Response()
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(control)
            try:
                writer.write(pack(request))
                buffer = bytearray()
                while not unpack(buffer, answer):
                    buffer += await _some(reader)
                if answer.type != pb.Response.OK:
                    raise NetworkError(answer.error.message)
                while not take(buffer):
                    buffer += await _some(reader)
            finally:
                writer.transport.abort()
    except TimeoutError as error:
        raise NetworkError(f"no answer in {timeout_s:g} s") from error
    except (OSError, RemoteError) as error:
        raise DaemonGoneError(f"the libp2p daemon failed: {error}") from error
    return answer


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(65536)
    if not data:
        raise RemoteError("the connection to the daemon ended")
    return data


def connect_request(peer: PeerId, ways: Sequence[str], timeout_s: float) -> pb.Request:
    """Dial a peer at multiaddresses that do not name it."""
    return pb.Request(
        type=pb.Request.CONNECT,
        connect=pb.ConnectRequest(
            peer=multiaddr.peer_to_bytes(peer),
            addresses=[multiaddr.to_bytes(way) for way in ways],
            timeout_s=math.ceil(timeout_s),
        ),
    )


def open_request(peer: PeerId, protocol: str, timeout_s: float) -> pb.Request:
    """Open a stream."""
    return pb.Request(
        type=pb.Request.STREAM_OPEN,
        stream_open=pb.StreamOpenRequest(
            peer=multiaddr.peer_to_bytes(peer),
            protocols=[protocol],
            timeout_s=math.ceil(timeout_s),
        ),
    )


def handler_request(protocol: str, path: str) -> pb.Request:
    """Hand inbound streams of a protocol to the unix socket at `path`."""
    return pb.Request(
        type=pb.Request.STREAM_HANDLER,
        stream_handler=pb.StreamHandlerRequest(
            address=multiaddr.unix_to_bytes(path), protocols=[protocol], balanced=False
        ),
    )


def provide_request(key: bytes, timeout_s: float) -> pb.Request:
    """Announce in the DHT that we serve `key`."""
    dht = pb.DHTRequest(type=pb.DHTRequest.PROVIDE, cid=_cid(key), timeout_s=int(timeout_s))
    return pb.Request(type=pb.Request.DHT, dht=dht)


def find_request(key: bytes, limit: int, timeout_s: float) -> pb.Request:
    """Ask the DHT who serves `key`; the answer is followed by what `take_providers` reads."""
    return pb.Request(
        type=pb.Request.DHT,
        dht=pb.DHTRequest(
            type=pb.DHTRequest.FIND_PROVIDERS,
            cid=_cid(key),
            count=limit,
            timeout_s=math.ceil(timeout_s),
        ),
    )


def take_providers(found: dict[PeerId, None], limit: int) -> Callable[[bytearray], bool]:
    """A reader of the providers that follow the answer to a `find_request`."""

    def take(buffer: bytearray) -> bool:
        answer = pb.DHTResponse()
        while len(found) < limit and unpack(buffer, answer):
            if answer.type == pb.DHTResponse.END:
                return True
            if answer.type == pb.DHTResponse.VALUE:
                add_peer(found, answer.peer.id)
        return len(found) >= limit

    return take


def opened(buffer: bytearray, peer: PeerId) -> str | None:
    """The address at a new stream's other end, or None while the daemon's answer is not whole.

    RemoteError if it is a refusal.
    """
    answer = pb.Response()
    if not unpack(buffer, answer):
        return None
    if answer.type != pb.Response.OK:
        raise RemoteError(answer.error.message)
    if multiaddr.peer_from_bytes(answer.stream_info.peer) != peer:
        raise RemoteError("another peer answered")
    return address_of(answer.stream_info.address)


def address_of(raw: bytes) -> str:
    """A multiaddress as text; empty if it is of a kind that we don't know."""
    try:
        return multiaddr.from_bytes(raw)
    except RemoteError:
        return ""


def add_peer(found: dict[PeerId, None], raw: bytes) -> None:
    """Add a peer, unless it has another kind of key: then it is none of ours."""
    try:
        found[multiaddr.peer_from_bytes(raw)] = None
    except RemoteError:
        return


def _cid(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise UsageError(f"a DHT key has {KEY_BYTES} bytes, not {len(key)}", hint="use a SHA-256")
    return _CID_PREFIX + key
