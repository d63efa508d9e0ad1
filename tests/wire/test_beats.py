"""Chains of hashes: each link proves one beat, and none proves another."""

from __future__ import annotations

from gennode.wire.beats import LINK_BYTES, MAX_BEATS, chain, link_before, proves


def test_each_link_proves_its_beat_alone() -> None:
    links = chain(b"secret")
    assert len(links) == len(set(links)) == MAX_BEATS + 1
    assert {len(link) for link in links} == {LINK_BYTES}
    for beat in (0, 1, 2, MAX_BEATS):
        assert proves(links[0], beat, links[beat])
        for other in (0, 1, 2, MAX_BEATS):
            assert proves(links[0], other, links[beat]) == (other == beat)


def test_a_link_hashes_to_the_one_before() -> None:
    links = chain(b"secret")
    assert [link_before(link) for link in links[1:]] == list(links[:-1])
    assert chain(b"another")[0] != links[0]
