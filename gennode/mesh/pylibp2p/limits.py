"""What py-libp2p leaves unbounded, bounded: lines, windows, unread bytes, streams, connections.

py-libp2p 0.8.1 trusts peers in ways that would cost us memory; each class below takes one away.
"""

from __future__ import annotations

import weakref

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, IRawConnection, ISecureConn
from libp2p.io.abc import Reader, ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from libp2p.utils import varint
from multiaddr import Multiaddr

from gennode.mesh.multiaddr import peer_from_bytes

MAX_CONNECTIONS = 64  # an owner talks to the workers of its routes, and to few others
MAX_INBOUND = 48  # so that strangers who dial us can't keep us from dialling
MAX_INBOUND_STREAMS = 16  # per connection; a peer's links take 4 at most
WINDOW_BYTES = 1024 * 1024  # unread on one stream: 10 MB/s at a round trip of 0.1 s
MAX_UNREAD_BYTES = MAX_INBOUND_STREAMS * WINDOW_BYTES  # per connection; 768 MiB over all inbound
MAX_LINE_BYTES = 1024  # of multistream-select; the names of protocols are below 50

# By default a window grows to 16 MiB, and one data frame may be as large.
yamux.MAX_WINDOW_SIZE = WINDOW_BYTES


async def _read_line(reader: Reader) -> bytes:
    return await varint.read_varint_prefixed_bytes_limited(reader, MAX_LINE_BYTES)


# Read before a stranger has proved who it is, and with no limit on the length that it claims.
varint.read_varint_prefixed_bytes = _read_line


class BoundedYamux(yamux.Yamux):
    """A multiplexed connection whose peer is cut off when it sends past what it was granted."""

    async def accept_stream(self) -> IMuxedStream:
        """The next stream that the peer opened; those beyond MAX_INBOUND_STREAMS are reset."""
        while True:
            stream = await super().accept_stream()
            inbound = sum(not known.is_initiator for known in self.streams.values())
            if inbound <= MAX_INBOUND_STREAMS:
                return stream
            await stream.reset()

    async def _read_data_body(self, length: int) -> bytes:
        """Read one data frame. py-libp2p only logs that a peer ignores its window.

        TooSlowError is the one error that its reader takes as the end of the connection.
        """
        if sum(map(len, self.stream_buffers.values())) + length > MAX_UNREAD_BYTES:
            raise trio.TooSlowError("the peer sends past its window")
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        """Write a whole frame even if the task is cancelled: half of one breaks every stream.

        A peer that does not read holds this up, until the socket is closed.
        """
        async with self._write_lock:
            with trio.CancelScope(shield=True):
                await self.secured_conn.write(data)


class DirectTCP(TCP):
    """Dials what is no relay, and closes every socket that it opened."""

    def __init__(self) -> None:
        super().__init__()
        self._dialled: weakref.WeakSet[IRawConnection] = weakref.WeakSet()

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Whether `maddr` leads to the peer itself; py-libp2p's own would dial the relay."""
        return super().can_dial(maddr) and "p2p-circuit" not in str(maddr)

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect to `maddr`."""
        connection = await super().dial(maddr)
        self._dialled.add(connection)
        return connection

    async def close(self) -> None:
        """Close all sockets; py-libp2p forgets some of those whose peer is just closing."""
        for connection in list(self._dialled):
            await connection.close()


class BoundedUpgrader(TransportUpgrader):
    """Makes multiplexed connections of encrypted ones."""

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on yamux; py-libp2p then makes its own, whatever class it was given.

        RemoteError if the peer's key is no Ed25519 key: it is no peer of ours.
        """
        peer_from_bytes(peer_id.to_bytes())
        await super().upgrade_connection(conn, peer_id)
        return BoundedYamux(conn, peer_id, is_initiator=conn.is_initiator)


class _DialsNobody(AutoConnector):
    """py-libp2p's own dials whomever it heard of, up to half of the connections allowed."""

    async def maybe_connect(self) -> None:
        """Do nothing: nobody asked for more connections."""


class BoundedSwarm(Swarm):
    """All connections of a host; py-libp2p's own never gives back an inbound connection's place."""

    _inbound = 0

    def _init_connection_management(self) -> None:
        super()._init_connection_management()
        self.auto_connector = _DialsNobody(self)

    async def _handle_inbound_connection(
        self, read_write_closer: ReadWriteCloser, maddr: Multiaddr
    ) -> None:
        """Serve one inbound connection from its handshake to its end."""
        connection = RawConnection(read_write_closer, False)
        self._inbound += 1
        try:
            if self._inbound <= MAX_INBOUND:
                muxed = await self.upgrade_inbound_raw_conn(connection, maddr)
                if isinstance(muxed, BoundedYamux):
                    await muxed.event_closed.wait()
        except Exception:  # noqa: BLE001 - task root: a stranger's handshake may fail in any way
            return
        finally:
            self._inbound -= 1
            await connection.close()
