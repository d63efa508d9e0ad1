"""`gennode testnet`: a swarm of worker processes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gennode.cli.ask import chosen, prompt_options, run_ask
from gennode.cli.leave import now_option, run_leave
from gennode.cli.options import (
    DEFAULT_MODEL,
    Finite,
    is_given,
    model_option,
    precision_option,
    sampling_options,
    state_option,
    transport_option,
)
from gennode.cli.output import JSON_OPTION, note, print_json, spans_text
from gennode.errors import NetworkError

if TYPE_CHECKING:
    from gennode.node.testnet import Testnet
    from gennode.wire.ids import Span

F = TypeVar("F", bound=Callable[..., Any])


@click.group(name="testnet", short_help="Run a swarm of workers on this machine.")
def command() -> None:
    """Run a swarm of worker processes on this machine, to try things out and to break them."""


def _testnet(state: Path) -> Testnet:
    from gennode.node.testnet import Testnet

    return Testnet(state / "testnet")


def _running(state: Path) -> Testnet:
    testnet = _testnet(state)
    if not testnet.cards():
        raise NetworkError("no testnet runs", hint="start one: gennode testnet up")
    return testnet


def _model_of(testnet: Testnet, model: str | None) -> str:
    return model or testnet.model or DEFAULT_MODEL


def even_spans(model: str, workers: int) -> list[Span]:
    """A model's layers cut into one span per worker, as even as can be."""
    from gennode.engine.checkpoint.weights import find_model
    from gennode.engine.folders import read_folder_shape
    from gennode.errors import UsageError
    from gennode.sharding.plan.plan import split

    layers = read_folder_shape(find_model(model)).layers
    if workers > layers:
        raise UsageError(
            f"{model} has {layers} layers, too few for {workers} workers",
            hint=f"ask for {layers} workers at most",
        )
    return split(layers, [1.0] * workers, [layers] * workers)


@command.command()
@click.option("--workers", type=click.IntRange(1, 64), default=3, show_default=True)
@model_option
@click.option("--memory", metavar="SIZE", help="What each worker may take, such as 2G.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each worker.")
@precision_option
@click.option("--auto", is_flag=True, help="Let workers find their places, and move.")
@click.option(
    "--share",
    "shares",
    type=Finite(0.01, 1.0),
    multiple=True,
    help="Of the time, how much a worker computes at most; the n-th is worker n's.",
)
@state_option
@JSON_OPTION
def up(
    *,
    workers: int,
    model: str,
    memory: str | None,
    threads: int | None,
    precision: str,
    auto: bool,
    shares: tuple[float, ...],
    state: Path,
    as_json: bool,
) -> None:
    """Start the workers, each with its part of the model's layers."""
    from gennode.node.testnet import WorkerOptions

    testnet = _testnet(state)
    spans: list[Span | None] = [None] * workers if auto else [*even_spans(model, workers)]
    note(f"starting {workers} workers …")
    cards = testnet.up(
        spans,
        WorkerOptions(model, memory, threads, shares=shares, precision=precision),
        on_ready=lambda name, card: note(f"{name} is ready (process {card.pid})"),
    )
    if as_json:
        print_json({"workers": cards, "spans": dict(zip(cards, spans, strict=True))})
        return
    elsewhere = f" --state {state}" if is_given("state") else ""
    note(f'ask it:  gennode testnet ask{elsewhere} "add 23 58 ="')


@command.command()
@click.option("--model", help="Which model; by default the testnet's.")
@click.option("--memory", metavar="SIZE", help="What it may take, such as 2G.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Its threads.")
@click.option("--share", type=Finite(0.01, 1.0), help="Of the time, how much it computes.")
@precision_option
@state_option
@JSON_OPTION
def add(
    *,
    model: str | None,
    memory: str | None,
    threads: int | None,
    share: float | None,
    precision: str,
    state: Path,
    as_json: bool,
) -> None:
    """Start one more worker, which finds its place itself."""
    from gennode.node.testnet import WorkerOptions

    testnet = _running(state)
    shares = (share,) if share is not None else ()
    added = testnet.add(
        WorkerOptions(
            _model_of(testnet, model), memory, threads, shares=shares, precision=precision
        ),
        on_ready=lambda name, card: note(f"{name} is ready (process {card.pid})"),
    )
    if as_json:
        print_json({"workers": added})


