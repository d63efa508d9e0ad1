"""Which GGUF files can be used, and one layer of them as a file of its own, bytes untouched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from gennode.engine.gguf.format import (
    KINDS,
    Header,
    Setting,
    Tensor,
    padding,
    read_header,
    write_header,
)
from gennode.engine.gguf.native import MAX_ROWS
from gennode.errors import ModelError
from gennode.wire.ids import MAX_LAYERS
from gennode.wire.manifest import ModelShape

ARCHITECTURE = "llama"  # the only one that was compared with itself cut into layers
MAX_WIDTH = 1 << 20
STUB_VOCABULARY = 32  # llama.cpp wants an embedding and a head in each file: small ones

_SCRATCH_BYTES = 4_000_000  # of a layer's context, however narrow
_COPY_BYTES = 16 * 1024 * 1024
_REQUIRED = (
    "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.layer_norm_rms_epsilon",
)  # fmt: skip
_KNOWN = frozenset(
    {*_REQUIRED, "attention.head_count_kv", "attention.key_length", "attention.value_length"}
    | {"rope.dimension_count", "rope.freq_base", "vocab_size", "expert_count", "rope.scaling.type"}
)
_LAYER = re.compile(r"blk\.(\d{1,4})\.(\S+)\Z")
_OTHERS = frozenset({"token_embd.weight", "output.weight", "output_norm.weight"})
_ENDS = ("eos", "eot", "eom")  # the tokens after which nothing more is said
_ROPE = "rope_freqs.weight"  # how Llama 3.1 stretches its positions; every layer needs it
_OTHER_FORM = "use the model in Hugging Face format"


@dataclass(frozen=True)
class GgufModel:
    """A checked file: its sizes, the settings of a layer's file, and where its tensors lie."""

    file: Path
    shape: ModelShape
    epsilon: float
    settings: Mapping[str, Setting]
    tensors: Mapping[str, Tensor]
    end_tokens: frozenset[int]

    @property
    def weights(self) -> str:
        """How most of the matrices are stored, in lower case, such as `q8_0`."""
        kinds = [each.kind for each in self.tensors.values() if len(each.shape) == 2]
        return KINDS[max(sorted(set(kinds)), key=kinds.count)].name.lower()

    @property
    def compute_class(self) -> str:
        """Of engines that compute this file's layers; see Profile."""
        return f"gguf-{self.weights}-cpu"

    @property
    def layer_memory_bytes(self) -> int:
        """What a loaded layer takes at most, its caches aside: weights, and llama.cpp's scratch.

        Scratch was measured at 256 to 2048 wide states and 512 to 8192 wide inner ones, in three
        kinds of weights: 5.9 to 42.5 MB. This is 3 to 40 % above each.
        """
        sizes = [0] * self.shape.layers
        for name, tensor in self.tensors.items():
            if (found := _LAYER.match(name)) is not None:
                sizes[int(found[1])] += tensor.size_bytes
        width = 8 * self.shape.dim + 4 * self.shape.ffn_dim
        return max(sizes) + _SCRATCH_BYTES + 4 * MAX_ROWS * width

    def write_layer(self, index: int, stream: IO[bytes]) -> None:
        """A file with that layer as its only one. Raises OSError, ModelError."""
        prefix = f"blk.{index}."
        kept = {
            name.replace(prefix, "blk.0.", 1): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix) or name == _ROPE
        }
        dim = self.shape.dim
        stub = np.zeros((STUB_VOCABULARY, dim), np.float16)
        ends: dict[str, tuple[npt.NDArray[np.float16] | npt.NDArray[np.float32], int]] = {
            "token_embd.weight": (stub, 1),
            "output.weight": (stub, 1),
            "output_norm.weight": (np.ones(dim, np.float32), 0),
        }
        listed = [
            Tensor(name, each.shape, each.kind, 0, each.size_bytes) for name, each in kept.items()
        ]
        listed += [
            Tensor(name, array.shape, kind, 0, array.nbytes) for name, (array, kind) in ends.items()
        ]
        stream.write(write_header(self.settings, listed))
        with self.file.open("rb") as source:
            for tensor in kept.values():
                _copy(source, tensor, stream)
        for array, _ in ends.values():
            stream.write(array.tobytes() + padding(array.nbytes))


def _copy(source: IO[bytes], tensor: Tensor, stream: IO[bytes]) -> None:
    source.seek(tensor.offset)
    left = tensor.size_bytes
    while left:
        data = source.read(min(left, _COPY_BYTES))
        if not data:
            raise ModelError("a GGUF file ended early", hint="download the file again")
        stream.write(data)
        left -= len(data)
    stream.write(padding(tensor.size_bytes))


