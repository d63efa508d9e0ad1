"""A live node's part in planning: decides what snapshots come to, away from the loop."""

from __future__ import annotations

import asyncio
import logging
import time

from gennode.errors import GennodeError
from gennode.node.live import LiveNode
from gennode.node.plans.planning import Accepted, Judge, PlanEvent
from gennode.node.plans.proposals import Refused
from gennode.node.plans.witness import PACE, Pace
from gennode.sharding.replan import Decision, decide
from gennode.wire.ids import Hop, ModelId
from gennode.wire.manifest import ModelShape

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 0.5


class Agreeing:
    """Plans models together with their other workers, for as long as `run` runs."""

    def __init__(self, node: LiveNode) -> None:
        self._node = node
        node.on_plan = self._heed

    def plan(self, model: ModelId, shape: ModelShape, pace: Pace = PACE) -> None:
        """Take part in planning a model that this node hosts."""
        self._node.machine.plan(model, shape, pace)

    def hosts(self, model: ModelId) -> tuple[Hop, ...]:
        """Who hosts what by the plan that is accepted now; empty if there is none."""
        planning = self._node.machine.planning.get(model)
        current = planning.current if planning else None
        return current[0].hosts if current else ()

    async def run(self) -> None:
        """Plan until cancelled."""
        while True:
            now_s, unix_s = time.monotonic(), time.time()
            live = self._node.machine.present(now_s)
            for planning in list(self._node.machine.planning.values()):
                self._node.act(planning.tick(now_s, unix_s, live))
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _heed(self, event: PlanEvent) -> None:
        match event:
            case Judge():
                self._node.tasks.create_task(self._judge(event))
            case Accepted():
                log.info(
                    "plan_accepted model=%s epoch=%d publisher=%s hosts=%s",
                    event.snapshot.model[:12], event.epoch, event.publisher,
                    " ".join(f"{hop.peer[-6:]}:{hop.span}" for hop in event.plan.hosts),
                )  # fmt: skip
            case Refused():
                # No more than a line: a node that plans by other rules than ours is no liar.
                log.warning(
                    "plan_refused epoch=%d publisher=%s proven=%s why=%s",
                    event.epoch, event.publisher, event.is_proven, event.reason,
                )  # fmt: skip

    async def _judge(self, judge: Judge) -> None:
        decision: Decision | None
        try:
            decision = await asyncio.to_thread(decide, judge.snapshot, judge.accepted)
        except GennodeError as error:
            log.warning("plan_undecided why=%s", error)
            decision = None
        planning = self._node.machine.planning.get(ModelId(judge.snapshot.model))
        if planning is not None:
            self._node.act(planning.judged(judge.job, decision, time.monotonic()))
