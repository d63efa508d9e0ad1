"""The house rules hold in every file, and each rule catches what it is there for."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from tests import tidy

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = frozenset({"attacks", "faults", "swarm", "transcripts"})  # tests of no one module
OF_THE_WHOLE = frozenset({"test_readme.py", "test_tidy.py", "test_wheel.py"})
GENERATED = "_pb2.py"

PRODUCT, TEST, PURE = "gennode/node/x.py", "tests/node/test_x.py", "gennode/wire/x.py"

PLANTED: dict[
    tidy.Rule, list[tuple[str, str]]
] = {  # one violation a line: each has to be caught, or its rule is asleep
    tidy.fits_on_a_page: [
        (PRODUCT, "x = 1\n" * 401),
        (PRODUCT, "x = '" + "y" * 96 + "'"),
        (PRODUCT, "async def f():\n" + "    x = 1\n" * 60),
    ],
    tidy.says_what_it_is: [(PRODUCT, "x = 1"), (TEST, "import os")],
    tidy.is_finished: [
        (PRODUCT, "x = 1  # TO" + "DO: more"),
        (PRODUCT, "def f():\n    raise NotImplementedError"),
    ],
    tidy.runs_no_foreign_code: [
        (PRODUCT, "import pickle"),
        (PRODUCT, "from pickle import loads"),
        (PRODUCT, "import marshal"),
        (PRODUCT, "import shelve"),
        (PRODUCT, "import dill as d"),
        (PRODUCT, "import cloudpickle"),
        (TEST, "def f():\n    import importlib\n    importlib.import_module('pickle')"),
        (PRODUCT, "import torch\ntorch.load('x')"),
        (PRODUCT, "import torch as t\nt.load('x')"),
        (PRODUCT, "from torch import load as read\nread('x')"),
        (PRODUCT, "import numpy as np\nnp.load('x', allow_pickle=True)"),
        (PRODUCT, "eval('1')"),
        (PRODUCT, "exec('1')"),
        (PRODUCT, "compile('1', 'x', 'exec')"),
        (PRODUCT, "from os import system\nsystem('ls')"),
        (PRODUCT, "import subprocess\nsubprocess.run('ls', shell=True)"),
        (PRODUCT, "load('x', trust_remote_code=flag)"),
        (PRODUCT, "import yaml\nyaml.load(x)"),
    ],
    tidy.decodes_into_types: [
        (PRODUCT, "import msgspec\nmsgspec.msgpack.decode(x)"),
        (PRODUCT, "from msgspec import json\njson.decode(x)"),
        (PRODUCT, "import msgspec\nmsgspec.msgpack.Decoder()"),
    ],
    tidy.keeps_to_the_seams: [
        (PRODUCT, "import torch"),
        (PRODUCT, "def f():\n    from torch.nn import functional"),
        (PRODUCT, "import web3"),
        (PRODUCT, "import pycrdt"),
        (PRODUCT, "import jinja2"),
        ("gennode/engine/gguf/shard.py", "import llama_cpp"),
        ("gennode/engine/gguf/native.py", "import gguf"),
        (PRODUCT, "from hivemind import p2p"),
        (PRODUCT, "import trio"),
        (PRODUCT, "from libp2p import new_host"),
        ("bench/x.py", "import hivemind"),
        ("gennode/engine/toy.py", "import torch"),
        ("gennode/engine/batch/x.py", "import torch"),
        (PRODUCT, "from gennode.wire.ids import _PREFIX"),
        (PRODUCT, "from gennode.wire.ids import _prefix"),
    ],
    tidy.takes_chance_as_argument: [
        (PURE, "import random"),
        (PURE, "from random import random"),
        (PURE, "from random import Random\nx = Random()"),
        (PURE, "import numpy as np\nx = np.random.default_rng()"),
        (PURE, "import numpy as np\nx = np.random.rand(3)"),
        (PURE, "import secrets"),
    ],
    tidy.binds_to_loopback: [
        (PRODUCT, "def f(host='0.0.0.0'): ..."),
        (PRODUCT, "HOST = '::'"),
        (PRODUCT, "class S:\n    listen: tuple[str, ...] = ('/ip4/0.0.0.0/tcp/0',)"),
        (PRODUCT, "option('--host', default='0.0.0.0')"),
    ],
    tidy.catches_what_it_knows: [
        (PRODUCT, "try:\n    x\nexcept Exception:\n    y"),
        (PRODUCT, "try:\n    x\nexcept:\n    y"),
        (PRODUCT, "try:\n    x\nexcept (OSError, BaseException):\n    y"),
        (PRODUCT, "try:\n    x\nexcept Exception:  # noqa: BLE001\n    y"),
        (PRODUCT, "try:\n    x\nexcept Exception:\n    raise\n    y"),
    ],
    tidy.validates_not_asserts: [(PRODUCT, "assert x")],
    tidy.tests_honestly: [
        (TEST, "import time\ntime.sleep(1)"),
        (TEST, "from time import sleep\nsleep(1)"),
        (TEST, "import asyncio\nasync def f():\n    await asyncio.sleep(0.1)"),
        (TEST, "from unittest import mock"),
        (TEST, "from unittest.mock import patch"),
    ],
    tidy.tasks_have_parents: [
        (PRODUCT, "import asyncio\nasyncio.create_task(x)"),
        (PRODUCT, "asyncio.get_running_loop().create_task(x)"),
        (PRODUCT, "loop.create_task(x)"),
        (PRODUCT, "from asyncio import ensure_future\nensure_future(x)"),
    ],
    tidy.names_units: [
        (PRODUCT, "def f(timeout): ..."),
        (PRODUCT, "class S:\n    dial_delay: float"),
    ],
}

ALLOWED = [  # close to a rule, and right
    (PRODUCT, "model.eval()\nre.compile('x')\njson.load(x)\nnp.load(x, allow_pickle=False)"),
    (PRODUCT, "group.create_task(x)\nself.tasks.create_task(x)"),
    (PRODUCT, "try:\n    x\nexcept Exception:  # noqa: BLE001 - task root: a hop ends here\n    y"),
    (PRODUCT, "try:\n    x\nexcept BaseException:\n    close()\n    raise"),
    (PRODUCT, "if host == '0.0.0.0':\n    warn()"),
    (PRODUCT, "def f(timeout_s): ..."),
    (PRODUCT, "import msgspec\nmsgspec.msgpack.decode(x, type=int)"),
    ("gennode/engine/x.py", "import torch"),
    ("gennode/consensus/ledger.py", "import pycrdt"),
    ("gennode/node/anchor.py", "import web3"),
    (PURE, "from random import Random\nx = Random(7)"),
    (TEST, "import asyncio\nasync def f():\n    assert x\n    await asyncio.sleep(0)"),
]


def sources() -> Iterator[tidy.Source]:
    for folder in ("gennode", "localnet", "tools", "bench", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if not file.name.endswith(GENERATED):
                path = PurePosixPath(file.relative_to(ROOT).as_posix())
                yield tidy.Source(path, file.read_text(encoding="utf-8"))


SOURCES = list(sources())


@pytest.mark.parametrize("rule", tidy.RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: tidy.Rule) -> None:
    found = [f"{source.path}:{line}: {what}" for source in SOURCES for line, what in rule(source)]
    assert not found, "\n".join([str(rule.__doc__), *found])


@pytest.mark.parametrize("rule", tidy.RULES, ids=lambda rule: rule.__name__)
def test_a_planted_violation_is_caught(rule: tidy.Rule) -> None:
    for path, text in PLANTED[rule]:
        assert list(rule(tidy.Source(PurePosixPath(path), text))), f"not caught: {text}"


@pytest.mark.parametrize(("path", "text"), ALLOWED)
def test_what_is_right_is_left_alone(path: str, text: str) -> None:
    source = tidy.Source(PurePosixPath(path), f'"""What it is."""\n{text}')
    assert [finding for rule in tidy.RULES for finding in rule(source)] == []


def without_module(tests: list[PurePosixPath], modules: set[str]) -> list[str]:
    """Tests whose `<package>/test_<module>[_<aspect>].py` names no module, as paths."""
    lost = []
    for path in tests:
        folder = "/".join(path.parts[1:-1])
        home = (
            folder if folder in {"localnet", "tools", "bench"} else f"gennode/{folder}".rstrip("/")
        )
        words = path.stem.removeprefix("test_").split("_")
        names = {f"{home}/{'_'.join(words[:count])}" for count in range(1, len(words) + 1)}
        if not names & modules:
            lost.append(str(path))
    return lost


def test_tests_mirror_the_tree() -> None:
    modules = {str(source.path.with_suffix("")).replace("/_", "/") for source in SOURCES}
    tests = [
        source.path
        for source in SOURCES
        if source.path.name.startswith("test_")
        and source.path.parts[1] not in SCENARIOS | OF_THE_WHOLE
    ]
    assert without_module(tests, modules) == []
    stray = PurePosixPath("tests/wire/test_nothing.py")
    assert without_module([stray], modules) == [str(stray)]


def drawn_tree(readme: str) -> set[str]:
    """The paths that the README's tree names, folders ending in a slash."""
    block = re.search(r"<!-- tree -->\s*```\w*\n(.*?)```\s*<!-- /tree -->", readme, re.DOTALL)
    assert block, "README.md needs a fenced block between <!-- tree --> and <!-- /tree -->"
    drawn, folder = set(), ""
    for line in block[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        folder = folder if line.startswith(" ") else name
        if name.endswith("/"):
            drawn.add(name if name == folder else folder + name)
    return drawn


def real_tree() -> set[str]:
    """The folders that git tracks: those at the root, and the packages in gennode/."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    parts = [PurePosixPath(file).parts for file in files.splitlines()]
    top = {part[0] + "/" for part in parts if len(part) > 1 and not part[0].startswith(".")}
    return top | {f"gennode/{part[1]}/" for part in parts if part[0] == "gennode" and len(part) > 2}


def test_the_readme_draws_the_tree_as_it_is() -> None:
    assert drawn_tree((ROOT / "README.md").read_text(encoding="utf-8")) == real_tree()


def test_a_readme_without_a_tree_is_caught() -> None:
    with pytest.raises(AssertionError, match="needs a fenced block"):
        drawn_tree("# gennode\n")
    assert drawn_tree("<!-- tree -->\n```\na/ x\n  b/ y\nc/ z\n```\n<!-- /tree -->") == {
        "a/",
        "a/b/",
        "c/",
    }


def audited(mode: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-m", "tests.audited", mode]
    return subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("mode", ["decode", "engine"])
def test_peers_bytes_run_nothing(mode: str) -> None:
    run = audited(mode)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("mode", "event"),
    [
        ("pickle", "pickle.find_class"),
        ("system", "os.system"),
        ("popen", "subprocess.Popen"),
        ("bind", "socket.bind"),
        ("exec", "exec"),
    ],
)
def test_the_audit_sees_what_it_forbids(mode: str, event: str) -> None:
    run = audited(mode)
    assert run.returncode == 1
    assert run.stderr == f"{event} is forbidden while a peer's bytes are read\n"
