"""A compute process, seen from the node: started, asked, watched, ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import psutil

import gennode
from gennode.engine.child import protocol as say
from gennode.engine.child.channel import BrokenChannelError, Buffer, Channel, GoneError
from gennode.engine.child.jail import Jail
from gennode.engine.choice.runs import Layer, Run, hardware, threads
from gennode.engine.devices import DeviceReport
from gennode.engine.seam import Precision
from gennode.errors import ResourceError
from gennode.wire.announcement import Machine
from gennode.wire.manifest import ModelShape

# What a computation may depend on, and no more: no keys, tokens or proxies of whoever starts us.
_PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "TMPDIR", "TZ")
_PASSED_ON_KINDS = (
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LC_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_",
    "HSA_", "PYTORCH_", "TORCH_", "ATEN_", "DNNL_", "ONEDNN_", "PYTHONWARNINGS",
)  # fmt: skip

MODULE = "gennode.engine.child"

END_HINT = "allow fewer layers or less memory, or end other programs"
SILENCE_S = 10.0
"""Whoever is asked for work, and uses no processor for so long, is frozen: stopped by somebody, or
waiting for a device that will not answer."""

END_S = 1.0  # from SIGKILL, or the end of its socket, until a process is gone
LAST_WORDS_BYTES = 2000  # of what it wrote before it ended: where a traceback says what it was

R = TypeVar("R")


class ProcessEndedError(Exception):
    """The process is gone; `was_killed`: by the system, which does that where memory runs out."""

    def __init__(self, words: str, *, was_killed: bool) -> None:
        super().__init__(words)
        self.was_killed = was_killed

    def as_resource(self) -> ResourceError:
        """The same for those who asked for a computation."""
        words = f"the compute process {self}"
        if self.was_killed:
            words = "the compute process was killed, perhaps for want of memory"
        return ResourceError(words, hint=END_HINT)


class ComputeProcess:
    """One process that computes from one model's folder, on one device.

    It is started at once and takes seconds to be ready. It ends with this process, if nobody
    calls `end` before. `ask` is for one thread at a time; everything else is for any.
    """

    def __init__(self, folder: Path, device: str, *, module: str = MODULE) -> None:
        """`folder`: the only one that it can read; it must be there. `module`: what it runs.

        ResourceError if the system starts no process.
        """
        self.on_end: Callable[[], None] = lambda: None
        """Called from a thread of its own when the process has ended, whatever the reason."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, str(folder), device],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_environment(os.environ),
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the node
                )
            except OSError as error:
                ours.close()
                raise ResourceError(f"no process can be started: {error.strerror}",
                                    hint="end other programs") from error  # fmt: skip
        self._channel: Channel[say.Reply] = Channel(
            ours,
            msgspec.msgpack.Decoder(say.Reply),
            silence_s=SILENCE_S,
            is_silence_fine=self._is_working,
        )
        self._may_wait = True
        self._used_s = 0.0
        self._jail: Jail | None = None
        self._last_words = b""
        self._is_ending = self._by_us = False
        self._is_over = threading.Event()
        threading.Thread(target=self._watch, name="compute-watch", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def was_killed(self) -> bool:
        """Whether it was killed, and not by us: the system does that where memory runs out."""
        return not self._by_us and self._process.returncode == -signal.SIGKILL

    @property
    def end_words(self) -> str:
        """How it ended, for people; what it wrote last, if it ended by itself."""
        code = self._process.returncode
        if self._by_us or code is None:
            return "was ended"
        if code < 0:
            return f"was ended by signal {-code}"
        last = self._last_words.decode(errors="replace").strip().splitlines()[-1:]
        return say.printable(f"ended by itself ({code}): {' '.join(last)}")

    def jail(self) -> Jail:
        """Wait until it is ready; what it is held to.

        Raises ProcessEndedError, and DeviceError if the device does not work.
        """
        if self._jail is None:
            self._jail = self._answer(say.Started, 0, None)[0].jail
        return self._jail

    def ask(
        self,
        request: msgspec.Struct,
        expected: type[R],
        *,
        body: Sequence[Buffer] = (),
        max_body_bytes: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[R, bytearray]:
        """Ask, and wait for the answer: `expected`, with so many bytes at most.

        `progress` gets (done, in all) meanwhile. Raises what the process says, of the same
        kind, and ProcessEndedError if it ends or does not answer as it has to.
        """
        self.jail()
        self._may_wait = isinstance(request, say.Load | say.Reread)
        try:
            self._channel.send(request, body)
        except BrokenChannelError as error:
            raise self._ended(error) from error
        return self._answer(expected, max_body_bytes, progress)

    def measure(
        self,
        device: str,
        memory_bytes: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Machine:
        """What a plan needs to know of this machine; see `measure_machine`.

        Raises DeviceError, ResourceError.
        """
        request = say.Measure(device, memory_bytes)
        try:
            return self.ask(request, say.Probed, progress=progress)[0].machine
        except ProcessEndedError as error:
            raise error.as_resource() from error

    def examine(
        self, device: str, progress: Callable[[int, int], None] | None = None
    ) -> DeviceReport:
        """Figures of a device for people; see `measure_device`.

        Raises DeviceError, ResourceError.
        """
        try:
            report = self.ask(say.Examine(device), say.Examined, progress=progress)[0].report
        except ProcessEndedError as error:
            raise error.as_resource() from error
        if not report.is_sound():
            raise ResourceError("the compute process measures what can't be", hint=END_HINT)
        return report

    def settle(
        self,
        precision: Precision | Literal["auto"],
        shape: ModelShape,
        device: str,
        memory_bytes: int,
        recorded: Callable[[str], Sequence[Run]],
    ) -> tuple[Precision, tuple[Run, ...]]:
        """The precision for a model of the Llama family, and what was measured for that.

        `recorded`: runs on a hardware; see `choice.settle`. Raises DeviceError, ResourceError.
        """
        here = hardware(device, threads())
        request = say.Settle(precision, shape, device, memory_bytes, here)
        body = msgspec.msgpack.encode(recorded(here))
        try:
            told = self.ask(request, say.Settled, body=[body])[0]
        except ProcessEndedError as error:
            raise error.as_resource() from error
        if any((run.hardware, run.layer) != (here, Layer.of(shape)) for run in told.runs):
            raise ResourceError("the compute process measures what can't be", hint=END_HINT)
        return told.precision, told.runs

    def end(self) -> None:
        """End it at once; it holds nothing that would be lost. Idempotent."""
        self._is_ending = True
        self._channel.close()
        self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is gone; whether it is."""
        return self._is_over.wait(timeout_s)

    def _answer(
        self, expected: type[R], max_body_bytes: int, progress: Callable[[int, int], None] | None
    ) -> tuple[R, bytearray]:
        while True:
            try:
                reply, body = self._channel.receive(max_body_bytes)
            except BrokenChannelError as error:
                raise self._ended(error) from error
            if isinstance(reply, expected):
                return reply, body
            if isinstance(reply, say.Failed):
                raise say.as_error(reply)
            if not isinstance(reply, say.Progress):
                wrong = BrokenChannelError(f"it answers {type(reply).__name__}")
                raise self._ended(wrong)
            if progress is not None and 0 <= reply.done <= reply.total:
                progress(reply.done, reply.total)

    def _is_working(self) -> bool:
        """Whether it has used its processor since this was asked last, or may wait for a disk."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:  # it is gone, and its socket will say so
            return True
        before_s, self._used_s = self._used_s, times.user + times.system
        return self._may_wait or self._used_s > before_s

    def _ended(self, error: BrokenChannelError) -> ProcessEndedError:
        """End what no longer answers as it has to, and say how it ended."""
        if isinstance(error, GoneError):
            self._is_over.wait(END_S)  # its socket closes a moment before it is gone
        words, was_killed = self.end_words, self.was_killed
        if not self._is_over.is_set():
            words = f"was ended: {error}"
        self.end()
        return ProcessEndedError(words, was_killed=was_killed)

    def _watch(self) -> None:
        """Keep the end of what it writes, which ends with it, and then tell."""
        stderr = self._process.stderr
        if stderr is not None:
            while written := os.read(stderr.fileno(), LAST_WORDS_BYTES):
                self._last_words = (self._last_words + written)[-LAST_WORDS_BYTES:]
            stderr.close()
        self._process.wait()
        self._by_us = self._is_ending
        self._is_over.set()
        self.on_end()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What is passed on of our environment."""
    passed = {
        name: value
        for name, value in ours.items()
        if name in _PASSED_ON or name.startswith(_PASSED_ON_KINDS)
    }
    # Modules come from where ours do, also from a checkout that is not installed.
    root = str(Path(gennode.__file__).resolve().parents[1])
    passed["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [ours.get("PYTHONPATH")])])
    passed["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing may be written
    # numpy's own threads would start with it, before they can be held to anything.
    return {**passed, "OPENBLAS_NUM_THREADS": "1"}
