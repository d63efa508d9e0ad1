"""Small swarms for tests of routes: announcements in a line each, and what chains of them cost."""

from __future__ import annotations

from gennode.wire.announcement import Announcement, Hosting
from gennode.wire.ids import ModelId, PeerId, Span

MODEL = ModelId("a" * 64)
ME = PeerId("me")
LAYERS = 5
WHOLE = Span(0, LAYERS)


def worker(
    name: str,
    spans: list[Span],
    *,
    spare: int = 0,
    layer_time_s: float = 0.01,
    load_time_s: float = 1.0,
    sessions: int = 0,
    model: ModelId = MODEL,
    further_time_s: float | None = None,
    price: int = 0,
    max_sessions: int = 4,
) -> Announcement:
    hosting = Hosting(
        model=model,
        spans=tuple(spans),
        spare_layers=spare,
        layer_time_s=layer_time_s,
        load_time_s=load_time_s,
        max_sessions=max_sessions,
        compute_class="",
        further_time_s=further_time_s,
        price=price,
    )
    return Announcement(PeerId(name), 1, 0, 30.0, (hosting,), sessions, False, "unknown", ())


def hosted(one: Announcement) -> Hosting:
    return one.hosting[0]


def flat(here: PeerId, there: PeerId) -> float:
    return 0.0 if here == there else 0.001


def layer_s(one: Announcement, depth: int = LAYERS) -> float:
    """A token's time per layer at a worker, with those in line before it; `depth`: the end of
    the span that a route is for."""
    layers = sum(span.layers for span in hosted(one).spans)
    in_line = one.sessions * min(1.0, 1.5 * max(1, layers) / depth)
    further_s = hosted(one).further_time_s
    alone_s = hosted(one).layer_time_s
    return alone_s + in_line * (alone_s if further_s is None else further_s)
