"""A journal's header and tokens, and how tests write them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from gennode.engine.sample import Sampling
from gennode.node.sessions.journal import Header, Journal, Journals
from gennode.wire.ids import ModelId

HEADER = Header(
    model=ModelId("ab" * 32),
    named="gennode-large",
    words="count from 1 to 9 =",
    prompt=(5, 0, 700_000),
    sampling=Sampling(temperature=0.5, top_p=0.9, seed=7, max_tokens=50),
    codec="int8-outlier",
    is_chat=False,
    bootstrap=("/ip4/192.0.2.7/tcp/4001",),
    began_s=1_790_000_000.0,
)
TOKENS = (3, 0, 1, 0, 299_999, 0)


def begin(journals: Journals, **changes: object) -> Journal:
    journal = journals.begin(msgspec.structs.replace(HEADER, **changes))
    assert journal is not None
    return journal


class Crash(Exception):  # noqa: N818 - it is none of ours
    """The program ends in the middle."""


def interrupt(
    journal: Journal, tokens: Iterable[int] = TOKENS, *, first: Callable[[], None] = lambda: None
) -> None:
    """Write some tokens, and end as on Ctrl-C."""
    with suppress(Crash), journal:
        first()
        for token in tokens:
            journal.add(token)
        raise Crash
