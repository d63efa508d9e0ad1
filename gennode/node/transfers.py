"""Parts of caches that wait to go out of an engine or into it, and what has to wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from gennode.node.actions import ExportJob, HopKey, RestoreJob, StepJob


class Transfers:
    """One is done in each turn, before a batch: a part is small, so that no token waits long.

    An export gives what is computed by then, and waits for nothing. What comes in lengthens its
    sequence: it waits for the steps that came before it, and those that come later for it.
    """

    def __init__(self) -> None:
        self._waiting: deque[ExportJob | RestoreJob | StepJob] = deque()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    def keys(self) -> set[HopKey]:
        """Whose jobs wait."""
        return {job.key for job in self._waiting}

    def holds(self, job: StepJob) -> bool:
        """Take a step that has to wait for a part of its own sequence; whether it has to."""
        if any(isinstance(one, RestoreJob) and one.key == job.key for one in self._waiting):
            self._waiting.append(job)
            return True
        return False

    def add(self, job: ExportJob | RestoreJob) -> None:
        """A part more."""
        self._waiting.append(job)

    def drop(self, key: HopKey) -> list[ExportJob | RestoreJob | StepJob]:
        """A sequence ends, or begins anew: what waited of it."""
        dropped = [job for job in self._waiting if job.key == key]
        self._waiting = deque(job for job in self._waiting if job.key != key)
        return dropped

    def next(self, has_steps: Callable[[HopKey], bool]) -> ExportJob | RestoreJob | None:
        """What is to be done now. `has_steps`: whether steps of a sequence wait in the queue."""
        blocked: set[HopKey] = set()
        for job in self._waiting:
            if isinstance(job, ExportJob):
                break
            if isinstance(job, RestoreJob) and job.key not in blocked and not has_steps(job.key):
                break
            blocked.add(job.key)
        else:
            return None
        self._waiting.remove(job)
        return job

    def released(self) -> list[StepJob]:
        """Steps that need not wait any longer, in order."""
        blocked: set[HopKey] = set()
        free: list[StepJob] = []
        rest: deque[ExportJob | RestoreJob | StepJob] = deque()
        for job in self._waiting:
            if isinstance(job, StepJob) and job.key not in blocked:
                free.append(job)
                continue
            if isinstance(job, RestoreJob):
                blocked.add(job.key)
            rest.append(job)
        self._waiting = rest
        return free
