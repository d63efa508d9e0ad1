"""Real worker processes over real connections: killed, stopped, told to go, all in one swarm."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.sample import Sampling
from gennode.errors import ResourceError, UsageError
from gennode.node.alone import Alone
from gennode.node.ask import Answer, Asker, asking
from gennode.node.control import NodeStatus, ask_status, tell_to_leave
from gennode.node.prompt import answer
from gennode.node.state import NodeCard, StateFolder
from gennode.node.testnet import Testnet, WorkerOptions
from gennode.wire.ids import Span
from tests.node.toys import WAIT_S, tokens_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

MODEL = "gennode-small"
SPANS = (Span(0, 1), Span(1, 2), Span(2, 3))
OPTIONS = WorkerOptions(MODEL, memory="256M", threads=1)
PROMPT = "count from 12 to 40 ="
SAMPLING = Sampling(max_tokens=60)
HURT_AT = 8
LIMIT_S = 60.0


@asynccontextmanager
async def raised(folder: Path, spans: tuple[Span, ...]) -> AsyncIterator[tuple[Testnet, Asker]]:
    """A testnet and somebody who asks it; whatever happens, no process stays behind."""
    testnet = Testnet(folder)
    cards = await asyncio.to_thread(testnet.up, spans, OPTIONS)
    try:
        async with asyncio.timeout(LIMIT_S):
            async with asking(MODEL, [card.addresses[0] for card in cards.values()]) as asker:
                await until(lambda: len(asker.node.live()) >= len(spans), asker)
                yield testnet, asker
    finally:
        await asyncio.to_thread(testnet.down)
    assert testnet.cards() == {}


async def until(holds: Callable[[], bool], asker: Asker) -> None:
    """Wait for the asker's directory to be as it should."""
    while not holds():
        asker.node._directory_changed.clear()
        await asker.node._directory_changed.wait()


async def expected() -> tuple[int, ...]:
    """What one process answers that holds the same spans and codes states between them."""
    folder = open_model(find_model(MODEL))
    engine = LlamaShard(folder)
    for span in SPANS:
        engine.load(span)
    alone = Alone(engine, SPANS, "int8-outlier")
    return tuple(await tokens_of(PROMPT, LlamaOwner(folder), alone, SAMPLING))


async def hurt_at_token(
    testnet: Testnet, asker: Asker, place: int, kind: signal.Signals
) -> tuple[Answer, str, float]:
    """Ask, and send a signal to the worker at a place of the route; name it, time the answer."""
    names = {card.peer: name for name, card in testnet.cards().items()}
    hurt: list[str] = []
    start_s = time.monotonic()

    def on_text(_text: str) -> None:
        if asker.tokens_given >= HURT_AT and not hurt:
            hurt.append(names[asker.route[place].peer])
            testnet.send_signal(hurt[0], kind)

    whole = await asker.ask(PROMPT, SAMPLING, on_text=on_text)
    return whole, hurt[0], time.monotonic() - start_s


async def test_the_same_tokens_though_a_worker_is_killed_and_another_stopped(
    tmp_path: Path,
) -> None:
    truth = await expected()
    async with raised(tmp_path, SPANS * 2) as (testnet, asker):
        whole = await asker.ask(PROMPT, SAMPLING)
        assert whole.tokens == truth
        assert [hop.span for hop in whole.route] == list(SPANS)
        assert whole.failovers == ()

        before = testnet.cards()
        killed, victim, _ = await hurt_at_token(testnet, asker, 1, signal.SIGKILL)
        assert killed.tokens == truth
        deadline_s = time.monotonic() + WAIT_S
        while Path(before[victim].control).parent.exists():  # its daemon and sockets go with it
            assert time.monotonic() < deadline_s
        [failover] = killed.failovers
        assert failover.after_tokens >= HURT_AT
        assert victim not in testnet.cards()

        stopped, victim, spent_s = await hurt_at_token(testnet, asker, 2, signal.SIGSTOP)
        assert stopped.tokens == truth
        assert len(stopped.failovers) == 1
        print(f"with one worker stopped the answer took {spent_s:.1f} s")
        assert spent_s < 20.0


