"""A hostile template costs a bounded time and memory, and sees nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gennode.engine.text.render
from gennode.engine.seam import ChatMessage
from gennode.engine.text.chat import ChatTemplate
from gennode.engine.text.render import CPU_S
from gennode.errors import ModelError

SCRIPT = str(Path(gennode.engine.text.render.__file__))
DOUBLED = "{% for i in range(90) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}"
NESTED = "{% set ns = namespace(x=[1], y=[1]) %}" + DOUBLED + "{% endfor %}"

SLOW = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a tree of one node, shown": NESTED + "{{ ns.x }}",
    "two such trees, compared": NESTED + "{{ ns.x == ns.y }}",
    "a long number": "{{ (10 ** 4000000) % 7 }}",
}
LARGE = {
    "times": "{{ 'x' * 10 ** 9 }}",
    "list times": "{{ [1] * 10 ** 9 }}",
    "center": "{{ 'x' | center(10 ** 9) }}",
    "indent": "{{ 'x\nx' | indent(10 ** 9) }}",
    "batch": "{{ [1] | batch(10 ** 9, 1) | list }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "tojson": "{{ messages | tojson(indent=10 ** 9) }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "doubling": "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "more than allowed": "{{ ('x' * 80000000) | length }}",
}
REFUSED = {
    "class": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os }}", "unsafe"),
    "itself": ("{{ self.__init__.__globals__ }}", "unsafe"),
    "formatted": ("{{ '{0.__class__.mro}'.format('')() }}", "unsafe"),
    "namespace": ("{% set n = namespace(__class__=1) %}", "__class__"),
    "changing": ("{{ messages.append(1) }}", "unsafe"),
    "file": ("{% include '/etc/passwd' %}", "loader"),
    "module": ("{% import 'os' as os %}", "loader"),
    "endless": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "deep"),
    "brackets": ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "deep"),
    "writing": ("{% for a in range(99999) %}" + "x" * 999 + "{% endfor %}", "writes too much"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "syntax": ("{% for %}", "Expected an expression"),
}


def refusal(template: str) -> str:
    with pytest.raises(ModelError) as caught:
        ChatTemplate(template, {}).render([ChatMessage("user", "hi")])
    assert caught.value.hint
    return str(caught.value)


def run(template: str) -> tuple[dict[str, Any] | None, float]:
    """The script's answer and the seconds of processor time that it took."""
    request = {"template": template, "variables": {}, "now": "2031-01-01", "max_characters": 10}
    with subprocess.Popen(
        [sys.executable, "-I", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        data = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    return json.loads(data) if data else None, used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", SLOW)
def test_time_is_bounded(name: str) -> None:
    assert "too long" in refusal(SLOW[name])


def test_time_is_bounded_by_its_own_clock() -> None:
    reply, cpu_s = run(SLOW["loops"])
    assert reply is None
    assert CPU_S <= cpu_s < CPU_S + 0.7  # Python's start comes on top


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no limit on memory here")
@pytest.mark.parametrize("name", LARGE)
def test_memory_is_bounded(name: str) -> None:
    assert "64 MiB" in refusal(LARGE[name])


def test_what_needs_less_memory_runs() -> None:
    assert run("{{ ('x' * 20000000) | length }}")[0] == {"text": "20000000"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_leads_out_is_refused(name: str) -> None:
    template, words = REFUSED[name]
    assert words in refusal(template)


def test_a_path_out_of_the_sandbox_would_end_at_the_process() -> None:
    """Whatever Jinja let through: no file can be opened, no socket, no process started."""
    code = (
        "import runpy, socket, subprocess, sys\n"
        f"runpy.run_path({SCRIPT!r})['confine']()\n"
        "for act in (lambda: open('/etc/passwd'), socket.socket, lambda: subprocess.run('true')):\n"
        "    try: act()\n"
        "    except OSError: print('refused')\n"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True)
    assert ended.stdout.split() == [b"refused"] * 3
