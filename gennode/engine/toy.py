"""A toy model in whole numbers: the engines' twin for simulation, without weights or torch.

Each row depends on its layer and on every earlier position, so that a skipped layer, a stale
cache or a step done twice changes the tokens that follow. States are whole numbers below 64
beside one that is always 127: codecs of whole numbers carry them without loss.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gennode.engine.contract import (
    check_batch,
    check_export,
    check_open,
    check_part,
    check_span,
    check_truncate,
    check_unload,
    maximal_spans,
)
from gennode.engine.seam import (
    CachePart,
    CacheUse,
    ChatMessage,
    Logits,
    Profile,
    States,
    StepInput,
)
from gennode.errors import LocalError
from gennode.wire.ids import ModelId, Span
from gennode.wire.manifest import Manifest, ModelShape

TOY_DIM = 8
TOY_VOCAB = 97
TOY_MAX_POSITIONS = 4096  # as a small real model

_PRIME = 127  # products of numbers that are not 0 are not 0 modulo a prime
_DIGITS = TOY_DIM - 1
_ROLLED = np.arange(-1, _DIGITS - 1) % _DIGITS  # quicker than np.roll for single rows
_WEIGHTS_PERIOD = _PRIME - 1
_WEIGHTS = 1 + np.arange(_WEIGHTS_PERIOD, dtype=np.int64)[:, None] * 31 % _WEIGHTS_PERIOD
_END, _BEGIN, _FIRST_CHARACTER = 0, 1, 2
_FIRST_CODE, _LAST_CODE = 32, 126  # printable ASCII: one token per character
_UNKNOWN = ord("?")
_LOGIT_STEP = 0.25  # enough spread for a sampler at temperature 1 to vary its choice
_LAYOUT = "toy"
_HASH_FACTOR, _HASH_PRIME = 131, 1_000_003

Numbers = npt.NDArray[np.int64]


def toy_manifest(layers: int, *, version: int = 0) -> Manifest:
    """The manifest of a toy of so many layers: no files, all in the shape.

    Each version computes something else in every layer; `ffn_dim`, which a toy has no use for,
    tells which it is.
    """
    shape = ModelShape(
        architecture="Toy",
        layers=layers,
        dim=TOY_DIM,
        heads=1,
        kv_heads=1,
        head_dim=TOY_DIM,
        ffn_dim=TOY_DIM + version,
        vocab=TOY_VOCAB,
        max_positions=TOY_MAX_POSITIONS,
    )
    return Manifest(shape, ())


def _to_numbers(states: States) -> Numbers:
    """The numbers that states stand for; whatever a liar sends has some value."""
    digits = states[:, :_DIGITS]
    if not np.isfinite(digits).all():
        digits = np.nan_to_num(digits, nan=0.0, posinf=0.0, neginf=0.0)
    whole = np.rint(np.fmod(digits, np.float32(_PRIME))).astype(np.int64)
    return (whole + _PRIME // 2) % _PRIME


def _to_states(numbers: Numbers) -> States:
    states = np.full((len(numbers), TOY_DIM), float(_PRIME), dtype=np.float32)
    states[:, :_DIGITS] = numbers - _PRIME // 2
    return states


@dataclass
class _Sequence:
    span: Span
    max_positions: int
    length: int = 0
    sums: dict[int, Numbers] = field(default_factory=dict)
    """Per layer, the running sum that stands for attention, [max_positions + 1, digits]."""

    def room(self, layer: int, position: int, end: int) -> Numbers:
        """A layer's sums with room up to `end`; those up to `position` stay."""
        sums = self.sums.get(layer)
        if sums is None or len(sums) <= end:
            wider = np.zeros((min(2 * end, self.max_positions) + 1, _DIGITS), dtype=np.int64)
            if sums is not None:
                wider[: position + 1] = sums[: position + 1]
            sums = self.sums[layer] = wider
        return sums


def _first(source: _Sequence, positions: int) -> _Sequence:
    """A copy of the first positions."""
    check_truncate(positions, source.length)
    sums = {layer: sums[: positions + 1].copy() for layer, sums in source.sums.items()}
    return _Sequence(source.span, source.max_positions, positions, sums)


