"""What sessions ask of the directory: the same arithmetic where there is a choice."""

from __future__ import annotations

import random

import pytest

from gennode.mesh.directory.absence import Absence
from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.directory.directory import Directory
from gennode.mesh.distances.distances import Distances
from gennode.node.sessions.choice import RouteChoice
from gennode.node.sessions.scouting import Routes, RouteScout
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.beats import LINK_BYTES, chain
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import AgedAnnouncement, Announcements
from gennode.wire.signing import Key, seal

MODEL, FRONT, BACK = ModelId("a" * 64), Span(0, 2), Span(2, 4)
OWNER, FIRST, SECOND, QUICK, ALIKE = (Key(bytes([number]) * 32) for number in range(1, 6))


class Scene:
    """A session over two hops of one compute class, and two that could stand in for the second:
    a quick one of another class, a slower one of its own."""

    def __init__(self, *, has_begun: bool = True) -> None:
        self.directory = Directory(OWNER.peer, random.Random(1))
        self.absence = Absence()
        distances = Distances(OWNER.peer, random.Random(1))
        choice = RouteChoice(OWNER.peer, random.Random(1), self.directory, distances)
        routes = Routes(choice, self.absence)
        self.scout = RouteScout(routes, MODEL, lambda: has_begun)
        self.announce(FIRST, FRONT, "cpu", 0.01)
        self.announce(SECOND, BACK, "cpu", 0.01)
        self.announce(QUICK, BACK, "gpu", 0.001)
        self.announce(ALIKE, BACK, "cpu", 0.02)

    def announce(
        self, key: Key, span: Span, compute_class: str, layer_s: float, *,
        upload: float = 0.0, sessions: int = 0,
    ) -> None:  # fmt: skip
        hosting = Hosting(MODEL, (span,), 0, layer_s, 0.1, 16, compute_class)
        machine = Machine(1 << 30, 1e12, 1e10, 0.0, upload, Coordinate(0.0, 0.0, 0.001, 0.1))
        links = chain(bytes(LINK_BYTES))
        sequence = 1 + self.directory.version
        one = Announcement(
            key.peer, sequence, 0, 30.0, (hosting,), sessions, False, "direct", (),
            chain_end=links[0], machine=machine,
        )  # fmt: skip
        news = Announcements((AgedAnnouncement(seal(key, DOMAIN, one), 0.0),))
        self.directory.receive(key.peer, news, 0.0)

    def standin(self, *avoid: Key) -> PeerId | None:
        own = Hop(SECOND.peer, BACK)
        gone = frozenset({FIRST.peer, SECOND.peer, *(key.peer for key in avoid)})
        found = self.scout.find_standin(own, FIRST.peer, gone)
        return found[0].peer if found else None

    def repaired(self, *avoid: Key) -> PeerId | None:
        gone = frozenset({SECOND.peer, *(key.peer for key in avoid)})
        found = self.scout.find_hops(BACK, FIRST.peer, gone)
        return None if isinstance(found, str) else found[0].peer


def test_a_stand_in_of_the_same_class_is_preferred_to_a_quicker_one() -> None:
    scene = Scene()
    assert scene.standin() == ALIKE.peer
    assert scene.standin(ALIKE) == QUICK.peer
    assert scene.standin(ALIKE, QUICK) is None


def test_so_it_is_in_repairs_even_if_the_lost_one_is_forgotten_by_then() -> None:
    scene = Scene()
    assert scene.repaired() == QUICK.peer  # nothing is known of it yet
    scene.standin()
    scene.announce(SECOND, Span(0, 1), "", 0.01)
    assert scene.repaired() == ALIKE.peer
    assert scene.repaired(ALIKE) == QUICK.peer
    assert scene.repaired(ALIKE, QUICK) is None


def test_who_has_not_begun_wants_the_quickest() -> None:
    scene = Scene(has_begun=False)
    scene.standin()
    assert scene.repaired() == QUICK.peer


def test_who_seems_to_be_gone_does_not_stand_in() -> None:
    scene = Scene()
    hop = Hop(ALIKE.peer, BACK)
    assert scene.scout.is_present(hop)
    scene.absence.down(ALIKE.peer, 0.0, ())
    assert not scene.scout.is_present(hop)
    assert scene.standin() == QUICK.peer


def test_who_lacks_layers_or_room_is_not_ready() -> None:
    scene = Scene()
    assert not scene.scout.is_present(Hop(ALIKE.peer, Span(1, 4)))
    assert not scene.scout.is_present(Hop(Key(bytes([9]) * 32).peer, BACK))
    scene.announce(ALIKE, BACK, "cpu", 0.02, sessions=16)
    assert not scene.scout.is_present(Hop(ALIKE.peer, BACK))


@pytest.mark.parametrize(
    ("upload", "positions", "cache_bytes", "is_quicker"),
    [
        (1e6, 100, 1_000_000, True),  # 1 s to send, 4 s to compute
        (1e6, 10, 1_000_000, False),  # 0.4 s to compute
        (0.0, 10, 1_000_000, True),  # a line that was not measured is a usual one: 0.1 s
        (0.0, 10, 1 << 53, False),
        (0.0, 0, 0, False),
    ],
)
def test_the_quicker_way_to_hand_over_is_chosen(
    upload: float, positions: int, cache_bytes: int, is_quicker: bool
) -> None:
    scene = Scene()
    scene.announce(SECOND, BACK, "cpu", 0.01, upload=upload)
    own, other = Hop(SECOND.peer, BACK), Hop(ALIKE.peer, BACK)
    assert scene.scout.is_cache_quicker(own, other, positions, cache_bytes) == is_quicker


def test_caches_go_to_the_same_class_only() -> None:
    scene = Scene()
    own = Hop(SECOND.peer, BACK)
    assert scene.scout.takes_cache(own, Hop(ALIKE.peer, BACK))
    assert not scene.scout.takes_cache(own, Hop(QUICK.peer, BACK))
    assert not scene.scout.is_cache_quicker(own, Hop(QUICK.peer, BACK), 10_000, 1)
