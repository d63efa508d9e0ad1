"""llama.cpp with states in and states out, through the low-level binding of llama-cpp-python."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

States = npt.NDArray[np.float32]

llama: Any = importlib.import_module("llama_cpp.llama_cpp")  # not everybody has it

_OUTPUT = b"l_out-"  # what llama.cpp calls the sum after a layer


def _drop(level: int, text: bytes, data: int) -> None:
    """There is a page about each model that is loaded."""


_DROP = llama.llama_log_callback(_drop)


def be_silent() -> None:
    """Have llama.cpp log nothing in this process."""
    llama.llama_log_set(_DROP, None)


class LlamaCpp:
    """A GGUF's layers in llama.cpp, with room for some sequences of `positions` each.

    `tap`: read the last layer's states at each step, which slows it down a little.
    """

    def __init__(
        self,
        file: Path,
        *,
        layers: int,
        dim: int,
        sequences: int,
        positions: int,
        threads: int,
        tap: bool,
    ) -> None:
        be_silent()
        llama.llama_backend_init()
        self._dim = dim
        self._last = _OUTPUT + str(layers - 1).encode()
        self._taken: States | None = None
        self._model = llama.llama_model_load_from_file(
            str(file).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {file}")
        options = llama.llama_context_default_params()
        options.n_ctx = sequences * positions
        options.n_batch = options.n_ubatch = max(positions, sequences)
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = threads
        if tap:
            self._callback = llama.ggml_backend_sched_eval_callback(self._take)
            options.cb_eval = self._callback
        self._context = llama.llama_init_from_model(self._model, options)
        if not self._context:
            raise RuntimeError("llama.cpp can't make a context")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(options.n_batch, dim, 1)

    def truncate(self, sequence: int, position: int) -> None:
        """Forget what is cached from `position` on."""
        if not llama.llama_memory_seq_rm(self._memory, sequence, position, -1):
            raise RuntimeError("llama.cpp can't cut a sequence")

    def step(self, states: States, places: Sequence[tuple[int, int]]) -> States | None:
        """Rows of states at (sequence, position) each; the last layer's, if they are tapped."""
        batch = self._batch
        batch.n_tokens = len(states)
        ctypes.memmove(batch.embd, states.ctypes.data, states.nbytes)
        for row, (sequence, position) in enumerate(places):
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = True  # else it leaves out most of the last layer
        result = llama.llama_decode(self._context, batch)
        llama.llama_synchronize(self._context)
        if result != 0:
            raise RuntimeError(f"llama_decode gave {result}")
        return self._taken

    def close(self) -> None:
        """Free the model."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._context)
        llama.llama_model_free(self._model)

    def _take(self, tensor: int, ask: bool, data: int) -> bool:
        if _BASE.ggml_get_name(tensor) != self._last:
            return not ask
        if not ask:
            rows = _BASE.ggml_nelements(tensor) // self._dim
            self._taken = np.empty((rows, self._dim), np.float32)
            _BASE.ggml_backend_tensor_get(tensor, self._taken.ctypes.data, 0, self._taken.nbytes)
        return True


def _load_base() -> ctypes.CDLL:
    base = ctypes.CDLL(str(Path(llama.__file__).parent / "lib" / "libggml-base.so"))
    base.ggml_get_name.argtypes = [ctypes.c_void_p]
    base.ggml_get_name.restype = ctypes.c_char_p
    base.ggml_nelements.argtypes = [ctypes.c_void_p]
    base.ggml_nelements.restype = ctypes.c_int64
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    base.ggml_backend_tensor_get.argtypes = [pointer, pointer, size, size]
    base.ggml_backend_tensor_get.restype = None
    return base


_BASE = _load_base()