class ToyShard:
    """A ShardEngine that takes microseconds; the times it claims are arguments."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        layer_time_s: float = 1e-3,
        load_time_s: float = 1e-2,
        further_time_s: float | None = None,
    ) -> None:
        """`further_time_s` None: a further token takes as long as the first."""
        self._manifest = manifest
        self._layer_time_s = layer_time_s
        self._load_time_s = load_time_s
        self._further_time_s = layer_time_s if further_time_s is None else further_time_s
        self._loaded: frozenset[int] = frozenset()
        self._sequences: dict[Hashable, _Sequence] = {}
        self._kept: dict[int, _Sequence] = {}
        self._last_kept = 0

    @property
    def model(self) -> ModelId:
        """Which toy this is."""
        return self._manifest.model

    @property
    def dim(self) -> int:
        """Width of the states."""
        return TOY_DIM

    def spans(self) -> tuple[Span, ...]:
        """The layers that are loaded, as sorted, maximal, disjoint spans."""
        return maximal_spans(self._loaded)

    def load(self, span: Span, progress: Callable[[int, int], None] | None = None) -> None:
        """Have the layers of `span` from now on; `progress` gets (layers done, in all)."""
        check_span(span, self._manifest.shape.layers)
        self._loaded |= frozenset(range(span.start, span.end))
        if progress is not None:
            progress(span.layers, span.layers)

    def unload(self, span: Span) -> None:
        """Have the layers of `span` no longer."""
        spans = (each.span for each in self._sequences.values())
        check_unload(span, self._manifest.shape.layers, spans)
        self._loaded -= frozenset(range(span.start, span.end))

    def open(self, sequence: Hashable, span: Span, max_positions: int) -> None:
        """Begin a sequence over loaded layers, or empty it if it exists already."""
        check_open(span, self.spans(), max_positions)
        self._sequences[sequence] = _Sequence(span, max_positions)

    def length(self, sequence: Hashable) -> int:
        """Positions cached so far."""
        return self._known(sequence).length

    def truncate(self, sequence: Hashable, length: int) -> None:
        """Forget all cached positions from `length` on."""
        known = self._known(sequence)
        check_truncate(length, known.length)
        known.length = length

    def close(self, sequence: Hashable) -> None:
        """End a sequence. Idempotent."""
        self._sequences.pop(sequence, None)

    def reread(self, path: Path) -> None:
        """A toy has no files."""
        raise LocalError(f"a toy can't be read from {path}")

    def cache_use(self) -> CacheUse:
        """Eight bytes for each number; there is no limit."""
        held = (sums for each in self._sequences.values() for sums in each.sums.values())
        return CacheUse(sum(sums.nbytes for sums in held), 1 << 40)

    def keep(self, sequence: Hashable, positions: int) -> int | None:
        """Hold the first `positions` of a sequence after it has ended."""
        self._last_kept += 1
        self._kept[self._last_kept] = _first(self._known(sequence), positions)
        return self._last_kept

    def adopt(self, sequence: Hashable, kept: int) -> None:
        """Begin an empty sequence with what was kept."""
        known, source = self._known(sequence), self._kept[kept]
        if known.length or known.span != source.span:
            raise LocalError("only an empty sequence over the same span can adopt")
        known.sums = _first(source, source.length).sums
        known.length = source.length

    def forget(self, kept: int) -> None:
        """Hold it no longer. Idempotent."""
        self._kept.pop(kept, None)

    def cache_position_bytes(self, span: Span) -> int:
        """Eight bytes for each number of the sums."""
        return span.layers * _DIGITS * 8

    def export(self, sequence: Hashable, start: int, end: int) -> CachePart:
        """The sums of each layer in order."""
        known = self._known(sequence)
        check_export(start, end, known.length)
        sums = [
            known.sums[layer][start + 1 : end + 1] for layer in range(*known.span) if known.sums
        ]
        return CachePart(_LAYOUT, known.span, start, end, np.array(sums, "<i8").tobytes())

    def restore(self, sequence: Hashable, part: CachePart) -> None:
        """Lengthen a sequence by what another toy exported; RemoteError unless it fits."""
        known = self._known(sequence)
        check_part(part, _LAYOUT, known.span, known, self.cache_position_bytes(known.span))
        sums = np.frombuffer(part.payload, "<i8").reshape(known.span.layers, -1, _DIGITS)
        for layer, rows in zip(range(*known.span), sums, strict=True):
            known.room(layer, part.start, part.end)[part.start + 1 : part.end + 1] = rows % _PRIME
        known.length = part.end

    def step(self, batch: Sequence[StepInput]) -> list[States]:
        """Push states through the layers of each one's span; returns new arrays, same shapes."""
        check_batch(batch, self._known, TOY_DIM)
        return [self._step(item) for item in batch]

    def _step(self, item: StepInput) -> States:
        known = self._known(item.sequence)
        numbers = _to_numbers(item.states)
        for layer in range(known.span.start, known.span.end):
            numbers = self._layer(known, layer, item.position, numbers)
        known.length = item.position + len(numbers)
        return _to_states(numbers)

    def _layer(self, known: _Sequence, layer: int, position: int, numbers: Numbers) -> Numbers:
        """x at t becomes x (layer + 2 + s) + rolled s + layer + version, s the weighted sum up
        to t."""
        end = position + len(numbers)
        sums = known.room(layer, position, end)
        attended = sums[position + 1 : end + 1]
        weights = _WEIGHTS.take(range(position, end), axis=0, mode="wrap")
        np.multiply(numbers + 1, weights, out=attended)
        attended[0] += sums[position]
        if len(attended) > 1:
            np.add.accumulate(attended, out=attended)
        attended %= _PRIME
        mixed = attended + (layer + 2)
        mixed *= numbers
        mixed += attended.take(_ROLLED, axis=1)
        mixed += layer + self._manifest.shape.ffn_dim - TOY_DIM
        mixed %= _PRIME
        return mixed

    def _known(self, sequence: Hashable) -> _Sequence:
        known = self._sequences.get(sequence)
        if known is None:
            raise LocalError(f"sequence {sequence!r} is not open")
        return known

    def profile(self) -> Profile:
        """The times that this toy was told to claim."""
        return Profile(
            model=self.model,
            compute_class="toy",
            layer_time_s=self._layer_time_s,
            load_time_s=self._load_time_s,
            further_time_s=self._further_time_s,
        )


