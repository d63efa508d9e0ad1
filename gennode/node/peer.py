"""One peer: directory, hosted sessions and own sessions behind one receive and one tick."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from gennode.errors import LocalError
from gennode.mesh.directory.absence import Absence
from gennode.mesh.directory.announced import DOMAIN, Reader
from gennode.mesh.directory.directory import Directory
from gennode.mesh.directory.releases import ReleaseBoard
from gennode.mesh.distances.distances import Distances
from gennode.node.actions import Action, Job, Outcome, Send
from gennode.node.hops.admission import HopLimits, HostedModel
from gennode.node.hops.hop import HopMachine
from gennode.node.hops.spill import FrameStore
from gennode.node.plans.planning import PlanEvent, PlanningMachine
from gennode.node.plans.witness import Pace
from gennode.node.sessions.owning import OwnerMachine
from gennode.sharding.snapshots import snapshot_of
from gennode.wire.announcement import MAX_HOSTED_MODELS, Announcement, Hosting, Machine
from gennode.wire.beats import LINK_BYTES, chain
from gennode.wire.fields import Reach
from gennode.wire.ids import ModelId, PeerId
from gennode.wire.manifest import ModelShape
from gennode.wire.messages import (
    Accept,
    AgedAnnouncement,
    Announcements,
    Beats,
    Credit,
    Digest,
    Echo,
    Failed,
    Fed,
    Leaving,
    Message,
    Missing,
    PlanDigest,
    PlanSent,
    PlanWanted,
    Pong,
    Probe,
    Refuse,
    ReleaseDigest,
    Releases,
    Step,
)
from gennode.wire.signing import Key, Signed, seal
from gennode.wire.snapshot import Snapshot

LIFETIME_S = 30.0  # a peer that vanishes without a word is forgotten after this
RENEW_S = 10.0  # between announcements that tell of no more than another number of sessions
UPLOAD_NEWS_SHARE = 0.2  # measured uploads waver by less
MAX_TOLD = 32  # workers that a publisher tells of a release itself
MAX_GOODBYES = 32  # each may need a connection, and rumours do the rest

PeerAction = Action | PlanEvent


class PeerMachine:
    """All that a peer decides. Sans-IO: every call returns what to send, run and tell."""

    def __init__(
        self,
        key: Key,
        *,
        rng: random.Random,
        instance: int,
        limits: HopLimits | None = None,
        store: FrameStore | None = None,
        reader: Reader | None = None,
    ) -> None:
        """`instance`: when this run began, in milliseconds since the epoch. Announcements are
        numbered from it on, so that they are newer than those of the runs before. `store`: where
        frames go that take too much memory. `reader`: how it reads what others announce."""
        self.peer = key.peer
        self._key = key
        self._rng = rng
        self._instance = self._sequence = instance
        self._directory = Directory(key.peer, rng, reader=reader)
        self.releases = ReleaseBoard(rng)
        """The versions of models that publishers have signed."""
        self._absence = Absence()
        self.planning: dict[ModelId, PlanningMachine] = {}
        """Our part in planning the models that we host, where no person chose our layers."""
        self._hops = HopMachine(key.peer, limits or HopLimits(), store=store, knows=self.knows)
        self._hosting: dict[ModelId, Hosting] = {}
        self._is_known = False  # whether the last announcement was no goodbye
        self._relay = False
        self._reach: Reach = "unknown"
        self._addresses: tuple[str, ...] = ()
        self._machine: Machine | None = None
        self._told_machine: Machine | None = None
        self._renewed_s = float("-inf")
        self._told_sessions = 0
        self.distances = Distances(key.peer, rng)
        self.owning = OwnerMachine(key.peer, rng, self._directory, self.distances, self._absence)

    # -- being a worker -----------------------------------------------------------------------

    def serve(self, model: HostedModel, hosting: Hosting) -> None:
        """Host layers of a model from now on, beside what is hosted already; announce it."""
        if len(self._hosting.keys() | {model.model}) > MAX_HOSTED_MODELS:
            raise LocalError(f"a peer hosts {MAX_HOSTED_MODELS} models at most")
        self._hops.host(model)
        self._announce_anew({**self._hosting, model.model: hosting})

    def learn(self, hosting: Hosting) -> None:
        """Announce new facts about the layers that are hosted, unless the model is retired."""
        if hosting.model in self._hosting:
            self._announce_anew({**self._hosting, hosting.model: hosting})

    def retire(self, model: ModelId) -> None:
        """Announce a model no longer and refuse its new sessions; those that run go on."""
        self._hops.retire(model)
        self._announce_anew({one: held for one, held in self._hosting.items() if one != model})

    def drop(self, model: ModelId) -> None:
        """Forget a model that is retired; LocalError while sessions of it run."""
        self.retire(model)
        self._hops.drop(model)
        self.planning.pop(model, None)

    def plan(self, model: ModelId, shape: ModelShape, pace: Pace) -> PlanningMachine:
        """Take part in planning a model from now on."""

        def take_snapshot(live: Sequence[Announcement], epoch: int) -> Snapshot:
            return snapshot_of(live, model=model, shape=shape, epoch=epoch)

        self.planning[model] = PlanningMachine(self._key, model, take_snapshot, self._rng, pace)
        return self.planning[model]

    def sessions_of(self, model: ModelId) -> int:
        """Sessions of a model that pass through this peer now."""
        return self._hops.sessions_of(model)

    def locate(self, addresses: tuple[str, ...], *, reach: Reach, relay: bool) -> None:
        """Announce where and how this peer can be reached, and whether it relays for others."""
        self._addresses, self._reach, self._relay = addresses, reach, relay
        self._renewed_s = float("-inf")

    def measured(self, machine: Machine) -> None:
        """Announce what this machine can do; where it is, and its line, are measured here."""
        self._machine = machine
        self._renewed_s = float("-inf")

    @property
    def machine(self) -> Machine | None:
        """What is to be announced of this machine now; None if nobody measured it."""
        if self._machine is None:
            return None
        return msgspec.structs.replace(
            self._machine,
            upload_bytes_per_s=self.distances.upload_bytes_per_s,
            coordinate=self.distances.announced,
        )

    @property
    def reach(self) -> Reach:
        """How others reach this peer, as far as it knows."""
        return self._reach

    @property
    def hosting(self) -> tuple[Hosting, ...]:
        """What is announced of the layers that are hosted."""
        return tuple(self._hosting.values())

    @property
    def hosted_sessions(self) -> int:
        """Sessions that pass through this peer now."""
        return self._hops.sessions

    @property
    def held_bytes(self) -> tuple[int, int]:
        """Of those sessions: what waits for the engine, and the frames that are kept in memory."""
        return self._hops.queued_bytes, self._hops.retained_bytes

    def drain(self, now_s: float) -> list[Action]:
        """Announce no layers any more, refuse new sessions, and ask the owners of those that run
        to go elsewhere; until they have, their steps are computed."""
        self._announce_anew({})
        return self._hops.drain(now_s)

    def leave(self, now_s: float, others: Mapping[PeerId, str]) -> list[Action]:
        """Say goodbye to the neighbours and to some of those we know; they pass it on."""
        if self._sequence == self._instance or self.is_superseded:
            return []  # who is superseded must not say goodbye for the one that stays
        self._hosting, self._relay = {}, False
        signed = self._announce(now_s)
        goodbye = Announcements((AgedAnnouncement(signed, 0.0),))
        near = dict.fromkeys([*self._directory.neighbours.chosen, *others])
        far = sorted({seen.peer for seen in self.live(now_s)} - {self.peer, *near})
        some = self._rng.sample(far, min(len(far), MAX_GOODBYES))
        return [Send(peer, goodbye) for peer in [*near, *some]]

    def release(self, signed: Signed, now_s: float) -> list[Action]:
        """Publish a release of our own: some workers are told, and it spreads from there."""
        self.releases.publish(signed)
        workers = [
            seen.peer for seen in self.live(now_s) if seen.hosting and seen.peer != self.peer
        ]
        some = self._rng.sample(workers, min(len(workers), MAX_TOLD))
        return [Send(peer, Releases((signed,))) for peer in some]

    # -- what others offer --------------------------------------------------------------------

    def live(self, now_s: float) -> tuple[Announcement, ...]:
        """Every announcement that is alive, by peer."""
        return self._directory.live(now_s)

    def present(self, now_s: float) -> tuple[Announcement, ...]:
        """Those of them whose peers can be reached, as far as we know."""
        absent = self._absence.absent(now_s)
        return tuple(one for one in self.live(now_s) if one.peer not in absent)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer says that it can be dialled."""
        return self._directory.addresses(peer)

    def knows(self, peer: PeerId) -> bool:
        """Whether a peer is one of the swarm's, as far as the directory goes."""
        return self._directory.alive_s(peer) > float("-inf")

    @property
    def directory_version(self) -> int:
        """Grows whenever the set of live announcements changes."""
        return self._directory.version

    # -- what comes in ------------------------------------------------------------------------

    def receive(
        self, sender: PeerId, message: Message, payload: bytes, now_s: float
    ) -> Sequence[PeerAction]:
        """React to a message; RemoteError if its sender broke the protocol."""
        self.owning.heard(sender, now_s)
        self._absence.heard(sender, now_s)
        match message:
            case Step():  # first, since there is one for each token
                side = self.owning if self.owning.expects(message) else self._hops
                return side.receive(sender, message, payload, now_s)
            case Digest() | Announcements() | Beats():
                replies = self._directory.receive(sender, message, now_s)
                return [Send(peer, reply) for peer, reply in replies]
            case ReleaseDigest() | Releases():
                replies = self.releases.receive(sender, message)
                return [Send(peer, reply) for peer, reply in replies]
            case Missing():
                knocks = self.addresses(message.peer) and self._absence.knocks(
                    message.peer, sender, now_s
                )
                return [Send(message.peer, Probe(0))] if knocks else []
            case Probe() | Echo():
                echoes = self.distances.receive(sender, message, payload, now_s)
                return [Send(peer, echo, padding) for peer, echo, padding in echoes]
            case Accept() | Refuse() | Failed() | Pong() | Fed() | Leaving():
                if isinstance(message, Accept) and self.owning.owns(message.session):
                    self._directory.worked_with(sender)
                return self.owning.receive(sender, message, payload, now_s)
            case Credit():
                mine = message.layer == 0 and self.owning.owns(message.session)
                mine = mine and not self._hops.feeds(sender, message)  # our own hop 0 does
                side = self.owning if mine else self._hops
                return side.receive(sender, message, payload, now_s)
            case PlanDigest() | PlanWanted() | PlanSent():
                planning = self.planning.get(message.model)
                return planning.receive(sender, message, payload, now_s) if planning else []
        return self._hops.receive(sender, message, payload, now_s)

    def computed(self, job: Job, outcome: Outcome, now_s: float) -> list[Action]:
        """The engine is done with a job."""
        return self._hops.computed(job, outcome, now_s)

    def peer_down(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer can't be reached any more."""
        self._directory.lost(peer, now_s)
        told = self._absence.down(peer, now_s, self._directory.neighbours.chosen)
        actions: list[Action] = [Send(other, message) for other, message in told]
        actions += self._hops.peer_down(peer, now_s)
        return actions + self.owning.peer_down(peer, reason, now_s)

    def peer_in_trouble(self, peer: PeerId, reason: str, now_s: float) -> list[Action]:
        """A peer refuses us, and may be back in a moment."""
        return self.owning.peer_in_trouble(peer, reason, now_s)

    def tick(self, now_s: float, others: Mapping[PeerId, str]) -> list[Action]:
        """Let time pass. `others`: peers to exchange the directory with beside those that
        announce themselves, each with its net group."""
        if (self._offers or self._is_known) and self._has_to_announce(now_s):
            self._announce(now_s)
        partners = self._directory.neighbours.chosen
        probes = self.distances.tick(now_s, partners)
        actions: list[Action] = [Send(peer, probe, padding) for peer, probe, padding in probes]
        exchanges = self._directory.tick(now_s, others)
        actions += [Send(peer, message) for peer, message in exchanges]
        knocks = self._absence.returns(self._directory.alive_s, now_s)
        actions += [Send(peer, probe) for peer, probe in knocks]
        told = self.releases.tick(now_s, partners)
        actions += [Send(peer, message) for peer, message in told]
        return actions + self._hops.tick(now_s) + self.owning.tick(now_s)

    # -- the directory ------------------------------------------------------------------------

    @property
    def good_neighbours(self) -> tuple[PeerId, ...]:
        """With whom we exchange the directory, and who answer; longest kept first."""
        return self._directory.neighbours.good

    def take_news(self) -> list[tuple[Announcement, str]]:
        """Announcements that are new since the last call, and the net group of who told us."""
        return self._directory.take_news()

    @property
    def _offers(self) -> bool:
        return bool(self._hosting) or self._relay

    def _announce_anew(self, hosting: dict[ModelId, Hosting]) -> None:
        self._hosting = hosting
        self._renewed_s = float("-inf")

    def _has_to_announce(self, now_s: float) -> bool:
        """Beats show that we live; another announcement is due when there is news to tell."""
        if self.is_superseded:
            return False
        if self._renewed_s == float("-inf") or self._directory.is_spent:
            return True
        has_news = self._told_sessions != self.hosted_sessions or self._told_machine != self.machine
        return has_news and now_s - self._renewed_s >= RENEW_S

    @property
    def _has_other_machine(self) -> bool:
        """Whether this machine is elsewhere than announced, or its line is another."""
        told, now = self._told_machine, self.machine
        if told is None or now is None or told.coordinate is not now.coordinate:
            return told is not now
        off = abs(now.upload_bytes_per_s - told.upload_bytes_per_s)
        return off > UPLOAD_NEWS_SHARE * told.upload_bytes_per_s

    @property
    def rival(self) -> Announcement | None:
        """What a node announced that runs with our key now: a newer one, or one that knows us."""
        twin = self._directory.twin
        is_now = twin is not None and (twin.instance > self._instance or self.is_superseded)
        return twin if is_now else None

    @property
    def is_superseded(self) -> bool:
        """Whether an older node runs with our key, and knows of us: then we have to end.

        Only its word for our very instance counts, since anybody can replay what a past run of
        ours announced.
        """
        twin = self._directory.twin
        return twin is not None and twin.instance < self._instance == twin.rival

    def _announce(self, now_s: float) -> Signed:
        self._renewed_s, self._told_sessions = now_s, self.hosted_sessions
        self._told_machine = self.machine
        twin = self._directory.twin
        links = chain(self._rng.randbytes(LINK_BYTES)) if self._offers else ()
        self._is_known = self._offers
        self._sequence = max(self._sequence + 1, self._directory.next_sequence)
        announcement = Announcement(
            peer=self.peer,
            sequence=self._sequence,
            instance=self._instance,
            lifetime_s=LIFETIME_S,
            hosting=tuple(self._hosting.values()),
            sessions=self.hosted_sessions,
            relay=self._relay,
            reach=self._reach,
            addresses=self._addresses,
            chain_end=links[0] if links else bytes(LINK_BYTES),
            rival=twin.instance if twin and twin.instance > self._instance else 0,
            machine=self._told_machine,
        )
        signed = seal(self._key, DOMAIN, announcement)
        self._directory.publish(signed, links, now_s)
        return signed
