"""How the plan that one peer follows reaches the others of its model. Sans-IO.

A peer tells a few others of a plan once it has accepted it, and compares with one by chance every
few seconds. Whoever lacks a plan asks for it where it was told of: nothing large is sent unasked,
and nobody passes on what it has not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from gennode.errors import RemoteError
from gennode.mesh.links.limits import Bucket
from gennode.node.actions import Send
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.messages import PlanDigest, PlanSent, PlanWanted
from gennode.wire.proposal import DIGEST_BYTES, MAX_PROPOSAL_BYTES, place_in_line

EXCHANGE_INTERVAL_S = 3.0
FAN_OUT = 4  # whom news is told to at once: it reaches nearly all, and the exchange the rest
MAX_OFFERS = 256  # of as many tellers; one is picked by chance, so that a crowd can't hold us up
MAX_CALLERS = 1024
MAX_ASKED = 4  # proposals on their way to us at a time, each from another teller
MAX_ASKED_ALIKE = 2
ANSWER_LIMIT_S = 3.0  # for a few MB over a home line
SHUN_S = 10.0  # who told us of a proposal and did not send it, or sent something else
REPLY_INTERVAL_S = 1.0
SEND_AGAIN_S = 10.0  # the same to the same: an answer may be lost
SENT_BYTES_PER_S = 1024.0 * 1024.0
SENT_BURST_BYTES = 2.0 * MAX_PROPOSAL_BYTES

Standing = tuple[int, bytes, bytes]

T = TypeVar("T")


@dataclass
class _Caller:
    """What another peer got from us lately."""

    replied_s: float = float("-inf")
    sent: bytes = b""
    sent_s: float = float("-inf")


def standing(digest: PlanDigest) -> Standing:
    """The lowest wins wherever two plans meet: the newest epoch, then the publisher who is first
    in that epoch's line, then the lowest id."""
    place = place_in_line(digest.model, digest.epoch, digest.publisher)
    return -digest.epoch, place, digest.proposal