class ToyOwner:
    """An OwnerEngine whose tokens are characters.

    One answer token in `end_every` ends the answer, by chance of the states; with None no
    answer ends before its limit.
    """

    def __init__(self, manifest: Manifest, *, end_every: int | None = None) -> None:
        if end_every is not None and end_every < 1:
            raise LocalError(f"every {end_every}th token can't be an end")
        self._manifest = manifest
        self._end_every = end_every

    @property
    def model(self) -> ModelId:
        """Which toy this is."""
        return self._manifest.model

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return TOY_DIM

    @property
    def layers(self) -> int:
        """How many layers lie between `embed` and `logits`."""
        return self._manifest.shape.layers

    @property
    def max_positions(self) -> int:
        """The longest sequence."""
        return TOY_MAX_POSITIONS

    def tokenize(self, text: str) -> list[int]:
        """A begin token and one per character, `?` for those outside printable ASCII."""
        codes = (ord(character) for character in text)
        known = (code if _FIRST_CODE <= code <= _LAST_CODE else _UNKNOWN for code in codes)
        return [_BEGIN, *(code - _FIRST_CODE + _FIRST_CHARACTER for code in known)]

    def chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Each message after its role, and the answer's role."""
        said = [f"{message.role}: {message.content} " for message in messages]
        return self.tokenize("".join(said) + "assistant: ")

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The characters, begin and end left out."""
        characters = (token for token in tokens if token >= _FIRST_CHARACTER)
        return "".join(chr(token - _FIRST_CHARACTER + _FIRST_CODE) for token in characters)

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return token == _END

    def embed(self, tokens: Sequence[int], position: int) -> States:
        """Input states of the first layer, [len(tokens), 8]; the same at all positions."""
        ids = np.array(tokens, dtype=np.int64)[:, None]
        return _to_states((ids * (np.arange(_DIGITS) + 1) + 1) % _PRIME)

    def logits(self, state: States) -> Logits:
        """Logits that fall off from a token which depends on every number; [97].

        A state that holds anything but finite numbers gives NaN, as a real model's would.
        """
        row = state.reshape(1, TOY_DIM)
        if not np.isfinite(row).all():
            return np.full(TOY_VOCAB, np.nan, dtype=np.float32)
        value = 0
        for number in _to_numbers(row)[0].tolist():
            value = (value * _HASH_FACTOR + number + 1) % _HASH_PRIME
        characters = TOY_VOCAB - _FIRST_CHARACTER
        favourite = _FIRST_CHARACTER + value % characters
        if self._end_every is not None and value // characters % self._end_every == 0:
            favourite = _END
        logits = -_LOGIT_STEP * np.abs(np.arange(TOY_VOCAB) - favourite)
        logits[[_BEGIN] if self._end_every else [_BEGIN, _END]] = -1e4  # never drawn
        return logits.astype(np.float32)
