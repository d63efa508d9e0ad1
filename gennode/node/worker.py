"""A worker: an engine, what it may take on, and doing the jobs that its hop machine asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gennode.engine.seam import ShardEngine, StepInput
from gennode.errors import GennodeError, ResourceError
from gennode.node.actions import CloseJob, Job, OpenJob, StepJob
from gennode.node.hop import MAX_SESSIONS, HostedModel
from gennode.wire.activations import codec
from gennode.wire.announcement import Hosting


@dataclass
class Work:
    """What a worker has done since it started."""

    steps: int = 0
    compute_s: float = 0.0
    codec_s: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.steps + other.steps,
            self.compute_s + other.compute_s,
            self.codec_s + other.codec_s,
        )


@dataclass(frozen=True)
class Worker:
    """What a peer needs to host layers of a model: one worker per model.

    `capacity_layers`: how many may be loaded in all. `max_positions`: the longest session.
    """

    engine: ShardEngine
    layers: int
    capacity_layers: int
    max_positions: int = 32_768
    work: Work = field(default_factory=Work)

    def hosting(self) -> Hosting:
        """What to announce now; measures the engine the first time."""
        profile, spans = self.engine.profile(), self.engine.spans()
        loaded = sum(span.layers for span in spans)
        return Hosting(
            model=profile.model,
            spans=spans,
            spare_layers=max(0, min(self.capacity_layers, self.layers) - loaded),
            layer_time_s=profile.layer_time_s,
            load_time_s=profile.load_time_s,
            max_sessions=MAX_SESSIONS,
            compute_class=profile.compute_class,
        )

    def terms(self) -> HostedModel:
        """What the machine that keeps sessions needs to know."""
        return HostedModel(
            model=self.engine.model,
            layers=self.layers,
            dim=self.engine.dim,
            max_positions=self.max_positions,
            can_host=lambda span: self.hosting().can_host(span),
        )

    def attempt(self, job: Job) -> bytes | GennodeError:
        """Do one job; what went wrong is its outcome, for the session's owner to hear."""
        try:
            return self._do(job)
        except GennodeError as error:
            return error
        except MemoryError:
            return ResourceError("out of memory")

    def _do(self, job: Job) -> bytes:
        engine = self.engine
        if isinstance(job, OpenJob):
            if not self.hosting().can_host(job.span):  # another session took the room meanwhile
                raise ResourceError(f"layers {job.span} no longer fit")
            engine.load(job.span)
            engine.open(job.key, job.span, job.max_positions)
            return b""
        if isinstance(job, CloseJob):
            engine.close(job.key)
            return b""
        return self._step(job)

    def _step(self, job: StepJob) -> bytes:
        wire, start_s = codec(job.codec), time.perf_counter()
        states = wire.decode(job.payload, self.engine.dim)
        decoded_s = time.perf_counter()
        [output] = self.engine.step([StepInput(job.key, job.position, states)])
        computed_s = time.perf_counter()
        payload = wire.encode(output)
        self.work.steps += 1
        self.work.compute_s += computed_s - decoded_s
        self.work.codec_s += time.perf_counter() - computed_s + decoded_s - start_s
        return payload
