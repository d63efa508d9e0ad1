"""A compute process that lies: its folder's name says how, its device what it began."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path

import msgspec

from gennode.engine.child import protocol as say
from gennode.engine.child.channel import Channel
from gennode.engine.child.jail import Jail
from gennode.engine.choice.runs import Layer, Run, Step
from gennode.engine.devices import DeviceMemory, DeviceReport
from gennode.engine.seam import Profile
from gennode.wire.announcement import Machine
from gennode.wire.coordinates import Coordinate
from gennode.wire.ids import ModelId, Span

HUGE = say.LENGTHS.pack(10, 1 << 60)
GARBAGE = say.LENGTHS.pack(4, 0) + b"\xff" * 4

NUMBER, STARTED = say.Number(3), say.Started(Jail(0, False, "none"))
POSITION_BYTES = 64
REPORT = DeviceReport(
    "cpu", "CPU", DeviceMemory(1, 1), "float32", float("nan"), 1.0, "8 B", 1, {1: 1.0}, None, None
)
MACHINE = Machine(1, float("nan"), 1.0, 0.0, 0.0, Coordinate())
RUNS = say.Settled("int8", (Run("another", "int8", Layer(1, 1, 1, 1, 1), Step(1, 1, 0), 1.0),))
PROFILE = say.Profiled(Profile(ModelId("m"), "fp32-cpu", float("nan"), 1.0, -1.0, 0))
ALONE: dict[str, msgspec.Struct] = {
    "other": NUMBER, "again": STARTED, "profile": PROFILE, "report": say.Examined(REPORT),
    "runs": RUNS, "machine": say.Probed(MACHINE),
}  # fmt: skip


def main() -> None:
    """Begin as one should, and lie when asked for a step, an export, a profile or figures."""
    lie, (model, dim) = Path(sys.argv[1]).name, sys.argv[2].split(":")
    end = socket.socket(fileno=os.dup(0))
    channel: Channel[say.Request] = Channel(end, msgspec.msgpack.Decoder(say.Request))
    if lie == "dies":
        sys.exit("no \x1b[31mlibrary\n")
    if lie == "chatters":
        os.write(2, b"x" * 10_000_000)
    channel.send(STARTED)
    while True:
        request, body = channel.receive(1 << 30)
        match request:
            case say.Begin():
                huge = 1 << 40 if lie == "width" else POSITION_BYTES
                channel.send(say.Began(model, int(dim), huge))
            case say.Spans():
                channel.send(say.Loaded((Span(0, 1 << 15 if lie == "spans" else 1),)))
            case (
                say.Compute() | say.Export() | say.TakeProfile()
                | say.Measure() | say.Examine() | say.Settle()
            ):  # fmt: skip
                tell(lie, channel, end, body)
            case _:
                channel.send(say.Done())


def tell(lie: str, channel: Channel[say.Request], end: socket.socket, body: bytearray) -> None:
    """The lie itself."""
    match lie:
        case "huge" | "garbage":
            end.sendall(HUGE if lie == "huge" else GARBAGE)
        case "other" | "again" | "profile" | "report" | "runs" | "machine":
            channel.send(ALONE[lie])
        case "short" | "chatters":
            channel.send(say.Done(), [body[: len(body) // 2]])
        case "long":
            channel.send(say.Done(), [body, body])
        case "part":
            channel.send(say.Exported("x"), [b"ab"])
        case "layout" | "layouts":
            words = "\x1b[31m" if lie == "layout" else "x" * 1000
            channel.send(say.Exported(words), [bytes(2 * POSITION_BYTES)])
        case "tells":
            about = " ".join(sorted(os.environ)) + "|" + " ".join(os.listdir("/proc/self/fd"))
            channel.send(say.Failed("ModelError", about, "\x07"))
        case "hangs":
            threading.Event().wait()


if __name__ == "__main__":
    main()
