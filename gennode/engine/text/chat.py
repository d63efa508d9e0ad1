"""A conversation as the text that a checkpoint was trained on, by the checkpoint's template."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from gennode.engine.checkpoint.layout import MAX_CONFIG_BYTES
from gennode.engine.seam import ChatMessage
from gennode.engine.text.tokenizer import MAX_TEXT_CHARACTERS, ModelTokenizer
from gennode.errors import LocalError, ModelError, UsageError

TEMPLATE = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
MAX_TEMPLATE_CHARACTERS = 256 * 1024  # ten times the longest that is widely used
MAX_MESSAGES = 4096
MAX_ROLE_CHARACTERS = 64

# Its processor time is limited by itself; this is for a machine that gives it none.
RENDER_TIMEOUT_S = 20.0

_MAX_REPLY_BYTES = 12 * MAX_TEXT_CHARACTERS + 1024  # JSON takes 12 for the rarest character
_SCRIPT = Path(__file__).with_name("render.py")
_NEEDED_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # some Pythons don't start without
_DAMAGED_HINT = "download the model again"


class _Named(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(max_length=256)]
    template: str


class _Special(msgspec.Struct):
    """A special token with settings for its surroundings, which have no use here."""

    content: str


_Token = str | _Special | None


class _TokenizerConfig(msgspec.Struct):
    """The keys that templates need; a template sees each token under the key's name."""

    chat_template: str | list[_Named] | None = None
    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    sep_token: _Token = None
    pad_token: _Token = None
    cls_token: _Token = None
    mask_token: _Token = None


class _Reply(msgspec.Struct):
    text: str | None = None
    error: str = ""


@dataclass(frozen=True)
class ChatTemplate:
    """A template and the special tokens that it writes by name, such as `bos_token`."""

    source: str
    special: Mapping[str, str]

    def render(self, messages: Sequence[ChatMessage], *, now: datetime | None = None) -> str:
        """The text that ends where the answer begins; `now` for templates that state the date.

        Takes a tenth of a second, for it starts a process. Raises ModelError if the template is
        wrong, harmful, or refuses the conversation, UsageError if that has too many messages.
        """
        check_messages(messages)
        request = {
            "template": self.source,
            "now": (now or datetime.now()).isoformat(),  # noqa: DTZ005 - people's own time
            "max_characters": MAX_TEXT_CHARACTERS,
            "variables": {
                **self.special,
                "messages": [{"role": one.role, "content": one.content} for one in messages],
                "add_generation_prompt": True,
            },
        }
        reply = _run(msgspec.json.encode(request))
        if reply.text is None or len(reply.text) > MAX_TEXT_CHARACTERS:
            raise _failed(reply.error or "it writes too much")
        return reply.text


class Chat:
    """A model folder's conversations: what an OwnerEngine's `chat` needs."""

    def __init__(self, folder: Path, tokenizer: ModelTokenizer) -> None:
        """Nothing is read yet, so that a spoilt template stops nobody who does not use it."""
        self._folder = folder
        self._tokenizer = tokenizer

    def tokens(self, messages: Sequence[ChatMessage]) -> list[int]:
        """As `OwnerEngine.chat`; no token is added to those that the template writes."""
        template = read_template(self._folder)
        if template is None:
            raise ModelError("the model has no chat template", hint="ask it a plain prompt")
        return self._tokenizer.encode(template.render(messages), bare=True)


def check_messages(messages: Sequence[ChatMessage]) -> None:
    """UsageError unless there is something to render, within bounds, that is text."""
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise UsageError(f"a chat of {len(messages)} messages can't be asked",
                         hint=f"give 1 to {MAX_MESSAGES}")  # fmt: skip
    if any(not 1 <= len(message.role) <= MAX_ROLE_CHARACTERS for message in messages):
        raise UsageError("a message's role is empty or too long",
                         hint="use system, user or assistant")  # fmt: skip
    if sum(len(message.content) for message in messages) > MAX_TEXT_CHARACTERS:
        raise UsageError("the chat is too long",
                         hint=f"keep it below {MAX_TEXT_CHARACTERS} characters")  # fmt: skip
    try:
        for message in messages:
            (message.role + message.content).encode()
    except UnicodeEncodeError as error:
        raise UsageError("a message is not valid Unicode text",
                         hint="remove its lone surrogates") from error  # fmt: skip


def read_template(folder: Path) -> ChatTemplate | None:
    """The template of a model folder, None if it has none. ModelError if a file is damaged."""
    config = _TokenizerConfig()
    data = _read(folder / TOKENIZER_CONFIG)
    if data is not None:
        try:
            config = msgspec.json.decode(data, type=_TokenizerConfig)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ModelError(f"{TOKENIZER_CONFIG} is malformed: {error}",
                             hint=_DAMAGED_HINT) from error  # fmt: skip
    source = _source(config, _read(folder / TEMPLATE))
    if source is None:
        return None
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise ModelError(f"the chat template has {len(source)} characters, over the limit of "
                         f"{MAX_TEMPLATE_CHARACTERS}", hint="don't use this model")  # fmt: skip
    special = {}
    for key in config.__struct_fields__[1:]:
        token = getattr(config, key)
        if token is not None:
            special[key] = token if isinstance(token, str) else token.content
    return ChatTemplate(source, special)


def _source(config: _TokenizerConfig, file: bytes | None) -> str | None:
    """The file's template counts before the config's, and of several the default one."""
    if file is not None:
        try:
            return file.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{TEMPLATE} is no text", hint=_DAMAGED_HINT) from error
    if isinstance(config.chat_template, list):
        named = {each.name: each.template for each in config.chat_template}
        return named.get("default")
    return config.chat_template


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}",
                         hint="check that you may read it") from error  # fmt: skip
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelError(f"{path.name} is over the limit of {MAX_CONFIG_BYTES} bytes",
                         hint=_DAMAGED_HINT)  # fmt: skip
    return data


def _run(request: bytes) -> _Reply:
    """What the script answers, however it ends."""
    with subprocess.Popen(
        [sys.executable, "-I", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={name: os.environ[name] for name in _NEEDED_VARIABLES if name in os.environ},
        cwd="/",
    ) as child:
        guard = threading.Timer(RENDER_TIMEOUT_S, child.kill)
        guard.start()
        try:
            data = _converse(child, request)
        finally:
            child.kill()  # if it says too much, or we were interrupted
            guard.cancel()
    if child.returncode in (-signal.SIGPROF, -signal.SIGKILL) and not data:
        raise _failed("it takes too long")
    try:
        return msgspec.json.decode(data, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _failed("it breaks the interpreter") from error


def _converse(child: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The script reads all before it writes, so neither waits for the other."""
    if child.stdin is None or child.stdout is None:
        raise LocalError("a process without its pipes")
    try:
        with child.stdin as stream:
            stream.write(request)
    except BrokenPipeError:
        return b""
    data = child.stdout.read(_MAX_REPLY_BYTES)
    child.stdout.close()
    return data


def _failed(why: str) -> ModelError:
    readable = "".join(letter if letter.isprintable() else "?" for letter in why)
    return ModelError(f"the model's chat template can't be used: {readable}",
                      hint="see what it says of the conversation, or ask without it")  # fmt: skip
