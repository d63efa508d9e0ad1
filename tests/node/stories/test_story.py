"""A story is a pure function of its seed."""

from __future__ import annotations

import os
import subprocess
import sys

from gennode.node.stories.story import tell

SEED = 13
TELL = f"""
from gennode.node.stories.story import tell
tell(3)  # whatever came before
print(tell({SEED}).digest)
"""


def test_a_seed_replays_bit_for_bit() -> None:
    assert tell(SEED) == tell(SEED)
    assert tell(SEED).digest != tell(SEED + 1).digest


def test_a_seed_replays_bit_for_bit_in_another_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", TELL],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }
    assert digests == {tell(SEED).digest}


def test_a_story_is_told_line_by_line() -> None:
    story = tell(SEED)
    assert story.holds
    assert sum("asks for" in line for line in story.told) == story.prompts
    assert sum("is answered" in line for line in story.told) == story.right
    times_s = [float(line.split()[0]) for line in story.told]
    assert times_s == sorted(times_s)