def open_file(file: Path) -> GgufModel:
    """Check a GGUF file: a Llama, whole, with nothing in it that we don't know. ModelError."""
    header = read_header(file)
    name = header.settings.get("general.architecture")
    if name != ARCHITECTURE:
        raise ModelError(f"{file.name} holds a model of the kind {name!s:.64}, and only "
                         f"{ARCHITECTURE} is computed from GGUF", hint=_OTHER_FORM)  # fmt: skip
    found = _settings(header, file.name)
    shape = _shape(found, header, file.name)
    _check_tensors(header, shape, file.name)
    epsilon = float(found["attention.layer_norm_rms_epsilon"])
    written: dict[str, Setting] = {"general.architecture": ARCHITECTURE}
    written |= {f"{ARCHITECTURE}.{key}": value for key, value in found.items()}
    written |= {
        f"{ARCHITECTURE}.block_count": 1,
        f"{ARCHITECTURE}.vocab_size": STUB_VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }
    ends = [header.settings.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS]
    end_tokens = frozenset(each for each in ends if isinstance(each, int))
    return GgufModel(file, shape, epsilon, written, header.tensors, end_tokens)


def _settings(header: Header, file: str) -> dict[str, Setting]:
    """Those of the architecture, without its name; each is known, and a number."""
    prefix = f"{ARCHITECTURE}."
    lists = sorted(name for name in header.lists if name.startswith(prefix))
    found = {
        name.removeprefix(prefix): value
        for name, value in header.settings.items()
        if name.startswith(prefix)
    }
    unknown = [*lists, *(prefix + name for name in sorted(found.keys() - _KNOWN))]
    if unknown:
        raise ModelError(f"{file} sets {unknown[0]:.64}, which is not known here",
                         hint=_OTHER_FORM)  # fmt: skip
    if found.pop("expert_count", 0) or found.pop("rope.scaling.type", "none") != "none":
        raise ModelError(f"{file} has experts or scaled positions", hint=_OTHER_FORM)
    for name in _REQUIRED:
        if name not in found:
            raise ModelError(f"{file} lacks {prefix}{name}", hint="download the file again")
    for name, value in found.items():
        real = name.endswith(("epsilon", "freq_base"))
        if not isinstance(value, float if real else int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"{file} sets {prefix}{name} to {value!s:.64}", hint=_OTHER_FORM)
    return found


def _shape(found: Mapping[str, Setting], header: Header, file: str) -> ModelShape:
    def size(name: str, otherwise: int = 0) -> int:
        return int(found.get(name, otherwise))

    dim, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = size("attention.head_count_kv", heads)
    width = size("attention.key_length", dim // heads)
    # llama.cpp would end the process over these.
    fits = size("rope.dimension_count", width) == width == size("attention.value_length", width)
    sizes = (dim, heads, kv_heads, width, size("feed_forward_length"))
    embedding = header.tensors.get("token_embd.weight")
    if not fits or heads % kv_heads or width % 2 or max(sizes) > MAX_WIDTH or min(sizes) < 1:
        raise ModelError(f"{file} has sizes that don't fit together", hint=_OTHER_FORM)
    if embedding is None or size("block_count") > MAX_LAYERS:
        raise ModelError(f"{file} has no embedding, or over {MAX_LAYERS} layers", hint=_OTHER_FORM)
    return ModelShape(
        architecture="LlamaForCausalLM",
        layers=size("block_count"),
        dim=dim,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        ffn_dim=size("feed_forward_length"),
        vocab=embedding.shape[0],
        max_positions=min(size("context_length"), 1 << 24),
        tied="output.weight" not in header.tensors,
    )


def _check_tensors(header: Header, shape: ModelShape, file: str) -> None:
    """That all tensors are there in the right sizes, and no others."""
    wanted = {
        "token_embd.weight": (shape.vocab, shape.dim),
        "output_norm.weight": (shape.dim,),
    }
    optional = {"output.weight": (shape.vocab, shape.dim), _ROPE: (shape.head_dim // 2,)}
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        wanted |= {
            f"{prefix}attn_norm.weight": (shape.dim,),
            f"{prefix}attn_q.weight": (queries, shape.dim),
            f"{prefix}attn_k.weight": (keys, shape.dim),
            f"{prefix}attn_v.weight": (keys, shape.dim),
            f"{prefix}attn_output.weight": (shape.dim, queries),
            f"{prefix}ffn_norm.weight": (shape.dim,),
            f"{prefix}ffn_gate.weight": (shape.ffn_dim, shape.dim),
            f"{prefix}ffn_up.weight": (shape.ffn_dim, shape.dim),
            f"{prefix}ffn_down.weight": (shape.dim, shape.ffn_dim),
        }
        optional |= {
            f"{prefix}attn_q.bias": (queries,),
            f"{prefix}attn_k.bias": (keys,),
            f"{prefix}attn_v.bias": (keys,),
            f"{prefix}attn_output.bias": (shape.dim,),
        }
    for name, size in wanted.items():
        if name not in header.tensors:
            raise ModelError(f"{file} lacks the tensor {name}", hint="download the file again")
        optional[name] = size
    for name, tensor in header.tensors.items():
        expected = optional.get(name)
        if expected is None:
            raise ModelError(f"{file} has the tensor {name:.64}, which is not known here",
                             hint=_OTHER_FORM)  # fmt: skip
        if tensor.shape != expected or (len(expected) == 1 and tensor.kind != 0):
            raise ModelError(f"{file}: {name} has the sizes {tensor.shape}, not {expected}",
                             hint=_OTHER_FORM)  # fmt: skip
