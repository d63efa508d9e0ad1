"""Hundreds of directories under loss and churn: who lives is seen, who died is not."""

from __future__ import annotations

import pytest

from gennode.mesh.directory.crowd import LIFETIME_S, Crowd, Weather

CHURN_PER_S = 0.2 / 60


@pytest.mark.slow  # a virtual minute and a half of 150 peers
@pytest.mark.parametrize("seed", range(3))
def test_under_loss_and_churn_all_see_the_living_and_nobody_sees_ghosts(seed: int) -> None:
    crowd = Crowd(150, seed, Weather(churn_per_s=CHURN_PER_S))
    for now_s in range(60, 95, 5):
        crowd.run(float(now_s))
        old = {peer for peer in crowd.alive if crowd.members[peer].joined_s <= now_s - 20}
        for peer in old:
            seen = crowd.seen_by(peer)
            assert len(seen & old) >= 0.99 * len(old), f"at {now_s} s under seed {seed}"
            for ghost in seen - set(crowd.alive):
                died_s = crowd.members[ghost].died_s
                assert died_s is not None
                assert now_s - died_s < LIFETIME_S + 5.0


def test_a_quiet_swarm_agrees_and_sends_little() -> None:
    crowd = Crowd(60, 1, Weather(loss=0.0))
    crowd.run(20.0)
    assert all(crowd.seen_by(peer) == set(crowd.alive) for peer in crowd.alive)
    before = crowd.sent_bytes()
    crowd.run(50.0)
    sent = crowd.sent_bytes() - before
    assert sent["Announcements"] == 0
    assert sent.total() / 60 / 30 < 1500


def test_who_crashes_is_forgotten_by_all_and_stays_away() -> None:
    crowd = Crowd(40, 2, Weather())
    crowd.run(20.0)
    lost = crowd.alive[:5]
    for peer in lost:
        crowd.crash(peer)
    crowd.run(20.0 + LIFETIME_S + 3.0)
    for _ in range(5):
        assert all(crowd.seen_by(peer) == set(crowd.alive) for peer in crowd.alive)
        crowd.run(crowd.now_s + 4.0)
