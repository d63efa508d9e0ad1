"""An asker goes on with no answer of another model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gennode.errors import ModelError
from gennode.node.ask import Asker
from gennode.node.sessions.journal import Journals, Watch
from tests.node.sessions.journals import HEADER, TOKENS, begin, interrupt
from tests.node.toys import staged


async def test_an_answer_is_not_resumed_with_another_model(tmp_path: Path) -> None:
    journals = Journals(tmp_path, Watch(pytest.fail))
    interrupt(begin(journals))
    [found] = journals.interrupted()
    async with staged([]) as cast:
        asker = Asker(cast.owner, cast.engine, lambda _failover: None)
        with (
            pytest.raises(ModelError, match=HEADER.model) as caught,
            journals.resume(found.name) as journal,
        ):
            await asker.resume(journal)
        assert "--model" in caught.value.hint
    assert journals.interrupted()[0].tokens == len(TOKENS)
