"""A release: a publisher's signed word that a model is the next version of a name."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from gennode.errors import RemoteError, UsageError
from gennode.wire.ids import BoundedPeerId, LayerIndex, ModelId, PeerId, public_key_of
from gennode.wire.signing import Key, Signed, seal, unseal

DOMAIN = "release"
MAX_NAME = 64
MAX_NUMBER = 1 << 53
MAX_RELEASE_BYTES = 512  # with every field at its bound it takes some 350

ReleaseName = Annotated[str, msgspec.Meta(max_length=MAX_NAME, pattern=r"^[a-z0-9][a-z0-9._-]*\Z")]
ReleaseNumber = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]


class Line(NamedTuple):
    """A name that one publisher gives, and all its releases."""

    publisher: BoundedPeerId
    name: ReleaseName

    def __str__(self) -> str:
        return f"{self.publisher}/{self.name}"


class Release(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a publisher signs (domain `release`): `model`, with so many layers, is version
    `number` of `name`. `previous`: the model of the version before; empty for the first.
    """

    publisher: BoundedPeerId
    name: ReleaseName
    number: ReleaseNumber
    model: Annotated[ModelId, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    previous: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    layers: LayerIndex

    @property
    def line(self) -> Line:
        """What it is a version of."""
        return Line(self.publisher, self.name)


def sign_release(
    key: Key, name: str, number: int, model: ModelId, previous: ModelId | None, layers: int
) -> Signed:
    """A release of our own; UsageError if the name can't be one."""
    release = Release(key.peer, name, number, model, previous or "", layers)
    signed = seal(key, DOMAIN, release)
    try:
        read_release(signed)
    except RemoteError as error:
        raise UsageError(
            f"{name!r} can't name a release", hint="use a-z, 0-9, '.', '_' and '-', 64 at most"
        ) from error
    return signed


def read_release(signed: Signed) -> Release:
    """The release inside, its signature and bounds checked; else RemoteError."""
    if len(signed.body) > MAX_RELEASE_BYTES:
        raise RemoteError(f"a release of {len(signed.body)} bytes is too large")
    release = unseal(signed, DOMAIN, Release)
    if release.publisher != signed.peer:
        raise RemoteError("a release is signed by another than its publisher")
    return release


def is_line(text: str) -> bool:
    """Whether a person means `PEER/NAME`, and no file or model: it begins as peer ids do."""
    publisher, slash, _ = text.partition("/")
    return bool(slash) and publisher.startswith("12D3Koo") and len(publisher) > 46


def parse_line(text: str) -> Line:
    """A line from `PEER/NAME`, as a person types it; UsageError if it is none."""
    publisher, _, name = text.partition("/")
    try:
        public_key_of(PeerId(publisher))
        return msgspec.convert((publisher, name), Line)
    except (RemoteError, msgspec.ValidationError) as error:
        raise UsageError(
            f"{text!r} is no publisher and name", hint="give it as PEER/NAME, as publish shows it"
        ) from error
