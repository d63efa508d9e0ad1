"""What was measured on this machine before: one line for each run, in a file with a limit."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated

import msgspec

from gennode.engine.seam import Precision
from gennode.errors import ResourceError
from gennode.wire.manifest import ModelShape

MAX_RUNS = 2048  # some 220 bytes each; to learn from as many takes a second
MAX_FILE_BYTES = 4 * 1024**2
MAX_HARDWARE_CHARACTERS = 256

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Layer(msgspec.Struct, frozen=True, order=True):
    """The sizes of a layer that decide how long it takes."""

    dim: _Size
    heads: _Size
    kv_heads: _Size
    head_dim: _Size
    ffn_dim: _Size

    @classmethod
    def of(cls, shape: ModelShape) -> Layer:
        """A dense model's layer."""
        return cls(shape.dim, shape.heads, shape.kv_heads, shape.head_dim, shape.ffn_dim)

    @property
    def weights(self) -> int:
        """Numbers in its matrices."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.dim * (attention + 3 * self.ffn_dim)


class Step(msgspec.Struct, frozen=True, order=True):
    """What passes the layer at once: `rows` of each of `sequences`, after `context` positions."""

    sequences: _Size
    rows: _Size
    context: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]


class Run(msgspec.Struct, frozen=True):
    """One measurement: seconds that a layer took for a step."""

    hardware: Annotated[str, msgspec.Meta(max_length=MAX_HARDWARE_CHARACTERS)]
    precision: Precision
    layer: Layer
    step: Step
    layer_s: Annotated[float, msgspec.Meta(gt=0, le=3600)]


def hardware(device: str, threads: int) -> str:
    """What has to be the same for a run to say something: processor, threads, device, torch."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        processor = next(names, processor)
    except OSError:  # not Linux
        pass
    text = f"{processor}; {threads} threads; {device}; torch {metadata.version('torch')}"
    return text[:MAX_HARDWARE_CHARACTERS]


def threads() -> int:
    """How many the engine computes with, by what torch goes by; torch itself isn't asked."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else os.cpu_count() or 1


class RunFile:
    """Runs of all models on this machine, the latest last. Losing it costs measurements only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, hardware: str) -> list[Run]:
        """The latest runs on this hardware; lines that are none are passed over."""
        try:
            with self._path.open("rb") as file:
                size_bytes = file.seek(0, os.SEEK_END)
                file.seek(max(0, size_bytes - MAX_FILE_BYTES))
                lines = file.read(MAX_FILE_BYTES).split(b"\n")
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                run = msgspec.json.decode(line, type=Run)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # half a line, or of another version
            if run.hardware == hardware:
                found.append(run)
        return found[-MAX_RUNS:]

    def add(self, runs: Iterable[Run]) -> None:
        """Append; what is over half the limit then is dropped, the oldest first.

        ResourceError if the file can't be written.
        """
        data = b"".join(msgspec.json.encode(run) + b"\n" for run in runs)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(data)
            if self._path.stat().st_size > MAX_FILE_BYTES:
                self._shorten()
        except OSError as error:
            raise ResourceError(f"{self._path} can't be written: {error.strerror}",
                                hint="free some disk space") from error  # fmt: skip

    def _shorten(self) -> None:
        kept = self._path.read_bytes()[-MAX_FILE_BYTES // 2 :].partition(b"\n")[2]
        fresh = self._path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(kept)
        fresh.replace(self._path)


def layers_of(runs: Sequence[Run]) -> list[Layer]:
    """The kinds of layers that were measured, in a fixed order."""
    return sorted({run.layer for run in runs})
