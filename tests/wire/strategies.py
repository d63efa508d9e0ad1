"""Every message there is, for Hypothesis: valid by construction, and up to each bound."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from gennode.wire import messages as words
from gennode.wire.announcement import Announcement, Hosting, Machine
from gennode.wire.beats import LINK_BYTES, MAX_BEATS
from gennode.wire.coordinates import Coordinate
from gennode.wire.fields import CodecName, Reach
from gennode.wire.ids import MAX_LAYERS, Hop, PeerId, SessionId, Span, peer_id_of
from gennode.wire.release import MAX_NAME, MAX_NUMBER
from gennode.wire.signing import SIGNATURE_BYTES, Signed

counters = st.integers(0, 1 << 53)
positions = st.integers(0, words.MAX_POSITIONS)
layers = st.integers(0, MAX_LAYERS)
seconds = st.floats(0, 1e9)
printable = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
texts = st.text(printable, max_size=20) | st.just("~" * 256)
peers: st.SearchStrategy[PeerId] = st.binary(min_size=32, max_size=32).map(peer_id_of)
models = st.text("0123456789abcdef", min_size=64, max_size=64)
sessions = st.binary(min_size=16, max_size=16).map(SessionId)
spans = st.builds(
    lambda start, count: Span(start, min(MAX_LAYERS, start + count)),
    st.integers(0, MAX_LAYERS - 1),
    st.integers(1, MAX_LAYERS),
)
codecs = st.sampled_from(get_args(CodecName))
rows = st.integers(0, words.MAX_STEP_ROWS)
proposals = st.binary(min_size=32, max_size=32)
attempts: dict[str, st.SearchStrategy[Any]] = {"session": sessions, "attempt": counters}


def many(items: st.SearchStrategy[Any], most: int, least: int = 0) -> st.SearchStrategy[Any]:
    """Tuples; long ones are left to the tests of bounds, for they make examples slow."""
    return st.lists(items, min_size=least, max_size=min(most, 3)).map(tuple)


hostings = st.builds(
    Hosting,
    model=models,
    spans=st.lists(layers, max_size=6, unique=True).map(
        lambda ends: tuple(map(Span, sorted(ends)[:-1:2], sorted(ends)[1::2]))
    ),
    spare_layers=layers,
    layer_time_s=seconds,
    load_time_s=seconds,
    max_sessions=counters,
    compute_class=texts,
    further_time_s=st.none() | seconds,
    price=counters,
    is_fixed=st.booleans(),
    loads_on_request=st.booleans(),
)
axes = st.floats(-10, 10)
coordinates = st.builds(
    Coordinate, x_s=axes, y_s=axes, height_s=st.floats(0, 10), error=st.floats(0, 1)
)
machines = st.builds(
    Machine,
    memory_bytes=counters,
    flops_per_s=seconds,
    memory_bytes_per_s=seconds,
    pass_s=seconds,
    upload_bytes_per_s=seconds,
    coordinate=coordinates,
)
announcements = st.builds(
    Announcement,
    peer=peers,
    sequence=counters,
    lifetime_s=st.floats(0, 3600),
    instance=counters,
    hosting=st.lists(hostings, max_size=3, unique_by=lambda one: one.model).map(tuple),
    sessions=counters,
    relay=st.booleans(),
    reach=st.sampled_from(get_args(Reach)),
    addresses=many(texts, 16),
    chain_end=st.binary(min_size=LINK_BYTES, max_size=LINK_BYTES),
    rival=counters,
    machine=st.none() | machines,
)
signed = st.builds(
    Signed,
    peer=peers,
    body=st.binary(max_size=100),
    signature=st.binary(min_size=SIGNATURE_BYTES, max_size=SIGNATURE_BYTES),
)
aged = st.builds(
    words.AgedAnnouncement,
    signed=signed,
    age_s=st.floats(0, 3600),
    beat=st.integers(0, MAX_BEATS),
    link=st.binary(max_size=LINK_BYTES),
)


@st.composite
def opens(draw: st.DrawFn) -> words.Open:
    """Open messages, whose index lies on their path, and whose replay ends behind its begin."""
    path = draw(many(st.builds(Hop, peer=peers, span=spans), words.MAX_ROUTE_HOPS, least=1))
    replay_from, replay_positions = sorted(draw(st.tuples(positions, positions)))
    return draw(
        st.builds(
            words.Open,
            **attempts,
            model=models,
            path=st.just(path),
            index=st.integers(0, len(path) - 1),
            codec=codecs,
            max_positions=st.integers(1, words.MAX_POSITIONS),
            replay_positions=st.just(replay_positions),
            rebuild_until=st.integers(-1, words.MAX_ROUTE_HOPS - 1),
            replay_from=st.just(replay_from),
            donor=st.none() | peers,
        )
    )


BY_KIND: dict[type[words.Base], st.SearchStrategy[Any]] = {
    words.Digest: st.builds(
        words.Digest,
        salt=st.integers(0, (1 << 63) - 1),
        counts=st.binary(min_size=1, max_size=20),
        entries=st.binary(max_size=40),
        asks=st.booleans(),
    ),
    words.Beats: st.builds(words.Beats, links=st.binary(max_size=40)),
    words.Announcements: st.builds(words.Announcements, items=many(aged, words.MAX_ANNOUNCEMENTS)),
    words.ReleaseDigest: st.builds(
        words.ReleaseDigest,
        entries=many(
            st.tuples(
                peers,
                st.text("abcxyz019", min_size=1, max_size=MAX_NAME),
                st.integers(1, MAX_NUMBER),
                st.binary(min_size=8, max_size=8),
            ),
            words.MAX_RELEASES,
        ),
        reply=st.booleans(),
    ),
    words.Releases: st.builds(words.Releases, items=many(signed, words.MAX_ANNOUNCEMENTS)),
    words.Open: opens(),
    words.Accept: st.builds(words.Accept, **attempts, index=counters, positions=positions),
    words.Refuse: st.builds(words.Refuse, **attempts, index=counters, reason=texts),
    words.Step: st.builds(
        words.Step,
        **attempts,
        number=counters,
        layer=layers,
        position=st.integers(0, words.MAX_POSITIONS - 1),
        rows=rows,
        reply_rows=rows,
        codec=codecs,
        rebuild=st.booleans(),
    ),
    words.Failed: st.builds(
        words.Failed, **attempts, index=counters, number=counters, reason=texts
    ),
    words.Credit: st.builds(words.Credit, **attempts, layer=layers, taken_bytes=counters),
    words.Acquaint: st.builds(words.Acquaint, session=sessions, layer=layers, peer=peers),
    words.Feed: st.builds(
        words.Feed,
        **attempts,
        layer=layers,
        peer=peers,
        from_position=positions,
        cache=st.booleans(),
    ),
    words.CachePart: st.builds(
        lambda start, rows, **rest: words.CachePart(start=start, end=start + rows, **rest),
        **attempts,
        layer=layers,
        layout=texts,
        start=st.integers(0, words.MAX_POSITIONS - 64),
        rows=st.integers(1, 64),
    ),
    words.Fed: st.builds(words.Fed, **attempts, index=counters, positions=positions),
    words.Leaving: st.builds(
        words.Leaving, **attempts, index=counters, positions=positions, cache_bytes=counters
    ),
    words.Ping: st.builds(words.Ping, session=sessions, nonce=counters),
    words.Probe: st.builds(words.Probe, nonce=counters),
    words.Echo: st.builds(words.Echo, nonce=counters, coordinate=coordinates),
    words.Missing: st.builds(words.Missing, peer=peers),
    words.Pong: st.builds(
        words.Pong,
        session=sessions,
        nonce=counters,
        progress=many(
            st.builds(
                words.Progress,
                layer=layers,
                passed=st.integers(-1, 1 << 53),
                is_busy=st.booleans(),
                token_s=seconds,
            ),
            words.MAX_ROUTE_HOPS,
        ),
    ),
    words.PlanDigest: st.builds(
        words.PlanDigest,
        model=models,
        epoch=counters,
        publisher=peers | st.just(""),
        proposal=proposals,
    ),
    words.PlanWanted: st.builds(words.PlanWanted, model=models, proposal=proposals),
    words.PlanSent: st.builds(words.PlanSent, model=models, proposal=proposals),
    words.Close: st.builds(words.Close, session=sessions),
}
messages: st.SearchStrategy[words.Message] = st.one_of(*BY_KIND.values())
