"""Runs `gennode demo` and keeps what it shows as a picture: docs/demo.svg."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).resolve().parent.parent / "docs" / "demo.svg"
COLUMNS = 92
STYLES = {
    "route before": "cyan",
    "killed": "bold red",
    "route after": "cyan",
    "longest wait": "yellow",
    "same": "bold green",
}


def main() -> None:
    """Record one run; fails if the demo fails."""
    command = [sys.executable, "-m", "gennode", "demo"]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text("$ make demo", style="bold"))
    for line in done.stdout.splitlines():
        style = next((style for start, style in STYLES.items() if line.startswith(start)), "")
        console.print(Text(line, style=style))
    TARGET.parent.mkdir(exist_ok=True)
    picture = console.export_svg(title="gennode demo")
    # rich names fonts on a server; a picture must not call anyone
    picture = re.sub(r"@font-face\s*\{[^}]*\}", "", picture)
    TARGET.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
