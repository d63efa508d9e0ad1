"""The NAT lab from a shell: `python -m localnet.commands up`, and `exec` and `down` elsewhere."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import click

from gennode.errors import GennodeError
from localnet import namespaces
from localnet.natlab import Home, Lab, Link, Nat

_LOOK_EVERY_S = 0.2
_ATTACHED = re.compile(r"([a-z][a-z0-9_-]*)(?:=([a-z_]*))?(?::([0-9.]+))?")
_OF_A_LAB = re.compile(r"natlab-(\d+)\.\d+-\d+-([a-z].*)")


def _parsed(text: str) -> tuple[str, str, Link]:
    """NAME, what follows its "=", and a link with the delay that follows its ":"."""
    match = _ATTACHED.fullmatch(text)
    if not match:
        raise click.BadParameter(f"{text!r} is not NAME, NAME=NAT, NAME:MS or NAME=NAT:MS")
    return match[1], match[2] or "", Link(delay_ms=float(match[3] or 0))


@click.group(name="natlab")
def natlab() -> None:
    """A small internet on this machine, with homes behind routers of any kind."""


@natlab.command()
@click.option(
    "homes",
    "--home",
    multiple=True,
    default=("alice=cone:10", "bob=symmetric:10"),
    help=f"NAME=NAT:MS; NAT is one of {', '.join(Nat)}. Repeat it.",
)
@click.option(
    "public", "--public", multiple=True, default=("relay:20",), help="NAME:MS. Repeat it."
)
def up(homes: tuple[str, ...], public: tuple[str, ...]) -> None:
    """Build a lab and keep it until Ctrl-C, or `down` in another terminal."""
    try:
        behind = {name: Home(Nat(nat or Nat.CONE), link) for name, nat, link in map(_parsed, homes)}
        outside = {name: link for name, _, link in map(_parsed, public)}
        with Lab(behind, outside) as lab:
            for name in lab.hosts:
                seen, own = lab.address(name), lab.home_address(name)
                click.echo(f"{name:<16} {seen:<16} {own if own != seen else ''}".rstrip())
            click.echo("python -m localnet.commands exec NAME COMMAND runs it there; Ctrl-C ends.")
            while True:  # a signal that comes just before signal.pause() would not end that
                time.sleep(_LOOK_EVERY_S)
    except (GennodeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("")


@natlab.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on NAME (or NAME.router) of the lab that is up."""
    found = [lab for lab in namespaces.names("natlab-") if _host(lab) == name]
    if len(found) != 1:
        raise click.ClickException(f"{len(found)} labs have a {name!r}; see {' '.join(found)}")
    words = namespaces.within(found[0], command)
    os.execvp(words[0], words)  # noqa: S606 - it takes this process's place, without a shell


@natlab.command()
@click.argument("name", default="")
def down(name: str) -> None:
    """End the labs that `up` holds, or that with a host NAME; remove what dead ones left."""
    matches = map(_OF_A_LAB.fullmatch, namespaces.names("natlab-"))
    for pid in {int(match[1]) for match in matches if match and name in {"", match[2]}}:
        with suppress(ProcessLookupError):
            if _is_up(pid):
                os.kill(pid, signal.SIGTERM)
    Lab.sweep()


def main() -> None:
    """Do what the arguments say."""
    natlab()


def _host(namespace: str) -> str:
    match = _OF_A_LAB.fullmatch(namespace)
    return match[2] if match else ""


def _is_up(pid: int) -> bool:
    """Whether a lab's process is an `up`; scripts and tests end their labs themselves."""
    with suppress(FileNotFoundError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"localnet.commands" in words and b"up" in words
    return False


if __name__ == "__main__":
    main()
