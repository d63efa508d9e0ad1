"""Disks are full, fail or flip bits: a node says so, and loses nothing that it had acknowledged."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gennode.engine.checkpoint.weights import find_model
from gennode.errors import ModelError, ResourceError
from gennode.node.fetch import weights_folder
from gennode.node.peers import PeerBook
from gennode.node.state import StateFolder
from gennode.wire.ids import Span
from gennode.wire.signing import Key
from tests.faults.stage import (
    MODEL,
    PROMPT,
    ROOT,
    TOKENS,
    WAIT_S,
    Worker,
    measured,
    without,
)

NO_STRACE = without("strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true")
NO_PRLIMIT = without("prlimit", "--fsize=512", "true")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        bool(NO_STRACE or NO_PRLIMIT), reason=f"DISKS CAN'T FAIL HERE: {NO_STRACE or NO_PRLIMIT}"
    ),
]

WHOLE = Span(0, 3)
FULL, BROKEN = "ENOSPC", "EIO"
WEIGHTS = "model.safetensors"
JOURNAL_BYTES = 512  # a header, and some tokens


def failing(path: Path, call: str, error: str) -> tuple[str, ...]:
    """What to put before a command so that a system call fails on one file, and on no other."""
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}"]
    return ("strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-P", str(path), *inject)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """Somebody who hosts the whole model, and has its weights."""
    worker = Worker(tmp_path_factory.mktemp("source"), WHOLE)
    worker.start()
    worker.ready()
    yield worker
    worker.stop()


def address(worker: Worker) -> str:
    """Where a worker is."""
    return worker.ready().addresses[0]


@pytest.mark.parametrize(
    ("call", "error", "step"),
    [("write", FULL, "free some disk space"), ("fsync", BROKEN, "choose another folder")],
)
def test_a_key_that_can_not_be_kept_is_not_used(
    call: str, error: str, step: str, tmp_path: Path
) -> None:
    worker = Worker(tmp_path, WHOLE)
    worker.start(failing(tmp_path / "node.new", call, error))
    assert worker.ended() == ResourceError.exit_code
    assert step in worker.log()
    assert StateFolder(tmp_path).known_key() is None
    told = worker.log().strip().splitlines()[0]
    measured(f"{error} as the key is written", "exit code 6 and the next step", told)


def test_a_card_that_can_not_be_written_ends_the_start(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    key = state.key()
    worker = Worker(tmp_path, WHOLE)
    worker.start(failing(tmp_path / "node.new", "write", FULL))
    assert worker.ended() == ResourceError.exit_code
    assert "free some disk space" in worker.log()
    assert state.card() is None
    known = state.known_key()
    assert known is not None
    assert known.peer == key.peer
    measured("ENOSPC as the card is written", "exit code 6; the key stays", "so it is")


def test_a_peer_book_that_can_not_be_written_costs_no_service(
    source: Worker, tmp_path: Path
) -> None:
    book = PeerBook(StateFolder(tmp_path).peers)
    book.met(Key(bytes(32)).peer, ["/ip4/127.0.0.1/tcp/1"])
    book.save([])
    before = StateFolder(tmp_path).peers.read_bytes()
    worker = Worker(tmp_path, WHOLE, lambda: [address(source)])
    worker.start(failing(tmp_path / "peers.new", "write", FULL))
    assert worker.status().peer == worker.ready().peer
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert "peer_store_not_saved" in worker.log()
    assert StateFolder(tmp_path).peers.read_bytes() == before
    measured("ENOSPC as the peer book is written", "serves on; the old book stays", "so it is")


def asked(state: Path, *options: str, prefix: tuple[str, ...] = ()) -> tuple[list[int], str]:
    """The tokens that `gennode ask` gives, and what else it says."""
    command = [*prefix, sys.executable, "-m", "gennode", "ask", PROMPT, "--model", MODEL]
    command += ["--max-tokens", str(TOKENS), "--state", str(state), "--json", *options]
    ended = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=WAIT_S
    )
    assert ended.returncode == 0, ended.stderr
    tokens: list[int] = json.loads(ended.stdout)["tokens"]
    return tokens, ended.stderr


def test_a_journal_that_can_not_go_on_ends_and_the_answer_does_not(
    source: Worker, tmp_path: Path
) -> None:
    whole, words = asked(tmp_path, "--bootstrap", address(source))
    assert "warning" not in words
    limited = ("prlimit", f"--fsize={JOURNAL_BYTES}")
    tokens, words = asked(tmp_path, "--bootstrap", address(source), prefix=limited)
    assert tokens == whole
    found = re.search(r"resumed from its first (\d+) tokens", words)
    assert found, words
    assert 0 < int(found[1]) < len(whole)
    measured("a journal's disk is full", "a warning; the same tokens", found[0])


def test_a_flipped_byte_is_found_and_fetched_again_once_there_is_room(
    source: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = source.ready().model
    weights = weights_folder(model) / WEIGHTS
    worker = Worker(tmp_path / "state", WHOLE, lambda: [address(source)], model=model)
    worker.start()
    worker.ready()
    worker.stop()
    right = weights.read_bytes()
    assert right == (find_model(MODEL) / WEIGHTS).read_bytes()

    weights.write_bytes(flipped(right))
    worker.start(failing(weights, "pwrite64", FULL))
    assert worker.ended() == ResourceError.exit_code
    assert "what was fetched is kept" in worker.log()
    measured("ENOSPC as weights are fetched", "exit code 6; what came is kept", "so it is")

    worker.start()
    worker.ready()
    assert weights.read_bytes() == right
    worker.stop()
    measured(
        "a byte of fetched weights is flipped", "found at the start, fetched again", "so it is"
    )


def test_a_folder_that_can_not_be_read_or_has_a_flipped_byte_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find_model(MODEL), folder)
    weights = folder / WEIGHTS
    worker = Worker(tmp_path / "broken", WHOLE, model=str(folder))
    worker.start(failing(weights, "read", BROKEN))
    assert worker.ended() == ModelError.exit_code
    assert "can't be read" in worker.log()
    promised = "exit code 3 and the next step"
    measured("EIO as weights are read", promised, worker.log().strip().splitlines()[0])

    weights.write_bytes(flipped(weights.read_bytes()))
    worker = Worker(tmp_path / "flipped", WHOLE, model=str(folder))
    worker.start()
    assert worker.ended() == ModelError.exit_code
    assert "download that file again" in worker.log()
    measured("a byte of a model folder is flipped", promised, worker.log().strip().splitlines()[0])


def flipped(data: bytes) -> bytes:
    """The same with one bit of its last byte turned."""
    return data[:-1] + bytes([data[-1] ^ 1])
