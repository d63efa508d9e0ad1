"""LlamaOwner: tokens to states and states to logits, around the layers that workers run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.model import epsilon_of, normalise
from gennode.engine.llama.precision import arithmetic
from gennode.engine.seam import ChatMessage, Logits, Precision, States
from gennode.engine.text.chat import Chat
from gennode.engine.text.tokenizer import ModelTokenizer
from gennode.errors import LocalError
from gennode.wire.ids import ModelId


class LlamaOwner:
    """An OwnerEngine for Llama: tokenizer, embedding, final norm and head, on the CPU."""

    @torch.inference_mode()
    def __init__(self, folder: ModelFolder, *, precision: Precision = "fp32") -> None:
        """Load the owner's tensors; the layers are not read.

        `precision` is that of the head: with a large vocabulary it is a twentieth of a small
        model. Raises ModelError, and DeviceError if it can't be computed in here.
        """
        self._folder = folder
        self._config = folder.llama
        self._tokenizer = ModelTokenizer(folder.path, folder.llama.vocab_size)
        self._chat = Chat(folder.path, self._tokenizer)
        shapes = folder.llama.owner_tensors()

        def take(name: str, dtype: torch.dtype | None) -> torch.Tensor:
            return folder.read({name: shapes[name]}, dtype)

        # Rows are widened as they are looked up, so the table stays as small as in the file.
        self._embedding = take("model.embed_tokens.weight", None)
        self._epsilon = epsilon_of(folder.llama, torch.device("cpu"))
        self._norm = take("model.norm.weight", torch.float32)
        tied = folder.llama.tie_word_embeddings
        how = arithmetic(precision, torch.device("cpu"))
        head = take("model.embed_tokens.weight" if tied else "lm_head.weight", how.weight_dtype)
        self._head = how.linear(head, None)

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
        """Input states of the first layer, [len(tokens), dim]; the same at all positions."""
        vocab = self._config.vocab_size
        if any(not 0 <= token < vocab for token in tokens):
            raise LocalError(f"a token lies outside the vocabulary of {vocab}")
        rows = self._embedding[torch.tensor(list(tokens), dtype=torch.int64)]
        return rows.float().numpy()

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        if state.dtype != np.float32 or state.size != self.dim:
            raise LocalError(f"logits need one float32 state of {self.dim}, not {state.shape}")
        row = torch.tensor(state).view(1, self.dim)
        return self._head(normalise(row, self._norm, self._epsilon))[0].numpy()
