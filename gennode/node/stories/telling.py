"""Many stories: told by several processes, heard in the order of their seeds, and added up."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gennode.errors import LocalError
from gennode.node.stories.story import Story, tell

CHUNK = 4  # seeds that a process takes at a time


@dataclass(frozen=True)
class Told:
    """A story, and what it took to tell it."""

    story: Story
    cpu_s: float


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tell_all(seeds: Sequence[int], jobs: int) -> Iterator[Told]:
    """The stories of these seeds, in this order. Whoever stops listening ends the telling."""
    if jobs == 1 or len(seeds) == 1:
        yield from map(_tell, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(min(jobs, len(seeds)), _leave_ctrl_c) as pool:
        yield from pool.imap(_tell, seeds, CHUNK)


def _tell(seed: int) -> Told:
    start_s = time.process_time()
    story = tell(seed)
    return Told(story, time.process_time() - start_s)


def _leave_ctrl_c() -> None:
    """It goes to all processes at once; the one that asked for the stories ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass
class Tally:
    """What came of many stories."""

    stories: int = 0
    prompts: int = 0
    right: int = 0
    refused: int = 0
    abandoned: int = 0
    failovers: int = 0
    events: int = 0
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    longest_wait_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    _digests: list[str] = field(default_factory=list)

    def add(self, told: Told) -> None:
        """Add one more; LocalError if something in it did not hold."""
        story = told.story
        if not story.holds:
            hint = f"gennode simulate --seed {story.seed}"
            raise LocalError(f"seed {story.seed}: {story.broken}", hint=hint)
        self.stories += 1
        self.prompts += story.prompts
        self.right += story.right
        self.refused += len(story.refused)
        self.abandoned += story.abandoned
        self.failovers += story.failovers
        self.events += story.events
        self.virtual_s += story.virtual_s
        self.cpu_s += told.cpu_s
        self.longest_wait_s = max(self.longest_wait_s, story.longest_wait_s)
        self.faults.update(story.faults)
        self.paths.update(dict(story.paths))
        self._digests.append(story.digest)

    @property
    def speed_per_core(self) -> float:
        """Virtual seconds per second of one processor."""
        return self.virtual_s / self.cpu_s

    @property
    def digest(self) -> str:
        """Of all events of all stories, in order."""
        return hashlib.blake2b("".join(self._digests).encode(), digest_size=16).hexdigest()
