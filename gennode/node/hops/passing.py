"""What goes out of a worker's hops to the next ones: passed on at once, retained for replays.

What can't be sent yet waits in the hop's flow. Only retained frames wait there, so that the
limit of those bounds both.
"""

from __future__ import annotations

from collections.abc import Mapping

from gennode.errors import RemoteError, ResourceError
from gennode.node.actions import Action, HopKey, StepJob
from gennode.node.hops.admission import HopLimits
from gennode.node.hops.feeds import Feeds
from gennode.node.hops.hosted import Hosted
from gennode.node.hops.retained import Kept
from gennode.wire.ids import PeerId
from gennode.wire.messages import Credit, Open


class Passing:
    """The outputs of all hops of a worker."""

    def __init__(self, limits: HopLimits, hosted: Mapping[HopKey, Hosted], feeds: Feeds) -> None:
        """`hosted`: what is here at the time."""
        self._limits = limits
        self._hosted = hosted
        self._feeds = feeds

    def pass_on(self, hosted: Hosted, job: StepJob, payload: bytes, dim: int) -> list[Action]:
        """A step was computed: send its output to whom it is for, and keep it."""
        frame, actions = Kept.of(job, payload), list[Action]()
        if not hosted.is_last:
            actions += self._keep(hosted, frame)
        if job.rebuild and hosted.ends_rebuilding:
            actions += [hosted.fed(frame.end), *hosted.took_step(len(job.payload))]
        elif hosted.is_last:
            actions += [hosted.result(job, payload, dim), *hosted.took_step(len(job.payload))]
        else:
            hosted.owed[job.number] += len(job.payload)
            if not job.rebuild:  # and not what was replayed under this number
                hosted.replayed = min(hosted.replayed, job.number - 1)
            actions += self._push(hosted, frame)
        return actions + self._bound()

    def begin_anew(self, hosted: Hosted, message: Open) -> list[Action]:
        """A new attempt, and a new flow: rebuild the next hop if it is asked for.

        A stand-in that is fed and is the next hop now was sent some of it already.
        """
        adopted = self._feeds.adopt(hosted, message)
        hosted.go_on(message)
        if adopted is not None:
            hosted.flow, hosted.replayed = adopted.flow, adopted.pushed
        actions: list[Action] = []
        for frame in hosted.retained.between(message.replay_from, message.replay_positions):
            if frame.number > hosted.replayed:
                hosted.replayed = frame.number
                actions += self._push(hosted, frame)
        return actions

    def credit(self, sender: PeerId, message: Credit, now_s: float) -> list[Action]:
        """Send what waited for this, to the next hop or to a stand-in.

        Who claims too much is for the owner to judge, which may have told the two of us
        different things.
        """
        for key, hosted in self._hosted.items():
            below = hosted.receiver, hosted.span.end, hosted.opened.attempt
            if key.session == message.session and below == (sender, message.layer, message.attempt):
                try:
                    return self._send(hosted, hosted.flow.credit(message.taken_bytes))
                except RemoteError as error:
                    return [hosted.failed(hosted.opened.index + 1, hosted.passed, str(error))]
        return self._feeds.credit(sender, message, now_s)

    def _push(self, hosted: Hosted, frame: Kept) -> list[Action]:
        return self._send(hosted, hosted.flow.push(frame, frame.size_bytes))

    def _send(self, hosted: Hosted, frames: list[Kept]) -> list[Action]:
        """Only what has left counts as taken: who is slow below slows down those above."""
        sends: list[Action] = []
        for frame in frames:
            try:
                payload = hosted.retained.payload(frame)
            except ResourceError as error:
                return [*sends, hosted.failed(hosted.opened.index, frame.number, str(error))]
            sends.append(hosted.step(frame, payload))
            sends += hosted.took_step(hosted.owed.pop(frame.number, 0))
        return sends

    def _keep(self, hosted: Hosted, frame: Kept) -> list[Action]:
        """Retain a frame in place of those from its position on."""
        actions: list[Action] = []
        for old in hosted.retained.cut(frame.position):
            self._feeds.withdraw(hosted.key, old)
            if not hosted.flow.withdraw(old):
                continue
            actions += hosted.took_step(hosted.owed.pop(old.number, 0))
            if not hosted.only_rebuilds(old):
                reason = "a step was replaced before it was answered"
                actions.append(hosted.failed(hosted.opened.index - 1, old.number, reason))
        if hosted.retained.end < frame.position:  # the cache was restored, and not computed here
            actions += self._give_up(hosted)
        hosted.retained.add(frame)
        return actions

    def _bound(self) -> list[Action]:
        """Put frames of the largest session aside when all take too much. Where there is no room
        for them it gives them up: it can still be rebuilt from further up, or from tokens.
        """
        actions: list[Action] = []
        while True:
            held = list(self._hosted.values())
            if sum(one.retained.memory_bytes for one in held) <= self._limits.retained_bytes:
                return actions
            largest = max(held, key=lambda one: one.retained.memory_bytes)
            if not largest.retained.spill_oldest():
                actions += self._give_up(largest)

    def _give_up(self, hosted: Hosted) -> list[Action]:
        """Forget a session's frames. Where some were still to be sent, the session is stuck."""
        hosted.retained.give_up()
        actions = self._feeds.lose(hosted.key)
        if hosted.flow.waiting:
            hosted.flow.clear()
            reason = "takes in nothing, and there is no room left to wait for it"
            actions.append(hosted.failed(hosted.opened.index + 1, hosted.passed, reason))
        return actions
