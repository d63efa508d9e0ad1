"""Releases spread, the newest wins, forks are noticed by all, and floods find no room."""

from __future__ import annotations

from random import Random

import pytest

from gennode.errors import LocalError, RemoteError
from gennode.mesh.directory import releases as limits
from gennode.mesh.directory.releases import EXCHANGE_INTERVAL_S, ReleaseBoard
from gennode.wire.ids import ModelId, PeerId, SessionId
from gennode.wire.messages import MAX_RELEASES, Close, Message, ReleaseDigest, Releases
from gennode.wire.release import Line, sign_release
from gennode.wire.signing import Key, Signed

KEY = Key(bytes(32))
LINE = Line(KEY.peer, "demo")
SOMEBODY = PeerId("somebody")


def released(number: int, model: str = "a", *, key: Key = KEY, name: str = "demo") -> Signed:
    return sign_release(key, name, number, ModelId(model * 64), None, 8)


def settle(boards: list[ReleaseBoard], rounds: int, *, loss: float = 0.0, start: int = 0) -> int:
    """Let boards talk to each other for some exchanges; how many messages it took."""
    names = [PeerId(str(number)) for number in range(len(boards))]
    chance, count = Random(1), 0
    for turn in range(start, start + rounds):
        queue: list[tuple[PeerId, PeerId, Message]] = []
        for name, board in zip(names, boards, strict=True):
            others = [other for other in names if other != name]
            told = board.tick(turn * EXCHANGE_INTERVAL_S, others)
            queue += [(name, target, message) for target, message in told]
        while queue:
            source, target, message = queue.pop(0)
            count += 1
            if chance.random() >= loss:
                replies = boards[int(target)].receive(source, message)
                queue += [(target, back, reply) for back, reply in replies]
    return count


def make(count: int) -> list[ReleaseBoard]:
    return [ReleaseBoard(Random(number)) for number in range(count)]


def numbers(boards: list[ReleaseBoard]) -> set[int | None]:
    return {newest.number if (newest := board.newest(LINE)) else None for board in boards}


@pytest.mark.parametrize("loss", [0.0, 0.2])
def test_a_release_reaches_everybody_and_the_newest_stays(loss: float) -> None:
    boards = make(30)
    boards[0].publish(released(1))
    settle(boards, 20, loss=loss)
    assert numbers(boards) == {1}
    boards[0].publish(released(2, "b"))
    boards[7].receive(SOMEBODY, Releases((released(1),)))
    settle(boards, 20, loss=loss, start=20)
    assert numbers(boards) == {2}


def test_a_newcomer_that_follows_pulls_and_one_that_knows_nothing_is_silent() -> None:
    old, new = make(2)
    assert new.tick(0.0, [SOMEBODY]) == []
    old.receive(SOMEBODY, Releases((released(3),)))
    old.tick(0.0, [SOMEBODY])  # the news is told
    new.follow(LINE)
    [(_, digest)] = new.tick(0.0, [SOMEBODY])
    [(_, answer)] = old.receive(SOMEBODY, digest)
    new.receive(SOMEBODY, answer)
    assert numbers([old, new]) == {3}
    assert old.receive(SOMEBODY, new._digest(reply=True)) == []


def test_who_is_behind_asks_back() -> None:
    old, new = make(2)
    old.receive(SOMEBODY, Releases((released(1),)))
    new.receive(SOMEBODY, Releases((released(2),)))
    [(_, asked)] = old.receive(SOMEBODY, new._digest(reply=True))
    assert isinstance(asked, ReleaseDigest)
    assert not asked.reply
    [(_, answer)] = new.receive(SOMEBODY, asked)
    assert answer == Releases((released(2),))


def test_a_fork_is_noticed_by_all_and_taken_by_none_until_a_higher_number() -> None:
    boards = make(12)
    boards[0].receive(SOMEBODY, Releases((released(5, "a"),)))
    boards[11].receive(SOMEBODY, Releases((released(5, "b"),)))
    settle(boards, 20)
    assert numbers(boards) == {None}
    forks = [board.take_forks() for board in boards]
    assert [len(noticed) for noticed in forks] == [1] * 12  # once, however often it is heard
    assert {release.line for noticed in forks for release in noticed} == {LINE}
    assert {board.number(LINE) for board in boards} == {5}
    boards[3].receive(SOMEBODY, Releases((released(5, "c"),)))  # a third changes nothing
    assert boards[3].take_forks() == []
    boards[3].receive(SOMEBODY, Releases((released(6),)))
    settle(boards, 20, start=20)
    assert numbers(boards) == {6}


def test_a_board_at_rest_costs_a_digest_per_exchange() -> None:
    boards = make(10)
    boards[0].publish(released(1))
    settle(boards, 20)
    assert settle(boards, 10, start=20) == 100


def test_floods_find_no_room_and_those_followed_keep_theirs() -> None:
    [board] = make(1)
    board.follow(LINE)
    flood = [
        released(1, key=Key(number.to_bytes(32, "big"))) for number in range(1, MAX_RELEASES + 9)
    ]
    for start in range(0, len(flood), 32):
        board.receive(SOMEBODY, Releases(tuple(flood[start : start + 32])))
    assert len(board._digest(reply=True).entries) == MAX_RELEASES - 1
    board.receive(SOMEBODY, Releases((released(1),)))
    assert board.number(LINE) == 1
    assert len(board._digest(reply=True).entries) == MAX_RELEASES


def test_forged_releases_are_a_breach(monkeypatch: pytest.MonkeyPatch) -> None:
    [board] = make(1)
    forged = Signed(KEY.peer, released(1).body, bytes(64))
    with pytest.raises(RemoteError):
        board.receive(SOMEBODY, Releases((forged,)))
    board.receive(SOMEBODY, Releases((released(1),)))
    board.receive(SOMEBODY, Releases((forged,)))  # no news: nothing is checked
    with pytest.raises(LocalError):
        board.receive(SOMEBODY, Close(SessionId(bytes(16))))
    monkeypatch.setattr(limits, "MAX_FOLLOWED", 1)
    board.follow(LINE)
    with pytest.raises(LocalError):
        board.follow(Line(KEY.peer, "other"))
