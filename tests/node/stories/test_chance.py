"""Flaky engines fail until they are healed; wide toys compute what narrow ones do."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gennode.engine.seam import StepInput
from gennode.engine.toy import TOY_DIM, ToyOwner, ToyShard
from gennode.errors import ResourceError
from gennode.node.stories.chance import PADDING, Chances, FlakyShard, WideOwner, draw
from gennode.wire.ids import Span
from tests.node.toys import MANIFEST

WHOLE = Span(0, 6)


def test_an_engine_fails_until_it_is_healed() -> None:
    healed = False
    chances = Chances(open_fails=1.0, step_fails=1.0)
    engine = FlakyShard(MANIFEST, chances, random.Random(1), lambda: healed)
    engine.load(WHOLE)
    with pytest.raises(ResourceError):
        engine.open("a", WHOLE, 10)
    healed = True
    engine.open("a", WHOLE, 10)
    step = StepInput("a", 0, ToyOwner(MANIFEST).embed([5], 0))
    assert len(engine.step([step])) == 1
    healed = False
    with pytest.raises(ResourceError):
        engine.step([step])


def test_a_garbled_state_is_no_number() -> None:
    engine = FlakyShard(MANIFEST, Chances(garbles=1.0), random.Random(1), lambda: False)
    engine.load(WHOLE)
    engine.open("a", WHOLE, 10)
    [output] = engine.step([StepInput("a", 0, ToyOwner(MANIFEST).embed([5], 0))])
    assert np.isnan(output).any()


def test_wide_toys_choose_the_tokens_of_narrow_ones() -> None:
    narrow, owner = ToyShard(MANIFEST), ToyOwner(MANIFEST)
    wide = FlakyShard(MANIFEST, Chances(padding=PADDING), random.Random(1), lambda: True)
    wide_owner = WideOwner(MANIFEST, PADDING)
    assert wide.dim == wide_owner.dim == TOY_DIM + PADDING
    logits = []
    for engine, asker in ((narrow, owner), (wide, wide_owner)):
        engine.load(WHOLE)
        engine.open("a", WHOLE, 10)
        [output] = engine.step([StepInput("a", 0, asker.embed([5, 6, 7], 0))])
        assert output.shape == (3, engine.dim)
        logits.append(asker.logits(output[2:]))
    assert (logits[0] == logits[1]).all()


def test_each_kind_of_chance_is_drawn_for_some_stories() -> None:
    drawn = [draw(random.Random(seed)) for seed in range(300)]
    usual = Chances()
    for name in ("limits", "step_fails", "open_fails", "garbles", "strays", "cache_bytes",
                 "disk_bytes", "disk_loses", "padding"):  # fmt: skip
        kinds = {getattr(one, name) == getattr(usual, name) for one in drawn}
        assert kinds == {True, False}, name