class Spread:
    """Tells, asks and answers for one model. `now_s` is a monotonic clock."""

    def __init__(self, model: ModelId, rng: Random, now_s: float = 0.0) -> None:
        self._rng = rng
        self._none = self._told = PlanDigest(model, 0, PeerId(""), bytes(DIGEST_BYTES))
        self._sent = b""
        self._is_news = False
        self._tell_first: Sequence[PeerId] = ()
        self._oldest_epoch = 0
        self._offers: dict[PeerId, PlanDigest] = {}
        self._asked: dict[PeerId, tuple[PlanDigest, float]] = {}
        self._shunned: dict[PeerId, float] = {}
        self._callers: dict[PeerId, _Caller] = {}
        self._next_exchange_s = float("-inf")
        self._upload = Bucket.full(SENT_BYTES_PER_S, SENT_BURST_BYTES, now_s)

    @property
    def told(self) -> PlanDigest:
        """The plan that we tell of."""
        return self._told

    def follow(self, digest: PlanDigest, sent: bytes, tell_first: Sequence[PeerId] = ()) -> None:
        """Tell of this plan from now on; `sent`: its proposal as it travels."""
        self._told, self._sent, self._is_news = digest, sent, True
        self._tell_first = tell_first

    def shun(self, teller: PeerId, now_s: float) -> None:
        """Ask a peer nothing for a while."""
        self._offers.pop(teller, None)
        self._shunned.pop(teller, None)
        self._shunned[teller] = now_s
        _cut(self._shunned, MAX_CALLERS)

    def tick(
        self,
        now_s: float,
        others: Sequence[PeerId],
        epoch: int,
        wants: Callable[[PlanDigest], bool],
    ) -> list[Send]:
        """Tell and ask what is due. `others`: who may follow plans of this model, sorted.

        Offers of epochs before the one before `epoch` are dropped; `wants` says which of the rest
        to ask for now.
        """
        self._oldest_epoch = epoch - 1
        if self._told.epoch > epoch + 1:  # our clock was ahead: it must not win against all others
            self._told, self._sent = self._none, b""
        self._expire(now_s)
        return [*self._tell(now_s, others), *self._ask(now_s, wants)]

    def _expire(self, now_s: float) -> None:
        for teller, (_, asked_s) in list(self._asked.items()):
            if now_s - asked_s > ANSWER_LIMIT_S:
                del self._asked[teller]
                self.shun(teller, now_s)
        self._shunned = {
            peer: at_s for peer, at_s in self._shunned.items() if now_s - at_s < SHUN_S
        }
        ours = standing(self._told)
        self._offers = {
            teller: offer
            for teller, offer in self._offers.items()
            if offer.epoch >= self._oldest_epoch and standing(offer) < ours
        }

    def _tell(self, now_s: float, others: Sequence[PeerId]) -> Iterable[Send]:
        if self._is_news and others:
            some = self._rng.sample(others, min(FAN_OUT, len(others)))
            told = dict.fromkeys([*self._tell_first, *some])
            self._is_news, self._tell_first = False, ()
            return [Send(peer, self._told) for peer in told]
        if now_s >= self._next_exchange_s and others:
            self._next_exchange_s = now_s + EXCHANGE_INTERVAL_S
            return [Send(self._rng.choice(others), self._told)]
        return ()

    def _ask(self, now_s: float, wants: Callable[[PlanDigest], bool]) -> Iterable[Send]:
        if not self._offers or len(self._asked) >= MAX_ASKED:
            return ()
        tellers = list(self._offers)
        self._rng.shuffle(tellers)
        asks = []
        for teller in tellers:
            offer = self._offers[teller]
            alike = sum(asked.proposal == offer.proposal for asked, _ in self._asked.values())
            is_free = teller not in self._asked and len(self._asked) < MAX_ASKED
            if is_free and alike < MAX_ASKED_ALIKE and wants(offer):
                self._asked[teller] = (offer, now_s)
                del self._offers[teller]
                asks.append(Send(teller, PlanWanted(offer.model, offer.proposal)))
        return asks

    # -- what comes in ------------------------------------------------------------------------

    def heard(
        self, teller: PeerId, digest: PlanDigest, now_s: float, *, is_known: bool
    ) -> list[Send]:
        """A peer told which plan it follows: note it if we know the peer, or tell it of ours if
        that is better."""
        theirs, ours = standing(digest), standing(self._told)
        is_heard = is_known and teller not in self._shunned
        if is_heard and theirs < ours and digest.epoch >= self._oldest_epoch:
            self._offers.pop(teller, None)
            self._offers[teller] = digest
            _cut(self._offers, MAX_OFFERS)
        if theirs <= ours or self._told.epoch < self._oldest_epoch or not self._sent:
            return []
        caller = self._caller(teller)
        if now_s - caller.replied_s < REPLY_INTERVAL_S:
            return []
        caller.replied_s = now_s
        return [Send(teller, self._told)]

    def wanted(self, asker: PeerId, wanted: PlanWanted, now_s: float) -> list[Send]:
        """A peer asks for a proposal. It gets each once in a while, and all together so much."""
        caller = self._caller(asker)
        if caller.sent == wanted.proposal and now_s - caller.sent_s < SEND_AGAIN_S:
            return []
        answer = PlanSent(wanted.model, wanted.proposal)
        if wanted.proposal != self._told.proposal:
            return [Send(asker, answer)]
        caller.sent, caller.sent_s = wanted.proposal, now_s
        self._upload.take(0.0, now_s)
        if self._upload.level < len(self._sent):
            return [Send(asker, answer)]
        self._upload.take(len(self._sent), now_s)
        return [Send(asker, answer, self._sent)]

    def answered(self, teller: PeerId, sent: PlanSent, payload: bytes) -> PlanDigest | None:
        """What we had asked a peer for and now got; None if it has not got it, or never was asked.

        RemoteError for more bytes than a proposal has.
        """
        if len(payload) > MAX_PROPOSAL_BYTES:
            raise RemoteError(f"a proposal of {len(payload)} bytes is too large")
        asked, _ = self._asked.get(teller, (None, 0.0))
        if asked is None or asked.proposal != sent.proposal:
            return None
        del self._asked[teller]
        return asked if payload else None

    def _caller(self, peer: PeerId) -> _Caller:
        caller = self._callers.setdefault(peer, _Caller())
        _cut(self._callers, MAX_CALLERS)
        return caller


def _cut(table: dict[PeerId, T], most: int) -> None:
    """Forget who came first where there are too many."""
    while len(table) > most:
        del table[next(iter(table))]
