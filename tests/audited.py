"""Reads peers' bytes under an audit hook that ends the process at the first forbidden act.

python -m tests.audited decode | engine | <a forbidden act, to see that it is caught>
"""

from __future__ import annotations

import os
import random
import sys
import typing
from contextlib import suppress
from types import CodeType
from typing import NoReturn

import msgspec
import numpy as np

from gennode.engine.checkpoint.weights import find_model, open_model
from gennode.engine.llama.owner import LlamaOwner
from gennode.engine.llama.shard import LlamaShard
from gennode.engine.seam import StepInput
from gennode.errors import RemoteError
from gennode.wire import frames, signing
from gennode.wire.activations import codec
from gennode.wire.announcement import Announcement
from gennode.wire.ids import SessionId, Span
from gennode.wire.messages import Close, Refuse

FORBIDDEN = frozenset(
    {"pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn"}
    | {"os.spawn", "subprocess.Popen", "socket.bind", "socket.connect", "socket.sendto"}
    | {"ftplib.connect", "urllib.Request", "ctypes.dlopen", "code.__new__"}
)


def watch() -> None:
    """Let nothing forbidden happen from here on; a hook can't be taken back."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in FORBIDDEN or (event == "exec" and _is_made_up(arguments[0])):
            _end(event)

    sys.addaudithook(hook)


def _is_made_up(code: object) -> bool:
    """Whether code is from a string, other than one of our own annotations.

    Imports run code too, but from files; and typing evaluates a class's annotations when msgspec
    first sees it.
    """
    from_string = isinstance(code, CodeType) and code.co_filename.startswith("<string")
    return from_string and sys._getframe(2).f_code.co_filename != typing.__file__


def _end(event: str) -> NoReturn:
    # Not an exception: whoever reads the bytes could catch that one.
    os.write(2, f"{event} is forbidden while a peer's bytes are read\n".encode())
    os._exit(1)


def decode() -> None:
    """Messages whole, damaged and invented; signed ones; activation frames."""
    chance = random.Random(1)
    key = signing.Key(bytes(32))
    session = SessionId(bytes(16))
    whole = b"".join(
        bytes(part)
        for message in (Close(session), Refuse(session, 0, 0, "full"))
        for part in frames.encode(message, b"payload")
    )
    signed = signing.seal(key, "announcement", Close(session))
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        with suppress(RemoteError):
            list(frames.FrameDecoder().feed(damaged))
        with suppress(RemoteError):
            frames.decode_header(chance.randbytes(64))
    with suppress(RemoteError):
        signing.unseal(signed, "announcement", Announcement)
    # What would run code, if someone took the bytes for a pickle or for YAML.
    for bomb in (b"cos\nsystem\n(S'true'\ntR.", b"!!python/object/apply:os.system ['true']"):
        for header in (bomb, msgspec.msgpack.encode(bomb)):
            with suppress(RemoteError):
                frames.decode_header(header)


def engine() -> None:
    """A bundled model is opened and loaded, and pushes the frame that a peer sent."""
    folder = open_model(find_model("gennode-small"))
    owner, shard = LlamaOwner(folder), LlamaShard(folder)
    span = Span(0, owner.layers)
    shard.load(span)
    shard.open("prompt", span, 64)
    states = owner.embed(owner.tokenize("2 + 2 ="), 0)
    wire = codec("int8-outlier")
    states = np.ascontiguousarray(wire.decode(wire.encode(states), states.shape[1]))
    (states,) = shard.step([StepInput("prompt", 0, states)])
    owner.logits(states[-1])


def break_the_rules(act: str) -> None:
    """Do one thing that the hook has to see."""
    import pickle
    import socket
    import subprocess

    if act == "pickle":
        pickle.loads(b"cos\nsystem\n.")
    elif act == "system":
        os.system("true")
    elif act == "popen":
        subprocess.run(["true"], check=True)
    elif act == "bind":
        socket.socket().bind(("127.0.0.1", 0))
    elif act == "exec":
        exec("1")


if __name__ == "__main__":
    watch()
    {"decode": decode, "engine": engine}.get(sys.argv[1], lambda: break_the_rules(sys.argv[1]))()
