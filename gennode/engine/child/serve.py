"""The compute process's work: do what the node asks, one thing after the other."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import numpy as np
import torch

from gennode.engine.child import protocol as say
from gennode.engine.child.channel import BrokenChannelError, Buffer, Channel
from gennode.engine.child.jail import confine_calls, confine_files
from gennode.engine.choice.runs import Run
from gennode.engine.choice.settle import settle
from gennode.engine.devices import pick_device, wait_for
from gennode.engine.engines import engine_here
from gennode.engine.folders import open_folder
from gennode.engine.options import EngineOptions
from gennode.engine.probe import measure_machine
from gennode.engine.report import measure_device
from gennode.engine.seam import CachePart, ShardEngine, StepInput
from gennode.errors import GennodeError, LocalError, ResourceError
from gennode.wire.ids import Span
from gennode.wire.manifest import Manifest

Answer = tuple[msgspec.Struct, Sequence[Buffer]]


def serve(folder: Path, device: str, landlock: int | None) -> None:
    """Until the node is gone. `landlock`: the ABI that is in force; None: not entered yet."""
    end = socket.socket(fileno=os.dup(0))
    _leave_with(end)
    channel: Channel[say.Request] = Channel(end, msgspec.msgpack.Decoder(say.Request))
    try:
        try:
            picked = pick_device(device)
            _start(torch.device(picked))
        except GennodeError as error:
            channel.send(say.failure(error))
            return
        if landlock is None:
            landlock = confine_files(folder, picked)
        channel.send(say.Started(confine_calls(landlock)))
        worker = _Worker(channel, folder)
        while True:
            request, body = channel.receive(say.MAX_BODY_BYTES)
            channel.send(*worker.attempt(request, body))
    except BrokenChannelError:
        return  # the node has ended, and we with it


def _start(device: torch.device) -> None:
    """Have the device's driver and the first of its libraries at hand."""
    rows = torch.ones((2, 2), device=device)
    torch.mm(rows, rows)
    wait_for(device)


def _leave_with(end: socket.socket) -> None:
    """End at once when the node is gone, whatever is computed: nobody wants it any more."""

    def watch() -> None:
        poll = select.poll()
        poll.register(end.fileno(), 0)  # hang-ups are told of in any case
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="leash", daemon=True).start()


@dataclass
class _Worker:
    channel: Channel[say.Request]
    folder: Path
    _engine: ShardEngine | None = field(default=None, init=False)

    def attempt(self, request: say.Request, body: bytearray) -> Answer:
        """The answer; an error is one as well."""
        try:
            return self._do(request, body)
        except GennodeError as error:
            return say.failure(error), ()
        except (MemoryError, torch.OutOfMemoryError):
            words = ResourceError("out of memory", hint="serve fewer sessions or layers")
            return say.failure(words), ()

    @property
    def engine(self) -> ShardEngine:
        if self._engine is None:
            raise LocalError("there is no engine before it was told what to compute")
        return self._engine

    def _progress(self, done: int, total: int) -> None:
        self.channel.send(say.Progress(done, total))

    def _do(self, request: say.Request, body: bytearray) -> Answer:
        match request:
            case say.Compute():
                return self._compute(request, body)
            case say.Begin():
                return self._begin(request, body)
            case say.Measure() | say.Examine() | say.Settle():
                return self._look_around(request, body)
            case say.Load():
                self.engine.load(request.span, self._progress)
            case say.Unload():
                self.engine.unload(request.span)
            case say.Spans():
                return say.Loaded(self.engine.spans()), ()
            case say.Reread():
                self.engine.reread(self.folder)
            case say.TakeProfile():
                return say.Profiled(self.engine.profile()), ()
            case _:
                return self._do_to_sequences(request) or self._do_to_caches(request, body)
        return say.Done(), ()

    def _do_to_sequences(self, request: say.Request) -> Answer | None:
        match request:
            case say.OpenSequence():
                self.engine.open(request.sequence, request.span, request.max_positions)
            case say.Length():
                return say.Number(self.engine.length(request.sequence)), ()
            case say.Truncate():
                self.engine.truncate(request.sequence, request.length)
            case say.CloseSequence():
                self.engine.close(request.sequence)
            case _:
                return None
        return say.Done(), ()

    def _do_to_caches(self, request: say.Request, body: bytearray) -> Answer:
        match request:
            case say.Usage():
                return say.Used(self.engine.cache_use()), ()
            case say.Keep():
                return say.Number(self.engine.keep(request.sequence, request.positions)), ()
            case say.Adopt():
                self.engine.adopt(request.sequence, request.kept)
            case say.Forget():
                self.engine.forget(request.kept)
            case say.Export():
                part = self.engine.export(request.sequence, request.start, request.end)
                return say.Exported(part.layout), [part.payload]
            case say.Restore():
                where = request.span, request.start, request.end
                self.engine.restore(
                    request.sequence, CachePart(request.layout, *where, bytes(body))
                )
        return say.Done(), ()

    def _begin(self, request: say.Begin, body: bytearray) -> Answer:
        options = msgspec.msgpack.decode(request.options, type=EngineOptions)
        manifest = msgspec.msgpack.decode(body, type=Manifest)
        folder = open_folder(self.folder, known=manifest)
        if folder.manifest.model != manifest.model:
            raise LocalError(f"{self.folder} holds another model than it did")
        self._engine = engine_here(folder, options)
        position_bytes = self._engine.cache_position_bytes(Span(0, 1))
        return say.Began(self._engine.model, self._engine.dim, position_bytes), ()

    def _look_around(
        self, request: say.Measure | say.Examine | say.Settle, body: bytearray
    ) -> Answer:
        """What this machine can do, for which there need be no engine."""
        if isinstance(request, say.Measure):
            machine = measure_machine(
                request.device, memory_bytes=request.memory_bytes, progress=self._progress
            )
            return say.Probed(machine), ()
        if isinstance(request, say.Examine):
            return say.Examined(measure_device(request.device, progress=self._progress)), ()
        precision, fresh = settle(
            request.precision,
            request.shape,
            request.device,
            memory_bytes=request.memory_bytes,
            hardware=request.hardware,
            recorded=msgspec.msgpack.decode(body, type=list[Run]),
        )
        return say.Settled(precision, tuple(fresh)), ()

    def _compute(self, request: say.Compute, body: bytearray) -> Answer:
        states = np.frombuffer(body, np.float32).reshape(-1, self.engine.dim)
        ends = accumulate((part.rows for part in request.parts), initial=0)
        batch = [
            StepInput(part.sequence, part.position, states[start:end])
            for part, (start, end) in zip(request.parts, pairwise(ends), strict=True)
        ]
        results = self.engine.step(batch)
        return say.Done(), [np.ascontiguousarray(one).data for one in results]
