"""llama.cpp through the low-level binding of llama-cpp-python: the only place that calls it.

What llama.cpp takes for a bug of its caller ends the process, so that this runs in a compute
child. Only versions are taken whose structures are known to be those of the binding.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np

from gennode.engine.seam import States
from gennode.errors import LocalError, ModelError, ResourceError, UsageError

VERSIONS = ("0.3.36",)  # of llama-cpp-python; its structures change from one to the next
MAX_ROWS = 256  # in one call; scratch memory grows with it, speed hardly beyond it
_PACKAGE = "llama-cpp-python"
_OUTPUT = b"l_out-0"  # what llama.cpp calls the states after its first, and here only, layer


def is_installed() -> bool:
    """Whether the library is here, in whatever version."""
    return importlib.util.find_spec("llama_cpp") is not None


@cache
def library() -> ModuleType:
    """The binding, silenced and started. UsageError if it is missing or of another version."""
    if not is_installed():
        raise UsageError(
            "models in GGUF need llama.cpp, which is not installed",
            hint="pip install 'gennode[llama]'; it is compiled, for a quarter of an hour or so",
        )
    version = importlib.metadata.version(_PACKAGE)
    if version not in VERSIONS:
        raise UsageError(f"{_PACKAGE} {version} is not one that we know",
                         hint=f"pip install {_PACKAGE}=={VERSIONS[-1]}")  # fmt: skip
    binding: Any = importlib.import_module("llama_cpp.llama_cpp")
    binding.llama_log_set(_silencer(binding), None)
    binding.llama_backend_init()
    module: ModuleType = binding
    return module


@cache
def _silencer(binding: Any) -> Any:
    def drop(level: int, text: bytes, data: int) -> None:
        """There is a page about each layer that is loaded."""

    return binding.llama_log_callback(drop)


@cache
def _base() -> ctypes.CDLL:
    """The library below, whose calls on tensors the binding leaves out."""
    folder = Path(str(library().__file__)).parent / "lib"
    [path] = [each for each in folder.iterdir() if each.stem == "libggml-base"]
    base = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    base.ggml_get_name.argtypes, base.ggml_get_name.restype = [pointer], ctypes.c_char_p
    base.ggml_nbytes.argtypes, base.ggml_nbytes.restype = [pointer], size
    base.ggml_backend_tensor_get.argtypes = [pointer, pointer, size, size]
    base.ggml_backend_tensor_get.restype = None
    return base


class Weights:
    """One layer's weights in llama.cpp, from a file of ours that holds nothing else."""

    def __init__(self, stream: IO[bytes]) -> None:
        """`stream` is read from its start, and may be closed afterwards. Raises ModelError."""
        self._library: Any = library()
        options = self._library.llama_model_default_params()
        # Its own memory: a mapped file would be lost, or change, together with the file.
        options.load_mode = self._library.LLAMA_LOAD_MODE_NONE
        libc = ctypes.CDLL(None)
        libc.fdopen.restype, libc.fclose.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        stream.flush()
        stream.seek(0)
        handle = libc.fdopen(os.dup(stream.fileno()), b"rb")
        if not handle:
            raise ResourceError("no file handle for a layer", hint="close some programs")
        try:
            self.pointer = self._library.llama_model_load_from_file_ptr(handle, options)
        finally:
            libc.fclose(handle)
        if not self.pointer:
            raise ModelError("llama.cpp does not take a layer of this model",
                             hint="use it in Hugging Face format")  # fmt: skip

    def close(self) -> None:
        """Free them. No context may be left that uses them. Idempotent."""
        if self.pointer:
            self._library.llama_model_free(self.pointer)
            self.pointer = None


class Context:
    """The caches of `slots` sequences of `positions` each, over one layer's weights."""

    def __init__(
        self, weights: Weights, *, dim: int, slots: int, positions: int, threads: int
    ) -> None:
        """Takes its memory at once. Raises ResourceError."""
        self._library: Any = library()
        self._dim = dim
        self._out = np.empty((MAX_ROWS, dim), np.float32)
        self._expected_bytes = 0
        self._taken = False
        options = self._library.llama_context_default_params()
        options.n_ctx = slots * positions
        options.n_batch = options.n_ubatch = MAX_ROWS
        options.n_seq_max = slots
        options.n_threads = options.n_threads_batch = threads
        self._callback = self._library.ggml_backend_sched_eval_callback(self._take)
        options.cb_eval = self._callback
        self._pointer = self._library.llama_init_from_model(weights.pointer, options)
        if not self._pointer:
            raise ResourceError("no memory for the caches of llama.cpp",
                                hint="serve fewer sessions or layers")  # fmt: skip
        self._memory = self._library.llama_get_memory(self._pointer)
        self._batch = self._library.llama_batch_init(MAX_ROWS, dim, 1)

    def step(self, states: States, places: Sequence[tuple[int, int]]) -> States:
        """The layer over rows at (slot, position), at most MAX_ROWS; new rows, in that order.

        Rows are of one slot, or one of each of some neighbouring slots: others llama.cpp would
        compute in an order of its own. Raises ResourceError, LocalError.
        """
        rows = len(states)
        batch = self._batch
        batch.n_tokens = rows
        ctypes.memmove(batch.embd, np.ascontiguousarray(states).ctypes.data, states.nbytes)
        for row, (slot, position) in enumerate(places):
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = slot
            batch.logits[row] = True  # else it leaves out most of the last layer
        self._expected_bytes, self._taken = states.nbytes, False
        result = self._library.llama_decode(self._pointer, batch)
        self._library.llama_synchronize(self._pointer)
        if result == 1:
            raise ResourceError("llama.cpp has no room for more positions",
                                hint="serve fewer sessions")  # fmt: skip
        if result != 0 or not self._taken:
            raise LocalError(f"llama.cpp failed at {rows} rows: {result}")
        return self._out[:rows].copy()

    def truncate(self, slot: int, position: int) -> None:
        """Forget what a slot holds from `position` on."""
        if not self._library.llama_memory_seq_rm(self._memory, slot, position, -1):
            raise LocalError(f"llama.cpp can't cut slot {slot} to {position}")

    def save(self, slot: int) -> bytes:
        """A slot's cache, for another context of this process over the same weights."""
        size = self._library.llama_state_seq_get_size(self._pointer, slot)
        data = (ctypes.c_uint8 * size)()
        written = self._library.llama_state_seq_get_data(self._pointer, data, size, slot)
        return bytes(data)[:written]

    def restore(self, slot: int, saved: bytes) -> None:
        """Fill an empty slot with what `save` gave. It must not come from a peer."""
        data = (ctypes.c_uint8 * len(saved)).from_buffer_copy(saved)
        taken = self._library.llama_state_seq_set_data(self._pointer, data, len(saved), slot)
        if taken != len(saved):
            raise LocalError(f"llama.cpp took {taken} of {len(saved)} bytes of a cache")

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._pointer:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._pointer)
            self._pointer = None

    def _take(self, tensor: int, ask: bool, data: int | None) -> bool:
        """Called before (`ask`: is this tensor wanted?) and after a tensor is computed."""
        base = _base()
        wanted = base.ggml_get_name(tensor) == _OUTPUT
        if wanted and not ask and base.ggml_nbytes(tensor) == self._expected_bytes:
            base.ggml_backend_tensor_get(tensor, self._out.ctypes.data, 0, self._expected_bytes)
            self._taken = True
        return wanted or not ask
