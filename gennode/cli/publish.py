"""`gennode publish`: release a new version of a model."""

from __future__ import annotations

from pathlib import Path

import click

from gennode.cli.options import bootstrap_option, listen_options, state_option
from gennode.cli.output import JSON_OPTION, note, print_json, progress


@click.command(name="publish", short_help="Release a new version of a model.")
@click.argument("folder")
@click.option("--name", required=True, help="What is released; one publisher may have several.")
@bootstrap_option
@listen_options
@state_option
@JSON_OPTION
def command(
    *,
    folder: str,
    name: str,
    bootstrap: tuple[str, ...],
    host: str | None,
    port: int,
    state: Path,
    as_json: bool,
) -> None:
    """Sign FOLDER as the next version of a name, tell workers, and pass its weights on.

    Workers that follow the name fetch what they host of it, load it, and retire the version
    before it once the new one is covered. Stay until enough of them have it; Ctrl-C leaves.
    The key in --state is the publisher: keep it, and give no two nodes the same.
    """
    import asyncio

    from gennode.node.publish import Published, PublishOptions, publish
    from gennode.node.transports import Listening

    def on_ready(published: Published) -> None:
        if as_json:
            print_json(published)
            return
        note(f"version {published.number} of {name} is model {published.model}")
        note(f"{published.told} workers were told; others follow it with:")
        print(f"  gennode join --follow {published.line}", flush=True)
        note("Ctrl-C leaves.")

    options = PublishOptions(state, folder, name, Listening(bootstrap, host, port))
    asyncio.run(publish(options, on_ready=on_ready, progress=progress))
    note("left.")
