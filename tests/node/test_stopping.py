"""Leaving: sessions go over to others first, for a while, unless somebody is in a hurry."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing

import pytest

from gennode.node.live import LiveNode
from gennode.node.prompt import answer
from gennode.node.stopping import Stop, drain, stoppable
from tests.node.toys import SAMPLING, THIRDS, WAIT_S, Cast, staged, toy_worker, truth

PROMPT = "leave and let live"
LEAVE_AT = 10


async def _ask_while_one_leaves(cast: Cast, place: int) -> tuple[list[int], LiveNode, list[int]]:
    """The tokens, who left in the middle, and what it waited for."""
    tokens: list[int] = []
    waits: list[int] = []
    async with aclosing(answer(PROMPT, cast.engine, cast.owner, SAMPLING)) as stream:
        async for token in stream:
            tokens.append(token)
            if len(tokens) == LEAVE_AT:
                leaver = cast.workers[cast.on_route()[place]]
                assert await drain(leaver, Stop(None), waits.append) == 0
    return tokens, leaver, waits


def _no_wait(sessions: int) -> None:
    raise AssertionError(f"it waits for {sessions} sessions")


@pytest.mark.parametrize("place", range(3))
async def test_a_worker_that_leaves_is_replaced_while_it_still_serves(place: int) -> None:
    async with staged([toy_worker(span) for span in THIRDS * 2]) as cast:
        async with asyncio.timeout(WAIT_S):
            tokens, leaver, waits = await _ask_while_one_leaves(cast, place)
        assert tokens == await truth(PROMPT)
        assert waits == [1]
        assert leaver.is_leaving
        [change] = cast.repairs
        assert change.is_planned
        assert change.lost == (leaver.machine.peer,)


async def test_a_worker_without_sessions_waits_for_nothing() -> None:
    async with staged([toy_worker(THIRDS[0])]) as cast:
        waits: list[int] = []
        assert await drain(cast.workers[0], Stop(None), waits.append) == 0
        assert waits == []


async def test_who_is_in_a_hurry_leaves_sessions_behind() -> None:
    async with (
        staged([toy_worker(span) for span in THIRDS]) as cast,  # nobody could take them over
        cast.owner.open(cast.engine, max_positions=64),
    ):
        stop = Stop(None)
        stop.tell()
        assert await drain(cast.workers[1], stop, lambda _sessions: stop.tell()) == 1
        at_once = Stop(None)
        at_once.tell(at_once=True)
        assert await drain(cast.workers[2], at_once, _no_wait) == 1
        assert not cast.workers[2].is_leaving


async def test_the_second_signal_is_a_hurry() -> None:
    async with stoppable(leash=False) as stop:
        stop.is_awaited = True
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.told.wait()
        assert not stop.hurried.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await stop.hurried.wait()


async def test_a_body_that_is_not_waiting_is_cancelled_and_that_is_no_error() -> None:
    async with stoppable(leash=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
    assert stop.told.is_set()