@command.command()
@prompt_options
@click.option("--model", help="Which model; by default the testnet's.")
@transport_option
@sampling_options
@state_option
@JSON_OPTION
def ask(*, model: str | None, state: Path, as_json: bool, **how: Any) -> None:
    """Ask the testnet one prompt; takes the options of `gennode ask`."""
    from gennode.node.state import StateFolder

    testnet = _running(state)
    cards = testnet.cards()
    bootstrap = tuple(address for card in cards.values() for address in card.addresses[:1])
    names = {card.peer: name for name, card in cards.items()}
    folder = StateFolder(testnet.folder).sessions
    with chosen(folder, "gennode testnet ask", as_json=as_json, **how) as asked:
        run_ask(
            asked, asked.model(_model_of(testnet, model)), bootstrap,
            as_json=as_json, names=names, **how,
        )  # fmt: skip


@command.command()
@click.argument("name")
@click.option(
    "--signal",
    "kind",
    type=click.Choice(["KILL", "STOP", "CONT", "TERM"]),
    default="KILL",
    show_default=True,
    help="KILL it, STOP (freeze) it, let it CONTinue, or ask it to leave (TERM).",
)
@state_option
@JSON_OPTION
def kill(*, name: str, kind: str, state: Path, as_json: bool) -> None:
    """Hurt one worker, such as worker-2."""
    card = _running(state).send_signal(name, signal.Signals[f"SIG{kind}"])
    if as_json:
        print_json({"worker": name, "pid": card.pid, "peer": card.peer, "signal": kind})
        return
    note(f"sent {kind} to {name} (process {card.pid})")


@command.command()
@click.argument("name")
@now_option
@state_option
@JSON_OPTION
def leave(*, name: str, at_once: bool, state: Path, as_json: bool) -> None:
    """Have one worker leave, such as worker-2, once its sessions have gone over to others."""
    testnet = _running(state)
    testnet.card(name)
    run_leave(testnet.folder / name, at_once=at_once, as_json=as_json)


@command.command()
@state_option
@JSON_OPTION
def status(*, state: Path, as_json: bool) -> None:
    """Show the workers that run, and what the first of them that answers knows."""
    import asyncio

    from gennode.cli.status import show
    from gennode.node.control import ask_status

    cards = _running(state).cards()
    frozen: list[str] = []
    seen = None
    for name, card in cards.items():
        try:
            seen = asyncio.run(ask_status(card.control))
            break
        except NetworkError:
            frozen.append(name)
    if seen is None:
        raise NetworkError(
            f"none of {', '.join(frozen)} answers",
            hint=f"if they are frozen: gennode testnet kill {frozen[0]} --signal CONT",
        )
    if as_json:
        print_json({"workers": cards, "directory": seen.workers, "silent": frozen})
        return
    for name in frozen:
        note(f"{name} does not answer; if frozen: gennode testnet kill {name} --signal CONT")
    show(seen, {card.peer: name for name, card in cards.items()})
    for name, card in cards.items():
        spans = [
            span
            for worker in seen.workers
            if worker.peer == card.peer
            for hosting in worker.hosting
            for span in hosting.spans
        ]
        loaded = spans_text(spans) if spans else "not seen yet"
        note(f"{name}: process {card.pid}, layers {loaded}")


@command.command()
@state_option
@JSON_OPTION
def down(*, state: Path, as_json: bool) -> None:
    """Stop every worker."""
    testnet = _testnet(state)
    stopped = testnet.down()
    testnet.remove()
    if as_json:
        print_json({"stopped": stopped})
        return
    note(f"stopped: {', '.join(stopped) or 'nothing was running'}")
