"""A remembered truth is the one that is computed anew."""

from __future__ import annotations

from gennode.engine.sample import Sampling
from gennode.node.stories.truth import undisturbed, whole_truth
from tests.node.toys import LAYERS, MANIFEST


def test_the_truth_of_fewer_tokens_is_the_beginning_of_that_of_more() -> None:
    for temperature in (0.0, 1.0):
        short, long = (Sampling(temperature, seed=3, max_tokens=tokens) for tokens in (10, 40))
        truth = whole_truth(LAYERS, "what is it?", long)
        assert list(truth) == undisturbed(MANIFEST, "what is it?", long)
        assert list(truth[:10]) == undisturbed(MANIFEST, "what is it?", short)
