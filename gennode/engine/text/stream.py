"""Text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A character takes at most 4 bytes, and a byte at most one token. Whoever holds back longer
# waits for a character that will not come.
MAX_HELD_TOKENS = 16

_INCOMPLETE = "\ufffd"


class TextStream:
    """Tokens in, new text out; what was given out never changes.

    Text that ends in half a character is held back until the rest is there. The pieces add up
    to `detokenize` of all tokens, unless the model writes bytes that are no text at all.
    """

    def __init__(self, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._detokenize = detokenize
        self._shown: list[int] = []  # a few tokens of context: some decoders drop a first space
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes, perhaps none."""
        self._held.append(token)
        return self._take(patient=len(self._held) < MAX_HELD_TOKENS)

    def finish(self) -> str:
        """What was held back."""
        return self._take(patient=False)

    def _take(self, *, patient: bool) -> str:
        before = self._detokenize(self._shown)
        after = self._detokenize(self._shown + self._held)
        if patient and (after.endswith(_INCOMPLETE) or len(after) <= len(before)):
            return ""
        self._shown, self._held = self._held or self._shown, []
        return after[len(before) :]
