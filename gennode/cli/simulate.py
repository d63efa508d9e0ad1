"""`gennode simulate`: swarms in virtual time, on the product's own machines and decisions."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gennode.cli.options import is_given
from gennode.cli.output import JSON_OPTION, note, print_json, progress
from gennode.errors import UsageError

if TYPE_CHECKING:
    from gennode.node.crowd.simulation import Outcome, Scenario
    from gennode.node.stories.telling import Tally


@click.group(
    name="simulate",
    invoke_without_command=True,
    short_help="Replay stories of failing swarms, or a large swarm under load.",
)
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=500, show_default=True,
              help="How many stories.")  # fmt: skip
@click.option("--first", type=click.IntRange(0), default=0, show_default=True,
              help="The first story's seed.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Replay this one and tell what happened.")
@click.option("--jobs", type=click.IntRange(1, 1024),
              help="Processes.  [default: one per processor]")  # fmt: skip
@JSON_OPTION
@click.pass_context
def command(
    context: click.Context,
    *,
    seeds: int,
    first: int,
    seed: int | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Run swarms in virtual time while all that can go wrong does.

    Workers crash, lose power, hang, slow down, leave and come back with nothing; networks
    split, both ways or one; clocks drift and jump; engines run out of memory. Each story asks
    several prompts and compares every token with that of one machine that never fails. The first
    seed that does not hold ends the run; --seed replays it, event by event.

    `gennode simulate swarm` runs hundreds of peers under load instead.
    """
    if context.invoked_subcommand is None:
        if seed is not None and any(map(is_given, ("seeds", "first", "jobs"))):
            raise UsageError("--seed tells one story, and takes no --seeds, --first or --jobs")
        if seed is None:
            _tell_stories(range(first, first + seeds), jobs, as_json)
        else:
            _replay(seed, as_json)
    elif seed is not None or as_json:
        raise UsageError(
            f"--seed and --json belong behind {context.invoked_subcommand}",
            hint=f"gennode simulate {context.invoked_subcommand} --seed 7 --json",
        )


def _tell_stories(seeds: range, jobs: int | None, as_json: bool) -> None:
    from gennode.node.stories.telling import Tally, cores, tell_all

    tally, start_s = Tally(), time.monotonic()
    with progress("telling stories", unit="stories") as report:
        for told in tell_all(seeds, jobs or cores()):
            tally.add(told)
            report(tally.stories, len(seeds))
    speed = tally.virtual_s / (time.monotonic() - start_s)
    if as_json:
        print_json(_story_figures(tally, speed))
        return
    print(f"{tally.stories} stories, {sum(tally.faults.values())} faults: {tally.right} answers")
    print(
        f"identical, 0 wrong, {tally.refused} ended in a clear error, {tally.failovers} failovers;"
    )
    print(f"{tally.events:,} events, {speed:,.0f} × life, {tally.speed_per_core:,.0f} × per core;")
    print(f"trace {tally.digest[:16]}")


def _replay(seed: int, as_json: bool) -> None:
    from gennode.node.stories.telling import Tally, tell_all

    [told] = tell_all([seed], 1)
    story, tally = told.story, Tally()
    if not as_json:
        for line in story.told:
            print(line)
    tally.add(told)
    if as_json:
        print_json(_story_figures(tally, tally.speed_per_core) | {"told": story.told})
        return
    print(f"{story.right} of {story.prompts} answers identical, {story.failovers} failovers;")
    print(f"{story.events:,} events in {story.virtual_s:.0f} s; trace {tally.digest[:16]}")


def _story_figures(tally: Tally, speed: float) -> dict[str, Any]:
    names = ("stories", "prompts", "right", "refused", "abandoned", "failovers", "events",
             "virtual_s", "longest_wait_s", "faults", "paths", "digest")  # fmt: skip
    return {
        **{name: getattr(tally, name) for name in names},
        "wrong": 0,
        "life_speed": round(speed, 1),
        "life_speed_per_core": round(tally.speed_per_core, 1),
    }


