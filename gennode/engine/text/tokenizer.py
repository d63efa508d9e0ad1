"""A checkpoint's tokenizer.json: text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec
from tokenizers import Tokenizer

from gennode.engine.checkpoint.layout import TOKENIZER
from gennode.errors import ModelError, UsageError

MAX_TEXT_CHARACTERS = 4 * 1024 * 1024  # four for each of the 2^20 positions a session may have

MAX_GROWTH = 64  # of text that is normalised; published tokenizers reach 3, by a longer space


class _Rule(msgspec.Struct):
    """A rule by which text is changed before it is cut; what others than these state is small."""

    content: str = ""
    prepend: str = ""
    normalizers: list[_Rule] = []


class _Rules(msgspec.Struct):
    normalizer: _Rule | None = None


def _growth(data: bytes) -> int:
    """By how much the normaliser can lengthen a text at most, as a product over its rules."""
    try:
        rules = msgspec.json.decode(data, type=_Rules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelError(f"{TOKENIZER} is damaged: {error}",
                         hint="download that file again") from error  # fmt: skip
    growth, left = 1, [rules.normalizer] if rules.normalizer else []
    while left and growth <= MAX_GROWTH:
        rule = left.pop()
        left += rule.normalizers
        growth *= max(1, len(rule.content), len(rule.prepend))
    return growth


class ModelTokenizer:
    """The tokenizer of a model folder, bounded in what it takes."""

    def __init__(self, folder: Path, vocab: int) -> None:
        """Load it; ModelError if it is damaged, or has more than the weights' `vocab` tokens."""
        with _TokenizerErrors():
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        if _growth((folder / TOKENIZER).read_bytes()) > MAX_GROWTH:
            raise ModelError(f"{TOKENIZER} makes text more than {MAX_GROWTH} times as long",
                             hint="don't use this model")  # fmt: skip
        # A saved tokenizer may carry batch settings; a prompt is neither padded nor cut.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > vocab:
            raise ModelError(
                f"{TOKENIZER} has {size} tokens, the weights {vocab}",
                hint=f"take {TOKENIZER} and the weights from the same model",
            )

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """Token ids; the special ones that the model expects are added unless `bare`.

        Special tokens that are written out in the text count as such. UsageError if the text is
        too long, or no text.
        """
        if len(text) > MAX_TEXT_CHARACTERS:
            raise UsageError(f"a prompt of {len(text)} characters is too long",
                             hint=f"keep it below {MAX_TEXT_CHARACTERS}")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError("the prompt is not valid Unicode text",
                             hint="remove its lone surrogates") from error  # fmt: skip
        with _TokenizerErrors():
            return list(self._tokenizer.encode(text, add_special_tokens=not bare).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))


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
        # Its panics derive from BaseException alone, and have no public name.
        if kind is Exception or (kind is not None and kind.__name__ == "PanicException"):
            raise ModelError(
                f"{TOKENIZER} is damaged: {error}", hint="download that file again"
            ) from error
