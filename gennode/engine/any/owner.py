"""AnyOwner: tokens to states and states to logits, by the library's own forward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gennode.engine.any.load import load_outer
from gennode.engine.any.skeleton import Skeleton
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.engine.owner import TextOwner
from gennode.engine.seam import Logits, States
from gennode.errors import LocalError


class AnyOwner(TextOwner):
    """An OwnerEngine for any decoder, in fp32 on the CPU.

    Scales of embeddings, learned positions, norms, soft caps and logit scales are the
    library's: its forward is run with the layers taken out.
    """

    @torch.inference_mode()
    def __init__(self, folder: ModelFolder) -> None:
        """Load the owner's tensors; the layers are not read. Raises ModelError."""
        super().__init__(folder.path, folder.manifest, folder.end_tokens)
        self._skeleton = Skeleton(folder.other)
        load_outer(self._skeleton, folder)

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer at positions from `position` on, [len(tokens), dim]."""
        self.check_tokens(tokens)
        if not 0 <= position <= self.max_positions - len(tokens):
            raise LocalError(f"positions from {position} on are beyond what the model knows")
        if not tokens:
            return np.zeros((0, self.dim), np.float32)
        states: States = self._skeleton.embed(list(tokens), position).numpy()
        return np.ascontiguousarray(states)

    @torch.inference_mode()
    def logits(self, state: States) -> Logits:
        """Logits after one position's last-layer state (shape [dim] or [1, dim])."""
        self.check_state(state)
        found: Logits = self._skeleton.logits(torch.tensor(state).view(1, self.dim)).numpy()
        return found