async def test_a_worker_that_is_told_to_go_hands_its_session_over_first(tmp_path: Path) -> None:
    truth = await expected()
    async with raised(tmp_path, SPANS * 2) as (testnet, asker):
        changed = asyncio.Event()
        asker.on_failover = lambda _failover: changed.set()
        cards = {card.peer: (name, card) for name, card in testnet.cards().items()}
        tokens: list[int] = []
        async with aclosing(answer(PROMPT, asker.owner, asker.node, SAMPLING)) as stream:
            async for token in stream:
                tokens.append(token)
                if len(tokens) == HURT_AT:
                    name, leaver = cards[asker.route[1].peer]
                    testnet.send_signal(name, signal.SIGTERM)
                    await changed.wait()
        assert tuple(tokens) == truth
        [failover] = asker.failovers
        assert failover.is_planned
        assert failover.lost == (leaver.peer,)
        deadline_s = time.monotonic() + WAIT_S
        while StateFolder(tmp_path / name).is_running():
            assert time.monotonic() < deadline_s
        assert "1 session to hand over" in testnet.log_tail(name)
        assert testnet.log_tail(name).endswith("left.")

        _, successor = cards[failover.after[1].peer]
        await _leaves_at_the_second_word(asker, successor)


async def _leaves_at_the_second_word(asker: Asker, card: NodeCard) -> None:
    """Nobody can take its session over, so it waits; until it is told again."""
    waiting = asyncio.Event()
    waits: list[int] = []

    def on_waiting(sessions: int) -> None:
        waits.append(sessions)
        waiting.set()

    async with asker.node.open(asker.owner, max_positions=16), asyncio.TaskGroup() as group:
        leaving = tell_to_leave(card.control, at_once=False, on_waiting=on_waiting)
        first = group.create_task(leaving)
        await waiting.wait()
        assert (await ask_status(card.control)).is_leaving
        again = tell_to_leave(card.control, at_once=False, on_waiting=on_waiting)
        second = group.create_task(again)
    assert (first.result(), second.result()) == (1, 1)
    assert set(waits) == {1}


async def test_a_worker_that_is_told_to_go_says_goodbye(tmp_path: Path) -> None:
    spent = []
    async with raised(tmp_path, SPANS) as (testnet, asker):
        for name in ("worker-1", "worker-3"):  # the first, whom nobody introduced to others, too
            start_s = time.monotonic()
            leaver = testnet.send_signal(name, signal.SIGTERM)
            await _forgotten(asker, leaver)
            spent.append(time.monotonic() - start_s)
            print(f"{name} was gone after {spent[-1]:.2f} s")
        assert min(spent) < 15.0  # of the 30 s that an announcement lives; one goodbye may be lost
        left = testnet.cards()["worker-2"]
        status = await ask_status(left.control)
        while len(status.workers) > 1:  # it hears of it from those who left, or at second hand
            status = await ask_status(left.control)
        assert [worker.peer for worker in status.workers] == [left.peer]


async def _forgotten(asker: Asker, card: NodeCard) -> None:
    await until(lambda: all(seen.peer != card.peer for seen in asker.node.live()), asker)


async def test_a_newcomer_places_itself_where_layers_are_missing(tmp_path: Path) -> None:
    async with raised(tmp_path, SPANS[:2]) as (testnet, asker):
        addresses = testnet.cards()["worker-1"].addresses
        command = [sys.executable, "-m", "gennode", "join", "--state", str(tmp_path / "worker-9")]
        command += ["--model", MODEL, "--memory", "1M", "--bootstrap", addresses[0], "--json"]
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
        try:
            await until(lambda: len(asker.node.live()) == 3, asker)
            assert (await asker.ask(PROMPT, SAMPLING)).tokens == await expected()
            status: NodeStatus = await ask_status(testnet.cards()["worker-9"].control)
            hosted = [one for seen in status.workers for one in seen.hosting]
            assert any(span.covers(SPANS[2]) for one in hosted for span in one.spans)
        finally:
            process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(process.wait, 30) == 0
            if process.stdout is not None:
                process.stdout.close()


def test_what_a_testnet_can_not_do_is_said_in_words(tmp_path: Path) -> None:
    testnet = Testnet(tmp_path)
    with pytest.raises(UsageError, match="1 to"):
        testnet.up([], OPTIONS)
    with pytest.raises(UsageError, match="does not run") as caught:
        testnet.send_signal("worker-7", signal.SIGKILL)
    assert "none" in caught.value.hint
    with pytest.raises(ResourceError, match="exit code 2") as failed:
        testnet.up([Span(0, 99)], OPTIONS)
    assert "3 layers" in str(failed.value)
    assert "node.log" in failed.value.hint
    assert testnet.down() == []
    testnet.remove()
    assert not tmp_path.exists()


def test_answers_that_were_interrupted_outlive_their_testnet(tmp_path: Path) -> None:
    journal = StateFolder(tmp_path).sessions / "kept"
    journal.parent.mkdir()
    journal.write_bytes(b"tokens")
    (tmp_path / "worker-1").mkdir()
    Testnet(tmp_path).remove()
    assert [*tmp_path.iterdir()] == [journal.parent]
    assert journal.read_bytes() == b"tokens"
