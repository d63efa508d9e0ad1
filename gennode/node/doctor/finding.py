"""One line of a diagnosis: what was looked at, how it stands, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gennode.errors import GennodeError
from gennode.node.doctor.facts import Failure


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """It works, but less well than it could."""
    FAIL = "fail"
    """A node could not do its work like this."""
    SKIP = "skip"
    """It could not be looked at; the words say why."""


@dataclass(frozen=True)
class Finding:
    """A line. `fix`: the next step, never empty with WARN or FAIL; `exit_code`: 0 unless FAIL."""

    check: str
    level: Level
    words: str
    fix: str = ""
    exit_code: int = 0


def ok(check: str, words: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, words)


def skip(check: str, words: str) -> Finding:
    """It could not be looked at."""
    return Finding(check, Level.SKIP, words)


def warn(check: str, words: str, fix: str) -> Finding:
    """It could be better."""
    return Finding(check, Level.WARN, words, fix)


def fail(check: str, words: str, fix: str, fault: type[GennodeError]) -> Finding:
    """It does not work; `fault` is what `gennode join` would end with."""
    return Finding(check, Level.FAIL, words, fix, fault.exit_code)


def failed(check: str, failure: Failure) -> Finding:
    """It does not work, in the error's own words."""
    fix = failure.fix or "report this, with the output of `gennode doctor --json`"
    return Finding(check, Level.FAIL, failure.words, fix, failure.exit_code)


def exit_code(findings: tuple[Finding, ...]) -> int:
    """0 if nothing fails, else that of the first failure."""
    return next((finding.exit_code for finding in findings if finding.level is Level.FAIL), 0)


def size_text(count: int) -> str:
    """Bytes as people say them."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
