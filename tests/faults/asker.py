"""A program that owns prompts and obeys a test: one line of JSON in, or out, for each thing.

`python -m tests.faults.asker ADDRESS…` says {"kind": "ready"} and then takes

    {"ask": PROMPT, "max_tokens": N, "pause_at": [TOKENS, …]}   one answer at a time
    {"go": true}                                                after a pause
    {"known": true}                                             which workers it knows
    {"waiting": true}                                           for how long it awaits a token

A pause holds the owner's next step back while all else goes on, so that a test can hurt the
swarm at a known token. It ends when its input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from typing import Any

from gennode.engine.sample import Sampling
from gennode.errors import GennodeError
from gennode.node.ask import Asker, asking
from gennode.node.prompt import answer
from tests.faults.stage import MODEL


def tell(kind: str, **facts: Any) -> None:
    """One line for the test."""
    print(json.dumps({"kind": kind, **facts}), flush=True)


class Session:
    """Answers one prompt after another."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self.may_go = asyncio.Event()
        self.last_s = 0.0
        """When it began to wait for the token that it waits for."""

    async def ask(self, prompt: str, max_tokens: int, pause_at: list[int]) -> None:
        """Answer, and tell how it came about; or tell the error."""
        self._asker.failovers.clear()
        try:
            tokens, gaps_s = await self._tokens(prompt, max_tokens, pause_at)
        except GennodeError as error:
            tell("error", code=error.exit_code, words=str(error), hint=error.hint)
            return
        repairs = [[failover.reason, len(failover.lost)] for failover in self._asker.failovers]
        tell("answer", tokens=tokens, longest_gap_s=max(gaps_s, default=0.0), repairs=repairs)

    async def _tokens(
        self, prompt: str, max_tokens: int, pause_at: list[int]
    ) -> tuple[list[int], list[float]]:
        asker = self._asker
        tokens: list[int] = []
        gaps_s: list[float] = []
        sampling = Sampling(max_tokens=max_tokens)
        async with aclosing(answer(prompt, asker.owner, asker.node, sampling)) as stream:
            self.last_s = time.monotonic()
            async for token in stream:
                if tokens:
                    gaps_s.append(time.monotonic() - self.last_s)
                tokens.append(token)
                asker.tokens_given = len(tokens)
                if len(tokens) in pause_at:
                    self.may_go.clear()
                    path = [(hop.peer, tuple(hop.span)) for hop in self._path()]
                    tell("paused", path=path, tokens=len(tokens))
                    await self.may_go.wait()
                self.last_s = time.monotonic()
        return tokens, gaps_s

    def _path(self) -> Any:
        failovers = self._asker.failovers
        return failovers[-1].after if failovers else self._asker.route


async def obey(asker: Asker) -> None:
    """Do what comes in until nothing more does."""
    session = Session(asker)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tell("ready")
    async with asyncio.TaskGroup() as tasks:
        asking_now: asyncio.Task[None] | None = None
        while line := await reader.readline():
            match json.loads(line):
                case {"ask": prompt, "max_tokens": max_tokens, "pause_at": pause_at}:
                    asking_now = tasks.create_task(session.ask(prompt, max_tokens, pause_at))
                case {"go": True}:
                    session.may_go.set()
                case {"known": True}:
                    hosts = [one for one in asker.node.live() if one.hosting]
                    tell("known", begun_ms={one.peer: one.instance for one in hosts})
                case {"waiting": True}:
                    tell("waiting", seconds=time.monotonic() - session.last_s)
                case other:
                    raise ValueError(f"{other} is no request")
        if asking_now is not None:
            asking_now.cancel()


async def main(addresses: list[str]) -> None:
    """Meet the swarm, and obey."""
    async with asking(MODEL, addresses) as asker:
        await obey(asker)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
