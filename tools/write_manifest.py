"""Writes a model folder's manifest.json, so that any flipped bit of it is found when it is read."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from gennode.engine.checkpoint.compare import MANIFEST
from gennode.engine.checkpoint.weights import open_model


def main() -> None:
    """Hash each folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        (folder / MANIFEST).unlink(missing_ok=True)
        manifest = open_model(folder).manifest
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        print(f"{folder.name}: {manifest.model}")


if __name__ == "__main__":
    main()
