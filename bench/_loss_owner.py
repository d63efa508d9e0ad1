"""The owner of bench/loss.py, on its own host: it asks what it is told to, and tells the times.

    python -m bench._loss_owner MODEL BOOTSTRAP…

prints a line of JSON when it knows workers for every layer, and one for each line of input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing
from typing import Any

from gennode.engine.sample import Sampling
from gennode.node.ask import Asker, asking
from gennode.node.prompt import answer


async def serve(model: str, bootstrap: list[str]) -> None:
    """Answer questions until standard input ends."""
    async with asking(model, bootstrap) as asker:
        print(json.dumps({"model": asker.owner.model}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await ask(asker, **json.loads(line))), flush=True)


async def ask(asker: Asker, prompt: str, tokens: int) -> dict[str, Any]:
    """The times of an answer's tokens since it was asked, and why its route was repaired."""
    asker.failovers.clear()
    start_s, times_s, given = time.perf_counter(), [], []
    stream = answer(prompt, asker.owner, asker.node, Sampling(max_tokens=tokens))
    async with aclosing(stream):
        async for token in stream:
            times_s.append(time.perf_counter() - start_s)
            given.append(token)
    repairs = [failover.reason for failover in asker.failovers]
    return {"times_s": times_s, "tokens": given, "repairs": repairs}


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2:]))
