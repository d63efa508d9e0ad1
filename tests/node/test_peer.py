"""The peer machine: what comes in goes to whom it is for, and leaving is a matter of two steps."""

from __future__ import annotations

import random

import msgspec

from gennode.mesh.directory.announced import DOMAIN
from gennode.mesh.directory.netgroup import LOCAL
from gennode.node.actions import Action, Exported, ExportJob, Run, Send
from gennode.node.hops.admission import HostedModel
from gennode.node.peer import PeerMachine
from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import Hop, PeerId, Span, session_id
from gennode.wire.messages import (
    Acquaint,
    AgedAnnouncement,
    Announcements,
    CachePart,
    Close,
    Credit,
    Failed,
    Feed,
    Leaving,
    Open,
    Probe,
    Refuse,
    Step,
)
from gennode.wire.signing import Key, seal
from tests.node.conftest import (
    FIRST,
    LAYERS,
    MODEL,
    OWNER,
    PATH,
    SECOND,
    SESSION,
    SPARE,
    frame,
    hosted_model,
    opening,
    step,
)

KEYS = {key.peer: key for key in (Key(bytes([number]) * 32) for number in range(1, 6))}


def _hosting(span: Span = PATH[1].span) -> Hosting:
    return Hosting(MODEL, (span,), 0, 1e-3, 0.0, 16, "fp32-cpu")


def _worker(own: PeerId = SECOND, model: HostedModel | None = None) -> PeerMachine:
    machine = PeerMachine(KEYS[own], rng=random.Random(1), instance=0)
    machine.serve(model or hosted_model(), _hosting())
    machine.tick(0.0, {})
    return machine


def _meets(machine: PeerMachine, other: PeerId) -> None:
    """Have it hear of another worker."""
    said = Announcement(other, 1, 0, 30.0, (_hosting(),), 0, False, "unknown", ())
    item = AgedAnnouncement(seal(KEYS[other], DOMAIN, said), 0.0)
    machine.receive(other, Announcements((item,)), b"", 0.0)


def _opens(machine: PeerMachine, message: Open) -> None:
    [run] = machine.receive(OWNER, message, b"", 0.0)
    assert isinstance(run, Run)
    machine.computed(run.job, b"", 0.0)


def _passes(machine: PeerMachine, sender: PeerId, message: Step) -> list[Action]:
    [run] = machine.receive(sender, message, frame(), 0.0)
    assert isinstance(run, Run)
    return machine.computed(run.job, frame(), 0.0)


# -- leaving --------------------------------------------------------------------------------------


def test_a_worker_that_drains_offers_nothing_and_asks_owners_to_go() -> None:
    machine = _worker()
    _opens(machine, opening(1))
    assert machine.drain(1.0) == [Send(OWNER, Leaving(SESSION, 0, 1, 0, 0))]
    machine.tick(1.0, {})
    assert machine.hosting == ()
    assert machine.live(1.0) == ()
    newcomer = msgspec.structs.replace(opening(1), session=session_id(OWNER, b"n" * 8))
    [refusal] = machine.receive(OWNER, newcomer, b"", 1.0)
    assert isinstance(refusal, Send)
    assert isinstance(refusal.message, Refuse)
    assert refusal.message.reason == "this worker is leaving"
    assert _passes(machine, FIRST, step(0, 0)) != []
    again = machine.tick(3.0, {})
    assert Send(OWNER, Leaving(SESSION, 0, 1, 1, 0)) in again


def test_who_drained_says_goodbye_when_it_leaves() -> None:
    for ticks in (False, True):
        machine = _worker()
        machine.drain(1.0)
        if ticks:
            machine.tick(1.0, {})
        [goodbye] = machine.leave(2.0, {OWNER: LOCAL})
        assert isinstance(goodbye, Send)
        assert isinstance(goodbye.message, Announcements)
        assert goodbye.peer == OWNER


def test_who_never_said_anything_says_no_goodbye() -> None:
    machine = PeerMachine(KEYS[OWNER], rng=random.Random(1), instance=0)
    machine.tick(0.0, {})
    assert machine.leave(1.0, {SECOND: LOCAL}) == []


# -- whom it calls for others ---------------------------------------------------------------------


def test_only_workers_that_it_knows_are_called_for_an_owner() -> None:
    machine = _worker()
    _opens(machine, opening(1))
    feed = Feed(SESSION, 2, SPARE, 7, 0, cache=False)
    assert not machine.knows(SPARE)
    assert machine.receive(OWNER, Acquaint(SESSION, 2, SPARE), b"", 0.0) == []
    [refused] = machine.receive(OWNER, feed, b"", 0.0)
    assert isinstance(refused, Send)
    assert isinstance(refused.message, Failed)
    assert "not known" in refused.message.reason
    _passes(machine, FIRST, step(0, 0))
    _meets(machine, SPARE)
    assert machine.knows(SPARE)
    assert machine.receive(OWNER, Acquaint(SESSION, 2, SPARE), b"", 0.0) == [Send(SPARE, Probe(0))]
    [fed] = machine.receive(OWNER, feed, b"", 0.0)
    assert isinstance(fed, Send)
    assert fed.message == step(0, 0, layer=4, attempt=7, rebuild=True)


# -- credit goes to whom it is for ----------------------------------------------------------------


def test_an_owner_that_hosts_the_first_layers_tells_its_credits_apart() -> None:
    """Of what its own hop feeds a stand-in, and of the steps that it sends as the owner."""
    whole = Span(0, LAYERS)
    model = HostedModel(MODEL, LAYERS, len(frame()) // 4, 64, lambda _span: True,
                        cache_position_bytes=lambda _span: 1000)  # fmt: skip
    machine = PeerMachine(KEYS[OWNER], rng=random.Random(1), instance=0)
    machine.serve(model, _hosting(whole))
    machine.tick(0.0, {})
    _meets(machine, SPARE)
    session, actions = machine.owning.open_session(
        model=MODEL, layers=LAYERS, dim=model.dim, codec="raw", max_positions=64, now_s=0.0
    )
    [asked] = actions
    assert isinstance(asked, Send)
    assert isinstance(asked.message, Open)
    assert asked.message.path == (Hop(OWNER, whole),)
    _opens(machine, asked.message)
    _passes(machine, OWNER, msgspec.structs.replace(step(0, 0, layer=0), session=session))
    [export] = machine.receive(OWNER, Feed(session, 0, SPARE, 7, 0, cache=True), b"", 0.0)
    assert isinstance(export, Run)
    assert isinstance(export.job, ExportJob)
    [part] = machine.computed(export.job, Exported("fp32", 0, 1, b"cache"), 0.0)
    assert isinstance(part, Send)
    assert isinstance(part.message, CachePart)
    [failure] = machine.receive(SPARE, Credit(session, 7, 0, 6), b"", 0.0)  # the hop's to judge
    assert isinstance(failure, Send)
    assert isinstance(failure.message, Failed)
    assert "more than was sent" in failure.message.reason
    machine.receive(OWNER, Close(session), b"", 0.0)
    assert machine.hosted_sessions == 0
