"""Multiaddresses, text to bytes and back: the few protocols that we dial or listen on."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence

import base58

from gennode.errors import RemoteError, UsageError
from gennode.wire.ids import PeerId, public_key_of

MAX_ADDRESS_BYTES = 1024  # the longest real one, by way of a relay, takes some 150
_MAX_VARINT_BYTES = 5  # 35 bits: every code and length here fits
_CONTINUED = 0x80  # the bit of a varint's byte that says that more follow
_MAX_PEER_ID_BYTES = 64  # 38 in practice; encoding base58 is quadratic in the length

# https://github.com/multiformats/multiaddr/blob/master/protocols.csv
_CODES = {
    "ip4": 4, "tcp": 6, "ip6": 41, "dns": 53, "dns4": 54, "dns6": 55,
    "p2p-circuit": 290, "unix": 400, "p2p": 421,
}  # fmt: skip
_NAMES = {code: name for name, code in _CODES.items()}
_FIXED_BYTES = {"ip4": 4, "ip6": 16, "tcp": 2, "p2p-circuit": 0}

_HINT = "an address looks like /ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"


def pack_varint(number: int) -> bytes:
    """An unsigned integer, 7 bits per byte, least significant first."""
    packed = bytearray()
    while number >= _CONTINUED:
        packed.append(number & 0x7F | _CONTINUED)
        number >>= 7
    packed.append(number)
    return bytes(packed)


def unpack_varint(data: bytes | bytearray, start: int = 0) -> tuple[int, int] | None:
    """(number, where it ends), or None if `data` ends inside; RemoteError if it is too long."""
    number = 0
    for index, byte in enumerate(data[start : start + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < _CONTINUED:
            return number, start + index + 1
    if len(data) - start >= _MAX_VARINT_BYTES:
        raise RemoteError("a varint is longer than any length or code")
    return None


def peer_to_bytes(peer: PeerId) -> bytes:
    """The multihash behind a peer id; RemoteError if it is not an Ed25519 peer id."""
    public_key_of(peer)
    return base58.b58decode(peer)


def peer_from_bytes(raw: bytes) -> PeerId:
    """A peer id from its multihash; RemoteError if it is not an Ed25519 peer id."""
    if len(raw) > _MAX_PEER_ID_BYTES:
        raise RemoteError("a peer id is longer than any Ed25519 peer id")
    peer = PeerId(base58.b58encode(raw).decode())
    public_key_of(peer)
    return peer


def _pack_value(name: str, value: str) -> bytes:
    if name in ("ip4", "ip6"):
        address = ipaddress.ip_address(value)
        if address.version != int(name[-1]):
            raise ValueError(f"{value} is no {name} address")
        return address.packed
    if name == "tcp":
        if not (value.isascii() and value.isdecimal()):
            raise ValueError(f"{value!r} is no port")
        return int(value).to_bytes(2, "big")
    if name == "p2p-circuit":
        return b""
    raw = peer_to_bytes(PeerId(value)) if name == "p2p" else value.encode()
    return pack_varint(len(raw)) + raw


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    names = iter(text.split("/")[1:])
    for name in names:
        if name not in _CODES or name == "unix":
            raise ValueError(f"/{name} is not a protocol that we know")
        value = "" if name == "p2p-circuit" else next(names, "")
        if not value and name != "p2p-circuit":
            raise ValueError(f"/{name} lacks its value")
        yield name, value


def to_bytes(text: str) -> bytes:
    """The binary form; UsageError if `text` is no multiaddress of protocols that we know."""
    if not text.startswith("/") or len(text) > MAX_ADDRESS_BYTES:
        raise UsageError(f"{text[:80]!r} is not a multiaddress", hint=_HINT)
    try:
        return b"".join(
            pack_varint(_CODES[name]) + _pack_value(name, value) for name, value in _pieces(text)
        )
    except (ValueError, OverflowError, RemoteError) as error:
        raise UsageError(f"{text[:80]!r} is not a multiaddress: {error}", hint=_HINT) from error


def unix_to_bytes(path: str) -> bytes:
    """The binary form of `/unix<path>`: the path keeps its leading slash."""
    raw = path.encode()
    return pack_varint(_CODES["unix"]) + pack_varint(len(raw)) + raw


def _unpack_value(name: str, raw: bytes) -> str:
    if name in ("ip4", "ip6"):
        return f"/{ipaddress.ip_address(raw)}"
    if name == "tcp":
        return f"/{int.from_bytes(raw, 'big')}"
    if name == "p2p-circuit":
        return ""
    return f"/{peer_from_bytes(raw)}" if name == "p2p" else "/" + raw.decode().removeprefix("/")


def from_bytes(raw: bytes) -> str:
    """The text form; RemoteError if `raw` is malformed or of a protocol that we don't know."""
    if len(raw) > MAX_ADDRESS_BYTES:
        raise RemoteError("a multiaddress is longer than any real one")
    text, start = "", 0
    while start < len(raw):
        code = unpack_varint(raw, start)
        if code is None or code[0] not in _NAMES:
            raise RemoteError(f"a multiaddress of unknown protocol at byte {start}")
        name, start = _NAMES[code[0]], code[1]
        size = _FIXED_BYTES.get(name)
        if size is None:
            length = unpack_varint(raw, start)
            if length is None:
                raise RemoteError("a multiaddress is cut off")
            size, start = length
        value, start = raw[start : start + size], start + size
        if len(value) != size:
            raise RemoteError("a multiaddress is cut off")
        try:
            text += f"/{name}{_unpack_value(name, value)}"
        except UnicodeDecodeError as error:
            raise RemoteError("a multiaddress holds a name that is not UTF-8") from error
    return text


def split_peers(texts: Sequence[str]) -> tuple[PeerId, tuple[str, ...]]:
    """(the peer, the ways to it) of its addresses; UsageError unless all name the same one."""
    split = [split_peer(text) for text in texts]
    peers = {peer for _, peer in split}
    if len(peers) != 1:
        hint = "give the addresses of one peer"
        raise UsageError(f"{len(peers)} peers are named where one is needed", hint=hint)
    return peers.pop(), tuple(way for way, _ in split)


def split_peer(text: str) -> tuple[str, PeerId]:
    """(the way there, the peer at its end); UsageError unless it ends in `/p2p/<peer id>`."""
    to_bytes(text)
    way, separator, peer = text.rpartition("/p2p/")
    if not separator or not way or "/" in peer:
        hint = "append /p2p/ and the peer's id, as its start-up message prints it"
        raise UsageError(f"{text!r} does not say which peer lives there", hint=hint)
    return way, PeerId(peer)
