"""What every owner's engine has alike: text, sizes, and what it checks of its callers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gennode.engine.seam import ChatMessage, States
from gennode.engine.text.chat import Chat
from gennode.engine.text.tokenizer import ModelTokenizer
from gennode.errors import LocalError
from gennode.wire.ids import ModelId
from gennode.wire.manifest import Manifest


class TextOwner:
    """An OwnerEngine but for `embed` and `logits`: tokenizer and chat template of a folder."""

    def __init__(self, path: Path, manifest: Manifest, end_tokens: frozenset[int]) -> None:
        """Raises ModelError if the tokenizer is damaged or of another model."""
        self.model: ModelId = manifest.model
        self.dim = manifest.shape.dim
        self.layers = manifest.shape.layers
        self.max_positions = manifest.shape.max_positions
        self.vocab = manifest.shape.vocab
        self._end_tokens = end_tokens
        self._tokenizer = ModelTokenizer(path, self.vocab)
        self._chat = Chat(path, self._tokenizer)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects."""
        return self._tokenizer.encode(text)

    def chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins; see OwnerEngine."""
        return self._chat.tokens(messages)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return self._tokenizer.decode(tokens)

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return token in self._end_tokens

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """LocalError if one of them is none of the model's."""
        if any(not 0 <= token < self.vocab for token in tokens):
            raise LocalError(f"a token lies outside the vocabulary of {self.vocab}")

    def check_state(self, state: States) -> None:
        """LocalError unless it is one position's state, [dim] or [1, dim]."""
        if state.dtype != np.float32 or state.size != self.dim:
            raise LocalError(f"logits need one float32 state of {self.dim}, not {state.shape}")
