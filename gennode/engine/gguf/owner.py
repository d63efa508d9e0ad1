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
from gennode.engine.owner import TextOwner
from gennode.engine.seam import Logits, States
from gennode.errors import ModelError, UsageError

_UNPACK_BYTES = 16 * 1024 * 1024  # at a time: what is unpacked is up to eight times larger


class GgufOwner(TextOwner):
    """An OwnerEngine for GGUF: tokenizer.json, embedding, final norm and head, on the CPU."""

    @torch.inference_mode()
    def __init__(self, folder: GgufFolder) -> None:
        """Load the owner's tensors. Raises ModelError; UsageError without the library gguf."""
        if importlib.util.find_spec("gguf") is None:
            raise UsageError("models in GGUF need the library gguf, which is not installed",
                             hint="pip install 'gennode[llama]'")  # fmt: skip
        self._unpacker: Any = importlib.import_module("gguf")
        self._folder = folder
        super().__init__(folder.path, folder.manifest, folder.gguf.end_tokens)
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

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer, [len(tokens), dim]; the same at all positions."""
        self.check_tokens(tokens)
        if not tokens:
            return np.empty((0, self.dim), np.float32)
        rows = self._embedding[np.array(tokens, np.int64)]
        return np.ascontiguousarray(self._unpacked(rows, self._kind))

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        self.check_state(state)
        row = torch.tensor(state).view(1, self.dim)
        normed = functional.rms_norm(row, (self.dim,), self._norm, self._folder.gguf.epsilon)
        return self._head(normed)[0].numpy()
