"""What an owner knows beside announcements decides its routes: own sessions, failures, prices."""

from __future__ import annotations

import random

from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.directory.directory import Directory
from gennode.mesh.distances.distances import Distances
from gennode.node.sessions.choice import BOARD_S, FORGIVE_S, RouteChoice
from gennode.sharding.route.route import Gap, Route
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.beats import LINK_BYTES, chain
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import Hop, ModelId, PeerId, Span
from gennode.wire.messages import AgedAnnouncement, Announcements
from gennode.wire.signing import Key, seal

MODEL, WHOLE = ModelId("a" * 64), Span(0, 4)
OWNER, NEAR, FAR = (Key(bytes([number]) * 32) for number in (1, 2, 3))


class Fixed(random.Random):
    """Chance that always falls in the middle, so that only knowledge decides."""

    def random(self) -> float:
        return 0.5


class Scene:
    """An owner that knows two workers with all layers, one of them nearer."""

    def __init__(self, *, near_price: int = 0, near_upload: float = 0.0) -> None:
        self.directory = Directory(OWNER.peer, random.Random(1))
        distances = Distances(OWNER.peer, random.Random(1))
        distances.coordinate = Coordinate(0.0, 0.0, 0.001, 0.1)
        self.choice = RouteChoice(OWNER.peer, Fixed(), self.directory, distances)
        self.near_price, self.near_upload = near_price, near_upload
        self.announce(1)

    def announce(self, sequence: int, near_sessions: int = 0, now_s: float = 0.0) -> None:
        for key, x_s, sessions in ((NEAR, 0.010, near_sessions), (FAR, 0.020, 0)):
            price = self.near_price if key is NEAR else 0
            upload = self.near_upload if key is NEAR else 0.0
            hosting = Hosting(MODEL, (WHOLE,), 0, 0.001, 0.1, 16, "", price=price)
            machine = Machine(1 << 30, 1e12, 1e10, 0.0, upload, Coordinate(x_s, 0.0, 0.001, 0.1))
            links = chain(bytes(LINK_BYTES))
            one = Announcement(
                key.peer, sequence, 0, 30.0, (hosting,), sessions, False, "direct", (),
                chain_end=links[0], machine=machine,
            )  # fmt: skip
            news = Announcements((AgedAnnouncement(seal(key, DOMAIN, one), 0.0),))
            self.directory.receive(key.peer, news, now_s)

    def first(self, now_s: float = 0.0, *, avoid: frozenset[PeerId] = frozenset()) -> PeerId:
        route = self.choice.route(
            MODEL, WHOLE, OWNER.peer, avoid, now_s, allow_cold=False, is_new=True
        )
        assert isinstance(route, Route)
        return route.hops[0].peer


def path(key: Key) -> tuple[Hop, ...]:
    return (Hop(key.peer, WHOLE),)


def test_the_nearer_of_two_alike_is_chosen() -> None:
    assert Scene().first() == NEAR.peer
    assert Scene().first(avoid=frozenset({NEAR.peer})) == FAR.peer


def test_a_thin_line_counts() -> None:
    scene = Scene(near_upload=1e5)
    scene.choice.frames(MODEL, 2000)  # 20 ms a token
    assert scene.first() == FAR.peer


def test_own_sessions_count_until_announcements_tell_of_them() -> None:
    scene = Scene()
    assert scene.first() == NEAR.peer
    for _ in range(8):
        scene.choice.opened(path(NEAR))
    assert scene.first() == FAR.peer
    for _ in range(8):
        scene.choice.closed(path(NEAR))
    assert scene.first() == NEAR.peer
    for _ in range(8):
        scene.choice.opened(path(NEAR))
    scene.announce(2, now_s=1.0)  # it says that it has none: they are over
    assert scene.first(1.0 + BOARD_S) == NEAR.peer


def test_a_failure_is_held_against_a_worker_for_a_while() -> None:
    scene = Scene()
    scene.choice.failed(NEAR.peer, 0.0)
    scene.choice.failed(NEAR.peer, 0.0)
    assert scene.first(0.0) == FAR.peer
    late_s = 5 * FORGIVE_S
    scene.announce(2, now_s=late_s)
    assert scene.first(late_s) == NEAR.peer


def test_a_price_counts_for_the_frugal() -> None:
    scene = Scene(near_price=100)
    assert scene.first() == NEAR.peer
    frugal = Scene(near_price=100)
    frugal.choice.frugal = True
    assert frugal.first() == FAR.peer


def test_nobody_is_a_gap() -> None:
    scene = Scene()
    both = frozenset({NEAR.peer, FAR.peer})
    found = scene.choice.route(MODEL, WHOLE, OWNER.peer, both, 0.0, allow_cold=True, is_new=True)
    assert isinstance(found, Gap)
