"""What a sequence's layers remember: the library's own caches, which can also go back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from gennode.errors import ResourceError
from gennode.wire.ids import Span

KEPT_STEPS = 8
"""How many steps back a recurrent layer can go: drafts that are refused, steps sent again."""

_STATES = ("conv_states", "recurrent_states")
_FLAGS = ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state",
          "conv_kernel_size")  # fmt: skip


@dataclass(frozen=True)
class _Snapshot:
    """The recurrent states of a span's layers before a step at `position`."""

    position: int
    states: dict[int, dict[str, Any]]


class _SlidingLayer(DynamicSlidingWindowLayer):
    """Shows its layer a window, and keeps what lies before it."""

    def __init__(self, sliding_window: int) -> None:
        super().__init__(sliding_window)
        self.activate_past_recording()  # type: ignore[no-untyped-call]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` positions."""
        DynamicLayer.crop(self, tokens_to_remove)
        self.cumulative_length += tokens_to_remove


class SpanCache(DynamicCache):
    """The library's cache over all layers of a model, of which a span's are in use.

    Its length is our own count: the library asks the first layer, which may be elsewhere or
    recurrent. Layers with sliding windows keep everything, so that going back is exact.
    """

    def __init__(self, config: Any, span: Span, length: int = 0) -> None:
        """`length`: positions that count as seen already, for who only needs masks."""
        super().__init__(config=config)
        self._config = config
        self.layers = self._fresh()
        self.span = span
        self.length = length
        self._is_half_done = False
        self._snapshots: deque[_Snapshot] = deque(maxlen=KEPT_STEPS)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions cached; of a layer in use, as it says itself."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if self.span.start <= layer_idx < self.span.end and isinstance(layer, CacheLayerMixin):
            return int(layer.get_seq_length())
        return self.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first row of this step."""
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a mask covers, and the first one's position."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if isinstance(layer, DynamicSlidingWindowLayer):  # perhaps one that is elsewhere
            hidden = max(0, self.length - layer.sliding_window + 1)
            return self.length - hidden + query_length, hidden
        return self.length + query_length, 0

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether a recurrent layer goes on from a state."""
        if layer_idx is None:
            return self.length > 0
        return bool(super().has_previous_state(layer_idx, state_idx))

    def _fresh(self) -> list[Any]:
        return [_unlimited(layer) for layer in DynamicCache(config=self._config).layers]

    def begin(self, position: int) -> None:
        """Go back to `position` if need be, and note the states of recurrent layers there.

        Until `end`, what is cached counts as half done.
        """
        self.rewind(position)
        states = {index: _copy(vars(layer)) for index, layer in self._recurrent()}
        if states and not (self._snapshots and self._snapshots[-1].position == position):
            self._snapshots.append(_Snapshot(position, states))
        self._is_half_done = True

    def end(self, length: int) -> None:
        """A step is done, and the sequence so long."""
        self.length = length
        self._is_half_done = False

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on. ResourceError if a recurrent layer can't."""
        if position == 0:
            self.layers = self._fresh()
            self._snapshots.clear()
        elif position != self.length or self._is_half_done:
            self._restore(position)
        for layer in self.layers:
            if isinstance(layer, DynamicLayer) and layer.get_seq_length() > position:
                surplus = layer.get_seq_length() - position
                if isinstance(layer, LinearAttentionAndFullAttentionLayer):
                    DynamicLayer.crop(layer, -surplus)  # its states were restored
                else:
                    layer.crop(-surplus)
        self.length = position
        self._is_half_done = False

    def _restore(self, position: int) -> None:
        recurrent = dict(self._recurrent())
        if not recurrent:
            return
        known = next((each for each in self._snapshots if each.position == position), None)
        if known is None:
            raise ResourceError(
                f"recurrent layers can't go back to position {position}: they keep what they "
                f"were before each of the last {KEPT_STEPS} steps",
                hint="begin the sequence again",
            )
        for index, layer in recurrent.items():
            vars(layer).update(_copy(known.states[index]))
        while self._snapshots[-1].position > position:
            self._snapshots.pop()

    def _recurrent(self) -> Iterator[tuple[int, Any]]:
        for index in range(*self.span):
            layer = self.layers[index] if index < len(self.layers) else None
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                yield index, layer

    @property
    def used_bytes(self) -> int:
        """Memory of everything that is kept."""
        tensors: list[Any] = []
        for layer in self.layers:
            tensors += [getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")]
            for name in _STATES:
                tensors += getattr(layer, name, {}).values()
        for snapshot in self._snapshots:
            for states in snapshot.states.values():
                for name in _STATES:
                    tensors += states[name].values()
        return sum(
            each.untyped_storage().nbytes() for each in tensors if isinstance(each, torch.Tensor)
        )


def _unlimited(layer: Any) -> Any:
    """The same kind of layer, that forgets nothing by itself."""
    if type(layer) is DynamicSlidingWindowLayer:
        return _SlidingLayer(layer.sliding_window)
    if type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return layer


def _copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """A recurrent layer's states and flags, tensors copied: the library changes them in place."""
    copied: dict[str, Any] = {name: attributes[name] for name in ("dtype", "device")}
    for name in _FLAGS:
        copied[name] = dict(attributes[name])
    for name in _STATES:
        copied[name] = {
            index: state.clone() if isinstance(state, torch.Tensor) else state
            for index, state in attributes[name].items()
        }
    return copied
