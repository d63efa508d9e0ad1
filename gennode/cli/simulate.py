"""`gennode simulate`: seeded stories of failing swarms, on the product's own machines."""

from __future__ import annotations

import time

import click

from gennode.cli.output import JSON_OPTION, note, print_json, progress
from gennode.errors import LocalError


@click.command(name="simulate", short_help="Replay seeded stories of failing swarms.")
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=200, show_default=True,
              help="How many stories, from seed 0 on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), help="Replay this one and tell what happened.")
@JSON_OPTION
def command(*, seeds: int, seed: int | None, as_json: bool) -> None:
    """Run swarms in virtual time while workers crash, freeze and lose power.

    Each story asks several prompts and compares the tokens with those of one machine that
    never fails. The first seed that does not hold is printed; --seed replays it.
    """
    from gennode.node.simulation import tell

    chosen = range(seeds) if seed is None else [seed]
    right = refused = failovers = events = 0
    virtual_s, start_s = 0.0, time.process_time()
    with progress("telling stories", unit="stories") as report:
        for count, number in enumerate(chosen, start=1):
            story = tell(number)
            if seed is not None and not as_json:
                _show(story.faults, story.refused)
            if not story.holds:
                raise LocalError(
                    f"seed {number}: {story.wrong} answers went wrong, {story.right} are right",
                    hint=f"gennode simulate --seed {number}",
                )
            right += story.right
            refused += len(story.refused)
            failovers += story.failovers
            events += story.events
            virtual_s += story.virtual_s
            report(count, len(chosen))
    spent_s = time.process_time() - start_s
    told = {
        "stories": len(chosen),
        "right": right,
        "refused": refused,
        "wrong": 0,
        "failovers": failovers,
        "events": events,
        "life_speed": round(virtual_s / spent_s, 1),
    }
    if as_json:
        print_json(told)
        return
    print(f"{len(chosen)} stories: {right} answers right, 0 wrong, {refused} refused for want of")
    print(f"workers, {failovers} failovers; {events} events, {told['life_speed']} × life speed")


def _show(faults: tuple[str, ...], refused: tuple[str, ...]) -> None:
    for line in (*faults, *(f"refused: {reason}" for reason in refused)):
        note(f"  {line}")
