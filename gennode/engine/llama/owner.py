"""LlamaOwner: tokens to states and states to logits, around the layers that workers run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.llama.model import epsilon_of, normalise
from gennode.engine.llama.precision import arithmetic
from gennode.engine.owner import TextOwner
from gennode.engine.seam import Logits, Precision, States


class LlamaOwner(TextOwner):
    """An OwnerEngine for Llama: tokenizer, embedding, final norm and head, on the CPU."""

    @torch.inference_mode()
    def __init__(self, folder: ModelFolder, *, precision: Precision = "fp32") -> None:
        """Load the owner's tensors; the layers are not read.

        `precision` is that of the head: with a large vocabulary it is a twentieth of a small
        model. Raises ModelError, and DeviceError if it can't be computed in here.
        """
        super().__init__(folder.path, folder.manifest, folder.end_tokens)
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

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer, [len(tokens), dim]; the same at all positions."""
        self.check_tokens(tokens)
        rows = self._embedding[torch.tensor(list(tokens), dtype=torch.int64)]
        return rows.float().numpy()

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        self.check_state(state)
        row = torch.tensor(state).view(1, self.dim)
        return self._head(normalise(row, self._norm, self._epsilon))[0].numpy()
