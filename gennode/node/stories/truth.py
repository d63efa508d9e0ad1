"""What answers must be: those of one machine that holds all layers of a toy and never fails."""

from __future__ import annotations

from functools import lru_cache

from gennode.engine.sample import Sampling
from gennode.engine.toy import ToyOwner, ToyShard, toy_manifest
from gennode.errors import LocalError
from gennode.node.alone import Alone
from gennode.node.prompt import answer
from gennode.wire.ids import Span
from gennode.wire.manifest import Manifest


def undisturbed(manifest: Manifest, prompt: str, sampling: Sampling) -> list[int]:
    """The answer of one machine that holds all layers of a toy and never fails."""
    engine, whole = ToyShard(manifest), Span(0, manifest.shape.layers)
    owner = ToyOwner(manifest)
    engine.load(whole)
    tokens: list[int] = []

    async def ask() -> None:
        async for token in answer(prompt, owner, Alone(engine, [whole]), sampling):
            tokens.append(token)

    try:
        ask().send(None)
    except StopIteration:
        return tokens
    raise LocalError("an answer without a mesh waited for something")


@lru_cache(maxsize=1024)  # stories draw from few prompts, so that this is rarely computed
def whole_truth(layers: int, prompt: str, sampling: Sampling) -> tuple[int, ...]:
    """The same, remembered; for the toy of so many layers."""
    return tuple(undisturbed(toy_manifest(layers), prompt, sampling))
