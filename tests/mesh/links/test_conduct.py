"""Bans grow with each breach, end, and are forgiven; what is said of them is bounded."""

from __future__ import annotations

from gennode.mesh.links import conduct
from gennode.mesh.links.conduct import BAN_S, FORGIVEN_S, MAX_BAN_S, MAX_OFFENDERS, Conduct
from gennode.wire.ids import PeerId
from gennode.wire.signing import Key

A, B = Key(bytes(32)).peer, Key(bytes([1]) * 32).peer


def test_each_breach_doubles_the_ban_up_to_a_limit() -> None:
    kept, now_s = Conduct(0.0), 0.0
    for count in range(40):
        ban_s = min(MAX_BAN_S, BAN_S * 2**count)
        assert kept.breached(A, "/x", "it lied", now_s)
        assert kept.is_banned(A, now_s + 0.99 * ban_s)
        now_s += ban_s
        assert not kept.is_banned(A, now_s)
        assert not kept.is_banned(B, now_s)


def test_a_breach_during_a_ban_changes_nothing() -> None:
    kept = Conduct(0.0)
    assert "count=1" in kept.breached(A, "", "it lied", 0.0)
    assert kept.breached(A, "", "what was on its way", 0.5 * BAN_S) == ""
    assert not kept.is_banned(A, BAN_S)


def test_time_forgives() -> None:
    kept = Conduct(0.0)
    kept.breached(A, "", "it lied", 0.0)
    assert "count=2" in kept.breached(A, "", "it lied", BAN_S + FORGIVEN_S)
    later_s = 3 * BAN_S + 2 * FORGIVEN_S + 1.0
    assert "count=1" in kept.breached(A, "", "it lied", later_s)


def test_one_line_says_who_where_and_why_and_no_peer_can_add_another() -> None:
    line = Conduct(0.0).breached(A, "/ip4/192.0.2.1", "bad\npeer_misbehaved peer=someone", 0.0)
    assert line == f"peer_misbehaved peer={A} address=/ip4/192.0.2.1 count=1 why=bad"
    assert "address=unknown" in Conduct(0.0).breached(A, "", "x\x1b[2J", 0.0)


def test_makers_of_many_keys_fill_neither_log_nor_memory() -> None:
    kept = Conduct(0.0)
    lines = [
        kept.breached(PeerId(f"peer{number}"), "", "it lied", 0.0)
        for number in range(MAX_OFFENDERS + 100)
    ]
    said = [line for line in lines if line]
    assert len(said) == conduct.LINES_BURST
    assert len(kept) == MAX_OFFENDERS
    unsaid = len(lines) - len(said)
    assert f"unsaid={unsaid} " in kept.breached(A, "", "it lied", 10.0)


def test_the_worst_are_remembered_longest() -> None:
    kept = Conduct(0.0)
    for now_s in (0.0, BAN_S):
        kept.breached(A, "", "it lied", now_s)
    for number in range(MAX_OFFENDERS + 100):
        kept.breached(PeerId(f"peer{number}"), "", "it lied", BAN_S)
    assert kept.is_banned(A, 2.5 * BAN_S)
