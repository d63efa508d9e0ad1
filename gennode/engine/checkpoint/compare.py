"""A folder against the manifest that lies in it."""

from __future__ import annotations

from collections.abc import Iterable

from gennode.errors import ModelError
from gennode.wire.manifest import Manifest, ManifestFile

MANIFEST = "manifest.json"


def compare(stated: Manifest, found: Manifest) -> None:
    """ModelError unless the folder is what its manifest says, naming file and chunk."""
    if stated.shape != found.shape:
        raise ModelError(
            f"config.json and {MANIFEST} disagree on the model's sizes",
            hint="download the model again",
        )
    expected = _by_name(stated.files)
    actual = _by_name(found.files)
    for name in sorted(actual):
        if name not in expected:
            raise ModelError(f"{name} is not in {MANIFEST}", hint="remove that file")
        if expected[name].size_bytes != actual[name].size_bytes:
            raise ModelError(
                f"{name} has {actual[name].size_bytes} bytes, not {expected[name].size_bytes}",
                hint="download that file again",
            )
        pairs = zip(expected[name].chunks, actual[name].chunks, strict=False)
        wrong = [index for index, (left, right) in enumerate(pairs) if left != right]
        if wrong or len(expected[name].chunks) != len(actual[name].chunks):
            chunk = wrong[0] if wrong else len(actual[name].chunks)
            raise ModelError(f"{name}: chunk {chunk} (4 MiB each) is not what it should be",
                             hint="download that file again")  # fmt: skip


def _by_name(files: Iterable[ManifestFile]) -> dict[str, ManifestFile]:
    return {file.name: file for file in files}
