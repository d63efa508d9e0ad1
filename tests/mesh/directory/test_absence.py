"""Who is gone is found out by everybody, and on nobody's word."""

from __future__ import annotations

from gennode.mesh.directory.absence import (
    ABSENT_S,
    DOUBT_S,
    KNOCK_AGAIN_S,
    KNOCKS,
    KNOCKS_OF_ONE,
    TELL_AGAIN_S,
    Absence,
)
from gennode.wire.ids import PeerId
from gennode.wire.messages import Missing, Probe

GONE, NEAR, FAR = PeerId("gone"), PeerId("near"), PeerId("far")


def test_who_can_not_be_reached_is_absent_until_it_is_heard() -> None:
    absence = Absence()
    told = absence.down(GONE, 0.0, [NEAR, GONE, FAR])
    assert told == [(NEAR, Missing(GONE)), (FAR, Missing(GONE))]
    assert absence.absent(1.0) == {GONE}
    absence.heard(GONE, DOUBT_S / 2)  # sent before its link broke
    assert absence.absent(1.0) == {GONE}
    absence.heard(GONE, DOUBT_S)
    assert absence.absent(2.0) == frozenset()


def test_others_are_told_once_in_a_while() -> None:
    absence = Absence()
    assert absence.down(GONE, 0.0, [NEAR])
    assert not absence.down(GONE, TELL_AGAIN_S - 1, [NEAR])
    assert absence.down(GONE, TELL_AGAIN_S, [NEAR])


def test_absence_is_forgotten_after_the_directory_has() -> None:
    absence = Absence()
    absence.down(GONE, 0.0, [])
    assert absence.absent(ABSENT_S - 1)
    assert not absence.absent(ABSENT_S)


def test_a_rumour_makes_us_knock_and_nothing_else() -> None:
    absence = Absence()
    assert absence.knocks(GONE, NEAR, 0.0)
    assert absence.absent(0.0) == frozenset()
    assert not absence.knocks(GONE, NEAR, KNOCK_AGAIN_S - 1)
    assert absence.knocks(GONE, NEAR, KNOCK_AGAIN_S)
    absence.down(GONE, KNOCK_AGAIN_S, [])
    assert not absence.knocks(GONE, NEAR, 3 * KNOCK_AGAIN_S)  # we know already


def test_a_flood_of_rumours_is_bounded_and_drowns_nobody_elses() -> None:
    absence = Absence()
    names = [PeerId(f"peer {number}") for number in range(1000)]
    assert sum(absence.knocks(name, FAR, 0.0) for name in names) == KNOCKS_OF_ONE
    assert absence.knocks(GONE, NEAR, 0.0)
    tellers = [PeerId(f"teller {number}") for number in range(1000)]
    told = zip(names, tellers, strict=True)
    assert sum(absence.knocks(name, teller, 0.0) for name, teller in told) == (
        KNOCKS - KNOCKS_OF_ONE - 1
    )
    assert absence.knocks(names[-1], FAR, KNOCK_AGAIN_S)


def test_who_answers_a_knock_makes_room_for_another() -> None:
    absence = Absence()
    doors = [PeerId(f"peer {number}") for number in range(KNOCKS_OF_ONE + 1)]
    for door in doors[:-1]:
        assert absence.knocks(door, NEAR, 0.0)
    assert not absence.knocks(doors[-1], NEAR, 0.0)
    absence.heard(doors[0], 0.1)
    assert absence.knocks(doors[-1], NEAR, 0.2)


def test_who_lives_for_others_is_tried_again_and_no_more_is_believed() -> None:
    absence = Absence()
    absence.down(GONE, 10.0, [])
    alive_s = {GONE: 10.0 + DOUBT_S}
    assert not [*absence.returns(alive_s.__getitem__, 20.0)]  # shown before we lost it, perhaps
    alive_s[GONE] += 1.0
    assert [*absence.returns(alive_s.__getitem__, 20.0)] == [(GONE, Probe(0))]
    assert absence.absent(20.0) == {GONE}  # until it answers
    assert not [*absence.returns(alive_s.__getitem__, 20.0 + KNOCK_AGAIN_S - 1)]
    assert [*absence.returns(alive_s.__getitem__, 20.0 + KNOCK_AGAIN_S)]
    absence.heard(GONE, 30.0)
    assert not [*absence.returns(alive_s.__getitem__, 40.0)]
