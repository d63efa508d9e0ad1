"""The picture of a run: the same bytes again, and a plain word where it can't be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gennode.errors import UsageError
from gennode.node.crowd.chart import check_chart, draw
from gennode.node.crowd.simulation import Scenario, simulate

pytest.importorskip("matplotlib")


def test_a_run_is_drawn_the_same_way_again(tmp_path: Path) -> None:
    scenario = Scenario(peers=8, minutes=0.5, seed=1, load=0.05, churn=1.0, model="8b")
    paths = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for path in paths:
        draw(scenario, simulate(scenario), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first.startswith(b"<?xml")
    assert b"<dc:date>" not in first
    draw(scenario, simulate(scenario), tmp_path / "first.png")
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["chart.gif", "chart", "nowhere/chart.svg"])
def test_where_no_chart_can_be_written_is_said_before_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        check_chart(tmp_path / name)


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as caught:
        check_chart(tmp_path / "chart.svg")
    assert "gennode[charts]" in caught.value.hint
