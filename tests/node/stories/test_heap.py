"""Virtual time passes from event to event, in order."""

from __future__ import annotations

from functools import partial

from gennode.node.stories.heap import Heap


def test_calls_come_in_the_order_of_their_times_and_then_of_their_asking() -> None:
    heap, called = Heap(), list[str]()
    for when_s, name in ((2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")):
        heap.at(when_s, partial(called.append, name))
    heap.run(1.5)
    assert (called, heap.now_s) == (["a", "b"], 1.5)
    heap.after(0.1, partial(called.append, "soon"))
    heap.run(5.0)
    assert called == ["a", "b", "soon", "c", "d"]
    assert (heap.events, heap.now_s) == (5, 5.0)


def test_a_run_stops_as_soon_as_it_is_done() -> None:
    heap, called = Heap(), list[int]()
    for number in range(5):
        heap.at(float(number), partial(called.append, number))
    heap.run(10.0, done=lambda: len(called) == 2)
    assert (called, heap.now_s) == ([0, 1], 1.0)
