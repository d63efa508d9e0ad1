"""A token's time: the plan's formulas where they hold, bounded where sessions are few."""

from __future__ import annotations

import math
import random

import pytest

from gennode.node.crowd.brain import Brain
from gennode.node.crowd.member import Member, Owner
from gennode.node.crowd.physics import busy_s, frame_s, prefill_s, stay_s, step_s
from gennode.node.crowd.pool import draw_owner, draw_peer
from gennode.node.prompt import PREFILL_CHUNK
from gennode.sharding.predict import MAX_LOAD, link_s, stage_s

LAYERS = 20


@pytest.fixture
def brain() -> Brain:
    return Brain("70b", seed=1)


@pytest.fixture
def member(brain: Brain) -> Member:
    specimen = draw_peer(random.Random(1), 1, 1)
    return Member(specimen, brain.candidate(specimen), brain.chunk_s(specimen))


@pytest.fixture
def owner(brain: Brain) -> Owner:
    peer, place = draw_owner(random.Random(2), 1, 0)
    return Owner(peer, brain.owner(peer, place, 1e7))


def test_alone_a_token_takes_what_the_plan_says(member: Member) -> None:
    member.batch = LAYERS
    assert stay_s(member, LAYERS, 0.0) == stage_s(member.candidate, LAYERS, 0.0)


def test_a_token_takes_what_the_plan_says_while_passes_are_not_full(member: Member) -> None:
    candidate = member.candidate
    member.batch = 10**9
    for load in (0.0, 0.1, 0.5, 0.9):
        member.rate = load / candidate.cost.token_s
        rate = member.rate / LAYERS
        assert stay_s(member, LAYERS, 0.0) == stage_s(candidate, LAYERS, rate)
        assert stay_s(member, LAYERS, 2 * member.rate) == stage_s(candidate, LAYERS, 0.0)
    member.rate = 2 / candidate.cost.token_s
    assert stage_s(candidate, LAYERS, member.rate / LAYERS) == math.inf
    assert stay_s(member, LAYERS, 0.0) < math.inf


def test_a_frame_takes_what_the_plan_says_while_a_line_is_not_full(
    brain: Brain, member: Member, owner: Owner
) -> None:
    most = owner.candidate.upload_bytes_per_s / brain.demand.frame_bytes
    for load in (0.0, 0.3, 0.9, 0.94):
        told_s = link_s(owner.candidate, member.candidate, brain.demand, load * most)
        assert frame_s(owner, member, brain.demand, load * most) == told_s
    idle_s = link_s(owner.candidate, member.candidate, brain.demand, 0.0)
    full_s = frame_s(owner, member, brain.demand, MAX_LOAD * most)
    assert full_s == pytest.approx(idle_s + 1 / most)


def test_more_company_takes_longer_but_never_for_ever(member: Member) -> None:
    times_s = []
    for sessions in (1, 4, 16, 64):
        member.batch, member.rate = sessions * LAYERS, sessions * LAYERS * 40.0
        times_s.append(stay_s(member, LAYERS, 0.0))
    assert times_s == sorted(times_s)
    cost = member.candidate.cost
    full_s = LAYERS * (cost.fixed_s + 64 * cost.token_s) + member.candidate.pass_s
    assert times_s[-1] <= 1.5 * full_s


def test_busy_time_is_no_more_than_the_time_there_is(member: Member) -> None:
    for rate in (0.0, 1.0, 50.0, 1e4):
        member.batch, member.rate = 8 * LAYERS, rate * LAYERS
        stay = stay_s(member, LAYERS, 0.0)
        assert 0 < busy_s(stay, rate) <= stay
        assert rate * busy_s(stay, rate) <= 1 + 1e-9


def test_a_step_has_both_links_to_the_owner_in_it(
    brain: Brain, member: Member, owner: Owner
) -> None:
    member.batch = LAYERS
    alone_s = stay_s(member, LAYERS, 0.0)
    around_s = step_s(owner, [(member, LAYERS)], brain.demand, 0.0, 1)
    rtt_s = owner.candidate.coordinate.rtt_s(member.candidate.coordinate)
    assert around_s == pytest.approx(alone_s + rtt_s, abs=0.01)
    assert around_s > alone_s + rtt_s
    assert member.busy_s > 0


def test_prompts_take_longer_the_longer_they_are_and_less_than_one_by_one(
    brain: Brain, member: Member, owner: Owner
) -> None:
    legs = [(member, LAYERS)]
    lengths = (1, PREFILL_CHUNK, 2 * PREFILL_CHUNK, 3000)
    times_s = [prefill_s(owner, legs, brain.demand, tokens) for tokens in lengths]
    assert times_s == sorted(times_s)
    assert len(set(times_s)) == len(times_s)
    assert times_s[-1] < 3000 * stage_s(member.candidate, LAYERS, 0.0)
