"""GgufOwner: tokens to states and states to logits, from the two ends of a GGUF file."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from gennode.engine.gguf.folder import GgufFolder
from gennode.engine.gguf.format import KINDS, Tensor
from gennode.engine.llama.linear import make_linear
from gennode.engine.seam import ChatMessage, Logits, States
from gennode.engine.text.chat import Chat
from gennode.engine.text.tokenizer import ModelTokenizer
from gennode.errors import LocalError, ModelError, UsageError
from gennode.wire.ids import ModelId

_UNPACK_BYTES = 16 * 1024 * 1024  # at a time: what is unpacked is up to eight times larger


class GgufOwner:
    """An OwnerEngine for GGUF: tokenizer.json, embedding, final norm and head, on the CPU."""

    @torch.inference_mode()
    def __init__(self, folder: GgufFolder) -> None:
        """Load the owner's tensors. Raises ModelError; UsageError without the library gguf."""
        if importlib.util.find_spec("gguf") is None:
            raise UsageError("models in GGUF need the library gguf, which is not installed",
                             hint="pip install 'gennode[llama]'")  # fmt: skip
        self._unpacker: Any = importlib.import_module("gguf")
        self._folder = folder
        self._shape = folder.gguf.shape
        self._tokenizer = ModelTokenizer(folder.path, self._shape.vocab)
        self._chat = Chat(folder.path, self._tokenizer)
        tensors = folder.gguf.tensors
        # Rows are unpacked as they are looked up, so the table stays as small as in the file.
        self._kind = tensors["token_embd.weight"].kind
        self._embedding = self._packed(tensors["token_embd.weight"])
        self._norm = torch.from_numpy(self._whole(tensors["output_norm.weight"])[0])
        head = tensors.get("output.weight", tensors["token_embd.weight"])
        self._head = make_linear(torch.from_numpy(self._whole(head)), None)

    def _packed(self, tensor: Tensor) -> npt.NDArray[np.uint8]:
        """A tensor as it is in the file, one row of bytes for each of its rows."""
        try:
            with self._folder.gguf.file.open("rb") as stream:
                stream.seek(tensor.offset)
                data = stream.read(tensor.size_bytes)
        except OSError as error:
            raise ModelError(f"{self._folder.gguf.file} can't be read: {error.strerror}",
                             hint="check that it is there") from error  # fmt: skip
        if len(data) != tensor.size_bytes:
            raise ModelError(f"{tensor.name} ends early", hint="download the file again")
        rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
        return np.frombuffer(data, np.uint8).reshape(rows, -1)

    def _unpacked(self, packed: npt.NDArray[np.uint8], kind: int) -> npt.NDArray[np.float32]:
        values: npt.NDArray[np.float32] = self._unpacker.quants.dequantize(
            packed, self._unpacker.GGMLQuantizationType[KINDS[kind].name]
        )
        return values

    def _whole(self, tensor: Tensor) -> npt.NDArray[np.float32]:
        packed = self._packed(tensor)
        result = np.empty((len(packed), tensor.shape[-1]), np.float32)
        rows = max(1, _UNPACK_BYTES // packed.shape[1])
        for start in range(0, len(packed), rows):
            piece = packed[start : start + rows]
            result[start : start + rows] = self._unpacked(piece, tensor.kind)
        return result

    @property
    def model(self) -> ModelId:
        """Which weights these are."""
        return self._folder.manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self._shape.dim

    @property
    def layers(self) -> int:
        """How many transformer layers lie between `embed` and `logits`."""
        return self._shape.layers

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for."""
        return self._shape.max_positions

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
        return token in self._folder.gguf.end_tokens

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer, [len(tokens), dim]; the same at all positions."""
        if any(not 0 <= token < self._shape.vocab for token in tokens):
            raise LocalError(f"a token lies outside the vocabulary of {self._shape.vocab}")
        if not tokens:
            return np.empty((0, self.dim), np.float32)
        rows = self._embedding[np.array(tokens, np.int64)]
        return np.ascontiguousarray(self._unpacked(rows, self._kind))

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        if state.dtype != np.float32 or state.size != self.dim:
            raise LocalError(f"logits need one float32 state of {self.dim}, not {state.shape}")
        row = torch.tensor(state).view(1, self.dim)
        normed = functional.rms_norm(row, (self.dim,), self._norm, self._folder.gguf.epsilon)
        return self._head(normed)[0].numpy()
