"""A model's config.json: which architecture it is of, and that it can be used here."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gennode.engine.checkpoint.llama_config import ARCHITECTURE, LlamaConfig, parse_llama
from gennode.errors import ModelError

_Token = Annotated[int, msgspec.Meta(ge=0, le=1 << 22)]
_EndTokens = _Token | Annotated[list[_Token], msgspec.Meta(max_length=256)] | None


class _Architectures(msgspec.Struct):
    """Read first: another architecture's config would fail on keys that mean nothing to us."""

    architectures: tuple[str, ...] = ()
    model_type: str = ""


def parse_config(data: bytes, file: str) -> LlamaConfig:
    """A checked config from the bytes of `file`; ModelError names what is wrong."""
    try:
        named = msgspec.json.decode(data, type=_Architectures)
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(
            f"{file} is not a model config we can use: {error}",
            hint="download the model again, or use a Llama model in Hugging Face format",
        ) from error
    if named.architectures != (ARCHITECTURE,):
        found = ", ".join(named.architectures) or named.model_type or "no architecture"
        raise ModelError(f"{file} describes {found[:128]}, not {ARCHITECTURE}",
                         hint="use a Llama model in Hugging Face format")  # fmt: skip
    return parse_llama(data, file)


class _Generation(msgspec.Struct):
    eos_token_id: _EndTokens = None


def parse_end_tokens(data: bytes, file: str) -> _EndTokens:
    """`eos_token_id` of a generation_config.json; ModelError if the file is malformed."""
    try:
        return msgspec.json.decode(data, type=_Generation).eos_token_id
    except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{file} is malformed: {error}", hint="download it again") from error
