"""Small pools: machines that serve several routes, where that lets more through in time."""

from __future__ import annotations

from hypothesis import given, settings

from gennode.sharding.flow.flow import flow
from gennode.sharding.plan.cells import grouped
from gennode.sharding.plan.pipeline import Pool
from gennode.sharding.plan.plan import bounded
from gennode.sharding.plan.shared import best_placement
from gennode.sharding.plan.spare import spread
from gennode.wire.snapshot import Snapshot
from tests.sharding.pools import SNAPSHOTS, demand, machine


@given(asked=SNAPSHOTS)
@settings(deadline=None, max_examples=20)
def test_no_less_flows_than_through_the_pipelines_that_were_given(asked: Snapshot) -> None:
    by_peer = {one.peer: bounded(one) for one in sorted(asked.peers, key=lambda one: one.peer)}
    peers, limit_s = list(by_peer.values()), asked.demand.step_limit_s
    pool = Pool([one for one in peers if one.max_sessions], asked.demand)
    given = tuple(pool.hops(group) for group in grouped(pool))
    if not given:
        return
    shares = {hop.peer: hop.span for pipeline in given for hop in pipeline}
    plain = [(by_peer[hop.peer], hop.span) for hop in spread(peers, shares, asked.demand)]
    pipelines, hosts = best_placement(given, by_peer, pool)
    held = [(by_peer[hop.peer], hop.span) for hop in hosts]
    most = flow(held, asked.demand, limit_s, pipelines).rate_token_s
    assert most >= flow(plain, asked.demand, limit_s, given).rate_token_s


def test_what_is_late_never_weighs_up_what_is_in_time() -> None:
    # one alone is barely in time; both would give several times as much, a little late
    two = [machine("a", 8, layer_s=0.0036, token_s=1e-6), machine("b", 4, layer_s=0.004)]
    assert grouped(Pool(two, demand(8, step_limit_s=0.03))) == [(0,)]
    assert grouped(Pool(two, demand(8, step_limit_s=0.06))) == [(0, 1)]
