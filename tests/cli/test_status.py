"""What a node shows of peers: their words are words, whatever they say."""

from __future__ import annotations

import pytest

from gennode.cli.status import show, show_limits
from gennode.mesh.links.limits import Use
from gennode.node.control import HostingView, NodeStatus, WorkerView
from gennode.wire.ids import ModelId, Span
from gennode.wire.signing import Key


def test_a_peers_words_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Key(bytes(32)).peer
    hosting = HostingView(ModelId("0" * 64), (Span(0, 2),), 0, 1e-3, "[/foo] [bold]x")
    worker = WorkerView(peer, (hosting,), 0, relay=False, reach="direct")
    show(NodeStatus(peer, (), 0, 0, 0.0, 0.0, 0, (worker,)), {})
    assert "[/foo]" in capsys.readouterr().out


def test_limits_are_shown_with_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Key(bytes(32)).peer
    limits = (Use("inbound streams", 512, 3, 1234),)
    show_limits(NodeStatus(peer, (), 0, 0, 0.0, 0.0, 0, (), limits=limits), {})
    out = capsys.readouterr().out
    assert all(word in out for word in ("inbound streams", "512", "3", "1,234"))
