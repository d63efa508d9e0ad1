"""The seam between the node and whatever computes: layers on one side, tokens on the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gennode.wire.ids import ModelId, Span

Precision = Literal["fp32", "bf16", "fp16", "int8", "int4"]
"""In what weights are held and multiplied. States between layers are fp32 in all of them."""

CachePrecision = Literal["fp32", "int8"]
"""In what keys and values are held. fp32 stands for as exact as the device computes them."""

DEFAULT_CACHE_BYTES = 4 * 1024**3  # 46,000 positions of 22 layers of a 1.1 B Llama

States = npt.NDArray[np.float32]
"""Hidden states, float32, shape [rows, dim], C-contiguous."""

Logits = npt.NDArray[np.float32]
"""Unnormalised log-probabilities of the next token, float32, shape [vocab]."""


@dataclass(frozen=True)
class StepInput:
    """One sequence's part of a step: its states at positions [position, position + rows).

    `position` is at most the sequence's length so far; anything cached from `position` on is
    dropped first, so that a repeated step is computed anew and gives the same bits.

    A batch may hold several inputs of one sequence, in order, each beginning where the one
    before ends: that gives what one step after the other does, but quicker. To the bit in
    classes where a row's neighbours don't matter (int8), to rounding in the others.
    """

    sequence: Hashable
    position: int
    states: States


@dataclass(frozen=True)
class ChatMessage:
    """One turn of a conversation; `role` is `system`, `user`, `assistant`, or a model's own."""

    role: str
    content: str


@dataclass(frozen=True)
class CachePart:
    """A sequence's cache of positions `[start, end)`, for another engine to go on from.

    `layout`: engines of equal layout understand each other's parts. The payload holds, for each
    layer of `span`, the keys and values of these positions.
    """

    layout: str
    span: Span
    start: int
    end: int
    payload: bytes


@dataclass(frozen=True)
class CacheUse:
    """Bytes of keys and values: held, and the most that may be."""

    used_bytes: int
    limit_bytes: int


@dataclass(frozen=True)
class Profile:
    """What this engine is and how fast, measured on this machine."""

    model: ModelId
    compute_class: str
    """Weights, arithmetic and device, such as `fp32-cpu`: equal classes agree to rounding."""
    layer_time_s: float
    """Seconds that one layer takes for one token."""
    load_time_s: float
    """Seconds that loading one more layer takes."""
    further_time_s: float
    """Seconds that each further token of a step, of another sequence, adds per layer."""
    cut_rows: int = 1
    """An input of a step may be cut into several, of one step or more, behind multiples of so
    many rows: that changes its bits no more than anything else beside it does."""


class ShardEngine(Protocol):
    """Computes the layers of some spans of one model. Called from one thread at a time.

    Raises ResourceError when memory runs out, LocalError when called against its contract. A
    step that fails may be repeated, as it is or in parts: what it had cached is dropped first.
    """

    @property
    def model(self) -> ModelId:
        """Which weights these are."""

    @property
    def dim(self) -> int:
        """Width of the hidden states."""

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, as sorted, maximal, disjoint spans."""

    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Load the layers of `span` that are not loaded yet; ModelError if a file is damaged.

        `progress` is told (layers done, layers in all).
        """

    def unload(self, span: Span) -> None:
        """Free what is loaded of `span`; LocalError if a sequence that is open runs over it."""

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes."""

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on."""

    def close(self, sequence: Hashable) -> None:
        """End a sequence and free its cache. Idempotent."""

    def reread(self, path: Path) -> None:
        """Load from this folder from now on: the same model, with more of its files here."""

    def cache_use(self) -> CacheUse:
        """What the caches of all sequences take, and what is kept for later ones."""

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """Hold the cache of the first `positions` after the sequence has ended; its number.

        None from engines that can't. Whoever keeps must `forget`.
        """

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Begin an empty sequence with what was kept of another over the same span."""

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent; sequences that adopted it are not touched."""

    def cache_position_bytes(self, span: Span) -> int:
        """What one position of a sequence over `span` takes in a part of its cache; 0 from
        engines that can't export. May be asked from any thread."""

    def export(self, sequence: Hashable, start: int, end: int) -> CachePart:
        """A sequence's cache of positions `[start, end)`; LocalError from engines that can't."""

    def restore(self, sequence: Hashable, part: CachePart) -> None:
        """Lengthen a sequence by what another engine exported of the positions that follow.

        RemoteError unless it fits: the sequence keeps what it had.
        """

    def profile(self) -> Profile:
        """Measure (once) and report; at least one layer must be loaded."""


class OwnerEngine(Protocol):
    """The owner's part of a model: text to tokens to states, and states to logits."""

    @property
    def model(self) -> ModelId:
        """Which weights these are."""

    @property
    def dim(self) -> int:
        """Width of the hidden states."""

    @property
    def layers(self) -> int:
        """How many transformer layers lie between `embed` and `logits`."""

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects."""

    def chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins, as the model knows it.

        May take a second, and blocks. ModelError if the model has no chat template or a harmful
        one, or if it refuses the conversation, such as one without a user's message.
        """

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer at positions from `position` on, [len(tokens), dim]."""

    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
