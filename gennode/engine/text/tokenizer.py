"""A checkpoint's tokenizer.json: text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tokenizers import Tokenizer

from gennode.engine.checkpoint.layout import TOKENIZER
from gennode.errors import ModelError, UsageError

MAX_TEXT_CHARACTERS = 4 * 1024 * 1024  # four for each of the 2^20 positions a session may have


class ModelTokenizer:
    """The tokenizer of a model folder, bounded in what it takes."""

    def __init__(self, folder: Path, vocab: int) -> None:
        """Load it; ModelError if it is damaged, or has more than the weights' `vocab` tokens."""
        with _TokenizerErrors():
            self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
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
        if kind is Exception:
            raise ModelError(
                f"{TOKENIZER} is damaged: {error}", hint="download that file again"
            ) from error
