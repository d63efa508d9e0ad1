"""A run as a picture: coverage, load, and what changed, over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gennode.errors import ResourceError, UsageError
from gennode.node.crowd.simulation import Outcome, Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".svg", ".png")

# Okabe and Ito's colours, which people with any kind of colour blindness can tell apart.
_BLUE, _ORANGE, _GREEN, _RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_GREY = "#666666"
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "gennode",  # ids in the file follow from it, and else from chance
    "svg.fonttype": "path",
    "font.size": 9.0,
    "font.family": ["DejaVu Sans"],  # comes with the library: the same on every machine
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "legend.frameon": False,
}


def check_chart(path: Path) -> None:
    """Before a long run: UsageError if no chart could be written there."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a chart is written as SVG or PNG, and {path.name} says neither",
            hint="give it a name that ends in .svg or .png",
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "charts are drawn by matplotlib, which is not installed",
            hint="pip install 'gennode[charts]'",
        ) from error


def draw(scenario: Scenario, outcome: Outcome, path: Path) -> None:
    """Write the timeline of a run; the same run gives the same bytes of SVG.

    UsageError where no chart can be written, ResourceError if writing it failed.
    """
    check_chart(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 9.0), layout="constrained")
        FigureCanvasAgg(figure)
        coverage, load, changes, failovers = figure.subplots(
            4, 1, sharex=True, height_ratios=(3, 3, 2, 1.5)
        )
        _draw_coverage(coverage, outcome)
        _draw_load(load, outcome)
        _draw_changes(changes, outcome)
        _draw_failovers(failovers, outcome)
        failovers.set_xlabel("time [min]")
        failovers.set_xlim(0, scenario.minutes)
        figure.suptitle(_title(scenario), fontsize=10.0)
        kind = path.suffix.lower().removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {}
        try:
            figure.savefig(path, format=kind, dpi=120, metadata=metadata)
        except OSError as error:
            raise ResourceError(f"the chart could not be written to {path}: {error}") from error


def _title(scenario: Scenario) -> str:
    return (
        f"{scenario.peers} peers in {scenario.regions} regions host {scenario.model}: "
        f"load {scenario.load:g}, {scenario.arrivals}; "
        f"churn {scenario.churn:.0%} per minute; seed {scenario.seed}"
    )


def _draw_coverage(axes: Axes, outcome: Outcome) -> None:
    coverage = outcome.tally.coverage
    times = [one.at_s / 60 for one in coverage] + [outcome.tally.duration_s / 60]
    mean = [one.mean for one in coverage]
    weakest: list[float] = [one.weakest for one in coverage]
    axes.step(times, mean + mean[-1:], where="post", color=_BLUE, label="mean of all layers")
    axes.step(times, weakest + weakest[-1:], where="post", color=_ORANGE, label="weakest layer")
    axes.axhline(1, color=_RED, linewidth=0.9, linestyle="--", label="one copy: needed to answer")
    axes.set_ylabel("coverage [copies]")
    axes.set_ylim(bottom=0)
    axes.spines["right"].set_visible(False)
    _legend(axes)


def _draw_load(axes: Axes, outcome: Outcome) -> None:
    tally = outcome.tally
    middles = [(index + 0.5) * tally.slice_s / 60 for index in range(tally.slices)]
    sessions = [one.session_s / tally.slice_s for one in tally.timeline]
    tokens = [one.tokens / tally.slice_s for one in tally.timeline]
    (first,) = axes.plot(middles, sessions, color=_BLUE, label="sessions under way")
    axes.set_ylabel("sessions", color=_BLUE)
    axes.set_ylim(bottom=0)
    other = axes.twinx()
    (second,) = other.plot(middles, tokens, color=_GREEN, label="answers' tokens per second")
    other.set_ylabel("tokens per second", color=_GREEN)
    other.set_ylim(bottom=0)
    other.grid(visible=False)
    _legend(axes, [first, second])


def _draw_changes(axes: Axes, outcome: Outcome) -> None:
    timeline = outcome.tally.timeline
    joins = [one.joins for one in timeline]
    moves = [one.moves for one in timeline]
    faults = [-one.faults for one in timeline]
    _bars(axes, outcome, joins, "joins", _GREEN)
    _bars(axes, outcome, moves, "moves to other layers", _BLUE, on=joins)
    _bars(axes, outcome, faults, "crashes and leaves (downwards)", _RED)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    axes.set_ylabel(f"peers in {outcome.tally.slice_s:.3g} s")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    _legend(axes)


def _draw_failovers(axes: Axes, outcome: Outcome) -> None:
    counts = [one.failovers for one in outcome.tally.timeline]
    _bars(axes, outcome, counts, "failovers of sessions to other workers", _ORANGE)
    axes.set_ylabel(f"sessions in {outcome.tally.slice_s:.3g} s")
    axes.set_ylim(bottom=0, top=None if any(counts) else 1)
    _legend(axes)


def _bars(
    axes: Axes,
    outcome: Outcome,
    heights: list[int],
    label: str,
    colour: str,
    on: list[int] | None = None,
) -> None:
    """One bar for each part of the timeline."""
    width = outcome.tally.slice_s / 60
    middles = [(index + 0.5) * width for index in range(len(heights))]
    axes.bar(middles, heights, width, bottom=on, color=colour, label=label)
    axes.spines["right"].set_visible(False)


def _legend(axes: Axes, handles: list[Any] | None = None) -> None:
    """Above the plot, where it hides nothing."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": 4}
    if handles is None:
        axes.legend(**place)
    else:
        axes.legend(handles=handles, **place)
