"""A trace's digest tells two runs apart by any event, its time and its order."""

from __future__ import annotations

from gennode.node.stories.trace import Trace


def digest(*events: tuple[float, bytes]) -> str:
    trace = Trace()
    for now_s, event in events:
        trace.note(now_s, event)
    return trace.digest


def test_the_digest_depends_on_every_event_its_time_and_its_order() -> None:
    events = ((1.0, b"a"), (2.0, b"b"))
    others = [events[:1], events[::-1], ((1.0, b"a"), (2.5, b"b")), ((1.0, b"a"), (2.0, b"c"))]
    assert digest(*events) == digest(*events)
    assert len({digest(*events), *(digest(*other) for other in others)}) == 5


def test_lines_for_people_count_as_events() -> None:
    told, noted = Trace(), Trace()
    told.tell(3.25, "a worker crashes")
    noted.note(3.25, b"a worker crashes")
    assert told.lines == ["    3.25 s  a worker crashes"]
    assert told.digest == noted.digest