@command.command(name="swarm", short_help="Run hundreds of peers under load and churn.")
@click.option("--peers", type=click.IntRange(1, 5_000), default=100, show_default=True,
              help="Workers at the start.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0.1, 1_440), default=30.0, show_default=True,
              help="Virtual time.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="The same seed gives the same run, to the last bit.")  # fmt: skip
@click.option("--load", type=click.FloatRange(0.01, 5.0), default=0.5, show_default=True,
              help="Tokens asked for, as a share of what the first plan predicts.")  # fmt: skip
@click.option("--churn", type=click.FloatRange(0.0, 2.0), default=0.0, show_default=True,
              help="Share of the workers that crash or leave per minute; as many "
                   "come.")  # fmt: skip
@click.option("--regions", type=click.IntRange(1, 5), default=3, show_default=True,
              help="Continents that workers and owners are spread over.")  # fmt: skip
@click.option("--arrivals", type=click.Choice(["poisson", "bursty"]), default="bursty",
              show_default=True, help="How sessions come.")  # fmt: skip
@click.option("--model", type=click.Choice(["8b", "70b", "120b-moe"]), default="70b",
              show_default=True, help="The shape that is hosted.")  # fmt: skip
@click.option("--chart", type=click.Path(path_type=Path, dir_okay=False),
              help="Draw coverage, load and moves over time into this .svg or "
                   ".png.")  # fmt: skip
@JSON_OPTION
def swarm(*, chart: Path | None, as_json: bool, **chosen: Any) -> None:
    """Run a made-up pool of GPUs and CPUs under load and churn, faster than life.

    The product's own code decides: what a machine can hold, who hosts which layers, who moves,
    and the route of each session. Modelled and not run are the tokens (a session advances 32 at
    a time, as fast as those who share its hops allow), the delays between peers, announcements
    (seen up to ten seconds late), and the fetching and loading of weights.
    """
    from gennode.node.crowd.chart import check_chart, draw
    from gennode.node.crowd.simulation import Scenario, simulate

    scenario = Scenario(**chosen)
    scenario.check()
    if chart is not None:
        check_chart(chart)
    start_s = time.process_time()
    with progress("simulating", unit="virtual seconds") as report:
        outcome = simulate(scenario, lambda now_s: report(int(now_s), int(scenario.minutes * 60)))
    speed = outcome.tally.duration_s / (time.process_time() - start_s)
    if chart is not None:
        draw(scenario, outcome, chart)
    if as_json:
        print_json(_figures(scenario, outcome) | {"life_speed": round(speed, 1)})
        return
    for name, value in _lines(outcome, speed):
        print(f"{name:<13}{value}")
    if chart is not None:
        note(f"drawn to {chart}")


def _figures(scenario: Scenario, outcome: Outcome) -> dict[str, Any]:
    """All figures of a run by their names, seconds and tokens per second."""
    tally = outcome.tally
    fewest, weakest, mean = tally.mean_coverage()
    names = (
        "asked", "answered", "refused", "lost", "lost_covered", "failed_over", "failovers",
        "detours", "tokens", "prompt_tokens", "crashes", "leaves", "joins", "moves",
        "moves_given_up", "plans", "layers_moved", "digest",
    )  # fmt: skip
    return {
        "scenario": asdict(scenario),
        **{name: getattr(tally, name) for name in names},
        "running": outcome.running,
        "first_token_p50_s": tally.first_s.percentile_s(0.5),
        "first_token_p99_s": tally.first_s.percentile_s(0.99),
        "token_p50_s": tally.token_s.percentile_s(0.5),
        "token_p99_s": tally.token_s.percentile_s(0.99),
        "pause_p50_s": tally.pause_s.percentile_s(0.5),
        "pause_p99_s": tally.pause_s.percentile_s(0.99),
        "tokens_per_s": tally.tokens / tally.duration_s,
        "planned_tokens_per_s": outcome.planned_token_s,
        "planned_step_s": outcome.planned_step_s,
        "coverage_min": fewest,
        "coverage_weakest_mean": weakest,
        "coverage_mean": mean,
        "utilisation": outcome.utilisation,
        "peers_at_end": outcome.peers_at_end,
        "missing": outcome.missing,
        "events": outcome.events,
    }


def _lines(outcome: Outcome, speed: float) -> list[tuple[str, str]]:
    """The same for people."""
    tally = outcome.tally
    fewest, weakest, mean = tally.mean_coverage()
    first, token, pause = tally.first_s, tally.token_s, tally.pause_s
    lines = [
        ("sessions", f"{tally.asked} asked, {tally.answered} answered, {tally.refused} refused, "
                     f"{tally.lost} lost, {outcome.running} still running"),
        ("failovers", f"{tally.failovers}, of {tally.failed_over} sessions; "
                      f"pause {_times(pause.percentile_s(0.5), pause.percentile_s(0.99))}"),
        ("first token", _times(first.percentile_s(0.5), first.percentile_s(0.99))),
        ("each token", _times(token.percentile_s(0.5), token.percentile_s(0.99))),
        ("throughput", f"{tally.tokens / tally.duration_s:,.0f} tokens/s of answers; "
                       f"{tally.prompt_tokens / tally.duration_s:,.0f} of prompts; planned for "
                       f"{outcome.planned_token_s:,.0f}"),
        ("coverage", f"{fewest} copies of some layer at the least; "
                     f"{weakest:.1f} of the weakest and {mean:.1f} of all in the mean"),
        ("utilisation", f"{outcome.utilisation:.0%} of the time of workers that serve"),
        ("churn", f"{tally.crashes} crashes, {tally.leaves} leaves, {tally.joins} joins; "
                  f"{outcome.peers_at_end} peers at the end"),
        ("moves", f"{tally.moves} with {tally.layers_moved} layers, {tally.plans} re-plans"),
        ("speed", f"{speed:,.0f} × life, {outcome.events:,} events; trace {tally.digest[:16]}"),
    ]  # fmt: skip
    if outcome.missing:
        lines.insert(0, ("missing", outcome.missing))
    return lines


def _times(median_s: float, worst_s: float) -> str:
    return f"p50 {median_s:.3g} s, p99 {worst_s:.3g} s"
