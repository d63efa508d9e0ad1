"""A swarm of one: all layers in this process, without a mesh. What a real swarm must agree with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager

from gennode.engine.seam import OwnerEngine, ShardEngine, States, StepInput
from gennode.wire.activations import codec
from gennode.wire.fields import CodecName
from gennode.wire.ids import Span


class Ready:
    """A result that is there as soon as it is asked for."""

    def __init__(self, states: States) -> None:
        self._states = states

    def __await__(self) -> Generator[None, None, States]:
        yield from ()
        return self._states


class Alone:
    """Loaded layers of one engine, cut into spans; satisfies `prompt.Swarm` and `.Pipeline`.

    With a codec, states pass through it before the first span and after each, as on a route.
    One answer at a time.
    """

    def __init__(
        self, engine: ShardEngine, spans: Sequence[Span], codec_name: CodecName | None = None
    ) -> None:
        self._engine = engine
        self._spans = spans
        self._codec = codec(codec_name) if codec_name else None

    @asynccontextmanager
    async def open(self, owner: OwnerEngine, *, max_positions: int) -> AsyncIterator[Alone]:
        """Begin a sequence over all spans."""
        for span in self._spans:
            self._engine.open(span, span, max_positions)
        try:
            yield self
        finally:
            for span in self._spans:
                self._engine.close(span)

    def step(self, position: int, states: States, *, reply_rows: int) -> Ready:
        """Compute at once."""
        states = self._wire(states)
        for span in self._spans:
            [states] = self._engine.step([StepInput(span, position, states)])
            states = self._wire(states)
        return Ready(states[len(states) - reply_rows :])

    def _wire(self, states: States) -> States:
        if self._codec is None:
            return states
        return self._codec.decode(self._codec.encode(states), states.shape[1])
