"""LlamaOwner: tokens to states and states to logits, around the layers that workers run."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import numpy as np
import torch
from tokenizers import Tokenizer

from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.linear import make_linear
from gennode.engine.llama.model import normalise
from gennode.engine.seam import Logits, States
from gennode.errors import LocalError, ModelError, UsageError
from gennode.wire.ids import ModelId

MAX_TEXT_CHARACTERS = 4 * 1024 * 1024  # four for each of the 2^20 positions a session may have


class LlamaOwner:
    """An OwnerEngine for Llama: tokenizer, embedding, final norm and head, in fp32 on the CPU."""

    @torch.inference_mode()
    def __init__(self, folder: ModelFolder) -> None:
        """Load the owner's tensors; the layers are not read. Raises ModelError."""
        self._folder = folder
        self._config = folder.config
        self._tokenizer = _load_tokenizer(folder)
        shapes = folder.config.owner_tensors()

        def take(name: str, dtype: torch.dtype | None) -> torch.Tensor:
            return folder.read({name: shapes[name]}, dtype)

        # Rows are widened as they are looked up, so the table stays as small as in the file.
        self._embedding = take("model.embed_tokens.weight", None)
        self._norm = take("model.norm.weight", torch.float32)
        tied = folder.config.tie_word_embeddings
        head = take("model.embed_tokens.weight" if tied else "lm_head.weight", torch.float32)
        self._head = make_linear(head, None)

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
        if len(text) > MAX_TEXT_CHARACTERS:
            raise UsageError(f"a prompt of {len(text)} characters is too long",
                             hint=f"keep it below {MAX_TEXT_CHARACTERS}")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the prompt is not valid Unicode text",
                             hint="remove its lone surrogates") from error  # fmt: skip
        return list(self._tokenizer.encode(text).ids)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

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
        return self._head(normalise(row, self._norm, self._config.rms_norm_eps))[0].numpy()


class _TokenizerErrors:
    """Turns what the tokenizers library raises into ModelError.

    It raises the bare class Exception; to catch that with `except` would catch our own bugs.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is Exception:
            raise ModelError(
                f"tokenizer.json is damaged: {error}", hint="download that file again"
            ) from error


def _load_tokenizer(folder: ModelFolder) -> Tokenizer:
    with _TokenizerErrors():
        tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    # A saved tokenizer may carry batch settings; a prompt is neither padded nor cut.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > folder.config.vocab_size:
        raise ModelError(
            f"tokenizer.json has {size} tokens, the weights {folder.config.vocab_size}",
            hint="take tokenizer.json and the weights from the same model",
        )
    return tokenizer
