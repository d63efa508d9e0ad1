"""The kinds of fields that messages are made of, each bounded; and text that is safe to print."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gennode.wire.ids import ModelId, SessionId

MAX_TEXT = 256

CodecName = Literal[
    "raw",
    "lossless",
    "bf16",
    "bf16-planes",
    "int8",
    "int8-outlier",
    "int6-outlier",
    "fp8",
    "mxfp8",
    "mxfp6",
    "mxfp4",
]
Reach = Literal["unknown", "direct", "relayed"]

# Printable ASCII: a peer's text ends on somebody's terminal.
_PRINTABLE = r"^[ -~]*\Z"
Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT, pattern=_PRINTABLE)]
Address = Annotated[str, msgspec.Meta(max_length=256, pattern=_PRINTABLE)]
Counter = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Model = Annotated[ModelId, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Session = Annotated[SessionId, msgspec.Meta(min_length=16, max_length=16)]


def as_text(text: str) -> str:
    """The first line of a text as a message may carry it: short and printable."""
    line = text.splitlines()[0] if text else ""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in line)[:MAX_TEXT]
