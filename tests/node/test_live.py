"""The live shell: the same tokens through crashes, resets, frozen and missing workers."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gennode.engine.sample import Sampling
from gennode.engine.seam import States, StepInput
from gennode.engine.toy import ToyShard
from gennode.errors import LocalError, NetworkError, NoRouteError
from gennode.node.actions import Action
from gennode.node.hops.admission import HopLimits
from gennode.node.prompt import answer
from gennode.node.sessions.patience import MIN_PATIENCE_S
from gennode.node.sessions.session import SessionMachine
from gennode.node.sessions.watch import PONG_LIMIT_S
from gennode.wire.fields import CodecName
from gennode.wire.ids import PeerId, Span
from gennode.wire.messages import Step, ToOwner
from tests.node.toys import LAYERS, MANIFEST, THIRDS, WAIT_S, staged, toy_worker, truth

PROMPT = "live and let live"
REPLICATED = THIRDS * 2


class GatedShard(ToyShard):
    """Blocks its compute thread at one step until it is let go."""

    def __init__(self, blocks_at: int) -> None:
        super().__init__(MANIFEST)
        self.blocks_at = blocks_at
        self.gate = threading.Event()
        self.steps = 0

    def step(self, batch: list[StepInput]) -> list[States]:  # type: ignore[override]
        self.steps += 1
        if self.steps == self.blocks_at:
            assert self.gate.wait(60)
        return super().step(batch)


@pytest.mark.parametrize("codec_name", ["raw", "int8", "int8-outlier", "lossless", "bf16-planes"])
async def test_three_workers_answer_as_one_machine_does(codec_name: CodecName) -> None:
    async with staged([toy_worker(span) for span in THIRDS], codec_name=codec_name) as cast:
        assert await cast.ask(PROMPT) == await truth(PROMPT)
        assert cast.on_route() == [0, 1, 2]
        assert cast.repairs == []


@pytest.mark.parametrize("place", range(3))
async def test_no_token_is_lost_or_doubled_when_a_worker_crashes(place: int) -> None:
    async with staged([toy_worker(span) for span in REPLICATED]) as cast:

        def hurt(count: int) -> None:
            if count == 10:
                cast.crash(cast.on_route()[place])

        assert await cast.ask(PROMPT, at_token=hurt) == await truth(PROMPT)
        [repair] = cast.repairs
        assert {hop.peer for hop in repair.before} - {hop.peer for hop in repair.after} == set(
            repair.lost
        )


async def test_two_crashes_in_one_answer() -> None:
    async with staged([toy_worker(span) for span in REPLICATED]) as cast:

        def hurt(count: int) -> None:
            if count in (5, 21):
                cast.crash(cast.on_route()[count % 3])

        assert await cast.ask(PROMPT, at_token=hurt) == await truth(PROMPT)
        assert len(cast.repairs) == 2


async def test_a_long_answer_goes_on_from_its_tokens() -> None:
    sampling = Sampling(temperature=1.0, seed=3, max_tokens=300)
    whole = await truth(PROMPT, sampling)
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        rest = answer(PROMPT, cast.engine, cast.owner, sampling, given=whole[:-5])
        async with asyncio.timeout(WAIT_S):
            assert [token async for token in rest] == whole[-5:]
        assert cast.repairs == []


async def test_streams_that_reset_cost_no_failover() -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        peers = [cast.owner.machine.peer, *(worker.machine.peer for worker in cast.workers)]

        def hurt(count: int) -> None:
            if count % 8 == 0:
                edge = count // 8 % 4
                cast.network.reset_streams(peers[edge], peers[(edge + 1) % 4])

        assert await cast.ask(PROMPT, at_token=hurt) == await truth(PROMPT)
        assert cast.repairs == []


async def test_an_engine_that_is_busy_for_long_is_waited_for() -> None:
    # Its node answers pings, and tells that the step is with the engine: nothing is lost yet.
    gated = GatedShard(blocks_at=8)
    workers = [toy_worker(THIRDS[0]), toy_worker(THIRDS[1], gated), toy_worker(THIRDS[2])]
    async with staged(workers) as cast:
        asking = asyncio.ensure_future(cast.ask(PROMPT))
        try:
            patience_s = MIN_PATIENCE_S + 2 * PONG_LIMIT_S
            await asyncio.wait({asking}, timeout=patience_s)
            assert gated.steps == 8
            assert not asking.done()
        finally:
            gated.gate.set()
        assert await asking == await truth(PROMPT)
        assert cast.repairs == []


@pytest.mark.slow  # it looks for others for SEEK_LIMIT_S
async def test_without_a_replica_left_there_is_no_route_and_a_hint() -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        cast.crash(1)
        with pytest.raises(NoRouteError, match="2:4") as caught:
            await cast.ask(PROMPT)
        assert "gennode join" in caught.value.hint


async def test_an_owner_that_knows_nobody_has_no_route_at_once() -> None:
    async with staged([]) as cast:
        await cast.owner.find_workers(cast.engine.model, LAYERS, timeout_s=0.01)
        with pytest.raises(NoRouteError):
            await cast.ask(PROMPT)


async def test_a_fault_of_ours_costs_one_answer_and_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        receive, seen = SessionMachine.receive, []

        def stumble(
            machine: SessionMachine, sender: PeerId, message: ToOwner, payload: bytes, now_s: float
        ) -> list[Action]:
            if isinstance(message, Step):
                seen.append(message)
                if len(seen) == 5:
                    raise ZeroDivisionError("injected")
            return receive(machine, sender, message, payload, now_s)

        monkeypatch.setattr(SessionMachine, "receive", stumble)
        with pytest.raises(LocalError, match="ZeroDivisionError"):
            await cast.ask(PROMPT)
        assert "fault_of_ours message=Step" in caplog.text
        assert await cast.ask(PROMPT) == await truth(PROMPT)  # nothing else was lost


async def test_two_prompts_at_once_do_not_mix() -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:
        prompts = [f"{PROMPT}, says prompt {number}" for number in range(4)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(cast.ask(prompt)) for prompt in prompts]
        for prompt, task in zip(prompts, tasks, strict=True):
            assert task.result() == await truth(prompt)


async def test_an_answer_that_is_left_frees_the_workers() -> None:
    async with staged([toy_worker(span) for span in THIRDS]) as cast:

        async def give_up() -> None:
            async with cast.owner.open(cast.engine, max_positions=64):
                assert [worker.machine.hosted_sessions for worker in cast.workers] == [1, 1, 1]

        await give_up()
        limit = HopLimits().max_sessions_of_one_owner
        for _ in range(limit + 1):  # each would count, were it not closed
            await give_up()
        assert await cast.ask(PROMPT) == await truth(PROMPT)


async def test_only_bootstrap_peers_that_answer_count() -> None:
    async with staged([toy_worker(Span(0, LAYERS))]) as cast:
        dead = "/memory/p2p/" + "nobody"
        await cast.owner.bootstrap([dead, *cast.workers[0].transport.addresses()])
        with pytest.raises(NetworkError):
            await cast.workers[0].transport.connect(dead, timeout_s=1.0)
