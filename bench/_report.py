"""How every benchmark reports: a table for people, then one line of JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

Figure = float | int | str

_WIDTH_WITHOUT_TERMINAL = 120  # a log has no width of its own, and 80 would wrap the tables


def report(
    bench: str,
    figures: Mapping[str, Figure],
    *,
    columns: Sequence[str] = (),
    rows: Iterable[Sequence[Figure]] = (),
) -> None:
    """Print `rows` under `columns` (without rows: the figures), then the JSON line.

    `figures` are the results to be compared over time; their names end in a unit (`rate_token_s`).
    """
    table = Table(*(columns or ("figure", "value")), title=bench, title_justify="left")
    for row in rows if columns else figures.items():
        table.add_row(*map(_shown, row))
    console = Console(markup=False, emoji=False)  # [0:4] is a span, not a colour
    if not console.is_terminal:
        console.width = _WIDTH_WITHOUT_TERMINAL
    console.print(table)
    record = {"bench": bench, "figures": dict(figures), "machine": machine()}
    print(json.dumps(record, ensure_ascii=False), flush=True)


def median_of(runs: Iterable[float]) -> float:
    """The median: one disturbed run does not move it. ValueError without runs."""
    return statistics.median(runs)


def machine() -> str:
    """The processor, cores, memory, kernel, torch and load that the figures were taken with."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join(
        (
            _processor(),
            f"{cores} cores",
            f"{memory_gib:.0f} GiB",
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            f"torch {_version('torch')}",
            f"load {os.getloadavg()[0]:.2f}",
        )
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _shown(value: Figure) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
