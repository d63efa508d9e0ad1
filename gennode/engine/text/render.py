"""Renders one chat template and ends: a script for a process of its own, see `chat.py`.

A template is a program by whoever made the checkpoint. Jinja's sandbox keeps it from our objects
but not from our time and memory, and turns it into Python code. So it runs where there is
nothing to gain: without files, network, children, or more time and memory than it needs.

Standard input has one JSON object (template, variables, now, max_characters), standard output
gets one, with `text` or `error`. It imports nothing of ours, to start quickly.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# Templates of today take some 10 ms and a few megabytes beside the text.
CPU_S = 1.2
MEMORY_BYTES = 64 * 1024**2
MAX_ERROR_CHARACTERS = 300

_WARM_UP = "{{ strftime_now('%B') | pprint | wordwrap | striptags }}{{ 1 / 0 }}"


class _Generation(Extension):
    """`{% generation %}`, which marks what a model was trained to say; here it only scopes."""

    tags = {"generation"}  # noqa: RUF012 - that is how Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The body alone."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Without names that begin with an underscore, which lead into the interpreter."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, rest = arguments[0], arguments[1:]
        values = dict(*rest, **named)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict(...)` in a template, without the class and what hangs on it."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't have the name {name!r}")


def _refuse(message: object) -> NoReturn:
    """`raise_exception`, by which templates refuse a conversation."""
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` is for web pages and writes `<` as `\\u003c`."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment(now: datetime) -> ImmutableSandboxedEnvironment:
    """Jinja as the transformers library sets it up for chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    strftime: Callable[[str], str] = now.strftime
    made.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda pattern: strftime(str(pattern)),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    del made.globals["lipsum"]  # text by chance
    return made


def render(request: dict[str, Any]) -> str:
    """The text; it is counted while it grows, so that an endless one ends early."""
    made = environment(datetime.fromisoformat(request["now"]))
    pieces: list[str] = []
    left = int(request["max_characters"])
    for piece in made.from_string(request["template"]).generate(**request["variables"]):
        pieces.append(piece)
        left -= len(piece)
        if left < 0:
            raise TemplateError("it writes too much")
    return "".join(pieces)


def confine() -> None:
    """Take away what a template has no use for; no way back. Input was read before."""
    with suppress(ZeroDivisionError):  # for what is imported only when it is needed
        environment(datetime.fromisoformat("2000-01-01")).from_string(_WARM_UP).render()
    used_bytes = 0
    statistics = Path("/proc/self/statm")
    if statistics.exists():  # elsewhere the limit counts from nothing, or is not kept at all
        used_bytes = int(statistics.read_text().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, used_bytes + MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    # Of processor time, so that a busy machine takes nobody's chat away. Its signal kills.
    signal.setitimer(signal.ITIMER_PROF, CPU_S)


def main() -> None:
    """Answer the one request."""
    request = json.loads(sys.stdin.buffer.read())
    confine()
    try:
        reply = {"text": render(request)}
    except MemoryError:
        reply = {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB"}
    except RecursionError:
        reply = {"error": "it is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - task root: whatever a template raises is its fault
        reply = {"error": (str(error) or type(error).__name__)[:MAX_ERROR_CHARACTERS]}
    sys.stdout.write(json.dumps(reply))


if __name__ == "__main__":
    main()
