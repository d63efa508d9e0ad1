"""Two hundred peers in three regions find out where they are, also among liars."""

from __future__ import annotations

import pytest

from tests.mesh.distances.world import Lie, World, beside, far, late, push


def median(errors: list[float]) -> float:
    return errors[len(errors) // 2]


@pytest.fixture(scope="module")
def settled() -> World:
    world = World(1, 200)
    world.run(60.0)
    return world


def test_most_round_trips_are_predicted_well_after_a_minute(settled: World) -> None:
    errors = settled.errors(settled.honest, settled.honest)
    assert median(errors) < 0.15  # 0.07 of it is in no plane: each pair's own factor


def test_it_takes_few_bytes(settled: World) -> None:
    assert max(settled.sent_bytes) / settled.now_s < 200
    assert sum(settled.sent_bytes) / len(settled.peers) / settled.now_s < 100


def test_lines_are_measured(settled: World) -> None:
    uploads = sorted(peer.upload_bytes_per_s for peer in settled.peers)
    assert uploads[len(uploads) // 2] == pytest.approx(2e6, rel=0.25)
    assert max(settled.payload_bytes) <= 3 * 65536


def test_a_newcomer_knows_its_place_in_five_seconds(settled: World) -> None:
    newcomers = [settled.join() for _ in range(6)]
    before, sent_bytes = sum(settled.announced), sum(settled.sent_bytes)
    start_s = settled.now_s
    settled.run(start_s + 2.0)
    assert all(settled.peers[number].announced.is_measured for number in newcomers)
    settled.run(start_s + 5.0)
    assert median(settled.errors(newcomers, range(200))) < 0.3
    settled.run(start_s + 60.0)
    # It goes on quietly: less than two new announcements a minute each, and few bytes.
    assert sum(settled.announced) - before < 2 * len(settled.peers)
    assert (sum(settled.sent_bytes) - sent_bytes) / len(settled.peers) / 60 < 50


@pytest.mark.parametrize(("lie", "count"), [(push, 100), (far, 50), (late, 50), (beside, 50)])
def test_one_liar_in_ten_spoils_little(lie: Lie, count: int) -> None:
    world = World(2, count, liars=0.1, lie=lie)
    world.run(60.0)
    assert median(world.errors(world.honest, world.honest)) < 0.25
