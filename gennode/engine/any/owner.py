"""AnyOwner: tokens to states and states to logits, by the library's own forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gennode.engine.any.load import load_outer
from gennode.engine.any.skeleton import Skeleton
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.seam import ChatMessage, Logits, States
from gennode.engine.text.chat import Chat
from gennode.engine.text.tokenizer import ModelTokenizer
from gennode.errors import LocalError
from gennode.wire.ids import ModelId


class AnyOwner:
    """An OwnerEngine for any decoder, in fp32 on the CPU.

    Scales of embeddings, learned positions, norms, soft caps and logit scales are the
    library's: its forward is run with the layers taken out.
    """

    @torch.inference_mode()
    def __init__(self, folder: ModelFolder) -> None:
        """Load the owner's tensors; the layers are not read. Raises ModelError."""
        self._folder = folder
        self._config = folder.other
        self._tokenizer = ModelTokenizer(folder.path, self._config.vocab_size)
        self._chat = Chat(folder.path, self._tokenizer)
        self._skeleton = Skeleton(self._config)
        load_outer(self._skeleton, folder)

    @property
    def model(self) -> ModelId:
        """Which weights these are."""
        return self._folder.manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self._config.hidden_size

    @property
    def layers(self) -> int:
        """How many transformer layers lie between `embed` and `logits`."""
        return self._config.num_hidden_layers

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for."""
        return self._config.max_position_embeddings

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
        return token in self._folder.end_tokens

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer at positions from `position` on, [len(tokens), dim]."""
        vocab = self._config.vocab_size
        if any(not 0 <= token < vocab for token in tokens):
            raise LocalError(f"a token lies outside the vocabulary of {vocab}")
        if not 0 <= position <= self.max_positions - len(tokens):
            raise LocalError(f"positions from {position} on are beyond what the model knows")
        if not tokens:
            return np.zeros((0, self.dim), np.float32)
        states: States = self._skeleton.embed(list(tokens), position).numpy()
        return np.ascontiguousarray(states)

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        if state.dtype != np.float32 or state.size != self.dim:
            raise LocalError(f"logits need one float32 state of {self.dim}, not {state.shape}")
        found: Logits = self._skeleton.logits(torch.tensor(state).view(1, self.dim)).numpy()
        return found
