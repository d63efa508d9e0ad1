"""What holds a compute process here, and what its device can do: one is started, and asked."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from gennode.engine.child.process import ComputeProcess
from gennode.node.doctor.facts import Compute
from gennode.node.progress import ShowProgress, unwatched


async def examine_compute(device: str, progress: ShowProgress = unwatched) -> Compute:
    """Start a compute process as a node would, for a folder without a model, and measure.

    Some two seconds on a CPU, and as many for it to start. Raises DeviceError, ResourceError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gennode-") as folder,
        progress("measuring its device", unit="steps") as report,
    ):
        process = ComputeProcess(Path(folder), device)
        try:
            measured = await asyncio.to_thread(process.examine, device, report)
            return Compute(process.jail(), measured)
        finally:
            process.end()
