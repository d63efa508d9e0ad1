"""The command line. Commands are loaded when they are called; heavy imports wait inside them."""

from __future__ import annotations

import importlib
import signal
import sys

import click

from gennode.errors import GennodeError, UsageError

COMMANDS = (
    "ask",
    "demo",
    "doctor",
    "join",
    "leave",
    "plan",
    "publish",
    "relay",
    "simulate",
    "status",
    "testnet",
)
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a fault of ours or of a peer (please report it)
  2  wrong arguments or settings
  3  the model is missing, damaged or of a refused kind
  4  a peer, an address or a port can't be used
  5  no live workers cover the model's layers
  6  out of disk or memory
  7  the accelerator asked for is not here
  130  interrupted"""


class _Lazy(click.Group):
    """Imports a command's module only when somebody asks for that command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"gennode.cli.{cmd_name}").command
        return command


@click.group(cls=_Lazy, epilog=EXIT_CODES, context_settings={"max_content_width": 100})
@click.version_option(package_name="gennode")
def group() -> None:
    """Run one large language model together with strangers' machines.

    Every option can also be set by an environment variable: GENNODE_JOIN_MODEL for
    `gennode join --model`, and so on.
    """


def main() -> None:
    """Run the command line and end the process with a documented exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # clean up as after Ctrl-C
        signal.signal(number, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    try:
        ended: object = group.main(
            arguments, "gennode", standalone_mode=False, auto_envvar_prefix="GENNODE"
        )
    except click.ClickException as error:
        if "--json" not in arguments:
            error.show()
            return error.exit_code
        from gennode.cli.output import show_error

        told = UsageError(error.format_message(), hint="add --help to see what is allowed")
        show_error(told, as_json=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except GennodeError as error:
        from gennode.cli.output import show_error

        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    return ended if isinstance(ended, int) else 0  # what a command gave to `Context.exit`
