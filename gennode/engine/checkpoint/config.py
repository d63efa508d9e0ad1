"""A model's config.json: which architecture it is of, and that it can be used here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from gennode.engine.checkpoint.any_config import AnyConfig, parse_any
from gennode.engine.checkpoint.llama_config import FAMILY, LlamaConfig, parse_llama
from gennode.engine.checkpoint.quantised import packed_shapes
from gennode.errors import ModelError
from gennode.wire.ids import Span

_Token = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
_EndTokens = _Token | Annotated[list[_Token], msgspec.Meta(max_length=256)] | None


class _Architectures(msgspec.Struct):
    """Read first: another architecture's config would fail on keys that mean nothing to us."""

    architectures: tuple[str, ...] = ()
    model_type: str = ""


ModelConfig = LlamaConfig | AnyConfig
"""What a config.json says: for the fast engine, or for the generic one."""

Shapes = Mapping[str, tuple[int, ...] | None]
"""Names of tensors and the shapes that a config promises; None where it does not say."""


def tensors_of(
    config: ModelConfig, names: Collection[str], span: Span | None, *, owner: bool
) -> Shapes:
    """The tensors of a span of layers, and of an owner.

    `names`: of all the model's tensors. A Llama's are known from its config alone, so that
    what is missing shows, and only which of its matrices are packed from `names`; another model's
    are those of `names` that belong there.
    """
    if isinstance(config, AnyConfig):
        return dict.fromkeys(config.tensors(names, span, owner=owner))
    shapes = dict(config.owner_tensors()) if owner else {}
    for layer in range(*span) if span else ():
        shapes.update(config.layer_tensors(layer))
    packing = config.quantization_config
    return shapes if packing is None else packed_shapes(packing, shapes, names)


def parse_config(data: bytes, file: str) -> ModelConfig:
    """A checked config from the bytes of `file`; ModelError names what is wrong."""
    try:
        named = msgspec.json.decode(data, type=_Architectures)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(
            f"{file} is not a model config we can use: {error}",
            hint="download the model again",
        ) from error
    if len(named.architectures) == 1 and named.architectures[0] in FAMILY:
        return parse_llama(data, file, named.architectures[0])
    return parse_any(data, file)


class _Generation(msgspec.Struct):
    eos_token_id: _EndTokens = None


def parse_end_tokens(data: bytes, file: str) -> _EndTokens:
    """`eos_token_id` of a generation_config.json; ModelError if the file is malformed."""
    try:
        return msgspec.json.decode(data, type=_Generation).eos_token_id
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{file} is malformed: {error}", hint="download it again") from error
