"""Model folders: found, checked, hashed, and read one tensor at a time."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import msgspec
from safetensors import SafetensorError, safe_open

from gennode.engine.checkpoint.any_config import AnyConfig
from gennode.engine.checkpoint.compare import MANIFEST, compare
from gennode.engine.checkpoint.config import (
    ModelConfig,
    Shapes,
    parse_config,
    parse_end_tokens,
    tensors_of,
)
from gennode.engine.checkpoint.hashing import Progress, hash_files
from gennode.engine.checkpoint.layout import (
    CONFIG,
    INDEX,
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    MAX_INDEX_BYTES,
    MAX_TOKENIZER_BYTES,
    OPTIONAL,
    SINGLE,
    TOKENIZER,
    parse_index,
    read_config,
    tensor_names,
    tensor_places,
)
from gennode.engine.checkpoint.llama_config import LlamaConfig
from gennode.engine.checkpoint.memory import copied, new_tensor
from gennode.engine.checkpoint.quantised import INTEGERS, is_packed
from gennode.engine.checkpoint.shelf import FolderShelf, PartialFolder, is_partial
from gennode.errors import LocalError, ModelError
from gennode.wire.ids import Span
from gennode.wire.manifest import MAX_MANIFEST_BYTES, Manifest, ModelShape

if TYPE_CHECKING:
    import torch

BUNDLED = ("gennode-small", "gennode-medium", "gennode-large")

_BUNDLED_FOLDER = Path(__file__).resolve().parents[2] / "models"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_DTYPES = ("F32", "BF16", "F16")
_AGAIN = "download the model again"


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder. `tensors`: the file that holds each tensor that is here; see `read`.

    `names`: of all the model's tensors, as far as is known; `shelf`: the folder's chunks, for
    peers that want them.
    """

    path: Path
    config: ModelConfig
    manifest: Manifest
    end_tokens: frozenset[int]
    tensors: Mapping[str, str]
    names: Collection[str]
    shelf: FolderShelf | PartialFolder

    @property
    def is_partial(self) -> bool:
        """Whether some of the model may not be here, because peers gave only a part."""
        return isinstance(self.shelf, PartialFolder)

    @property
    def llama(self) -> LlamaConfig:
        """The config of a model that the fast engine runs; LocalError for any other."""
        if not isinstance(self.config, LlamaConfig):
            raise LocalError(f"{self.manifest.shape.architecture} is not for the fast engine")
        return self.config

    @property
    def other(self) -> AnyConfig:
        """The config of a model that only the generic engine runs; LocalError for any other."""
        if not isinstance(self.config, AnyConfig):
            raise LocalError(f"{self.manifest.shape.architecture} is not for the generic engine")
        return self.config

    def whole_layers(self) -> list[int]:
        """The layers of which every tensor is here."""
        found = []
        for layer in range(self.config.num_hidden_layers):
            wanted = tensors_of(self.config, self.names, Span(layer, layer + 1), owner=False)
            if wanted and wanted.keys() <= self.tensors.keys():
                found.append(layer)
        return found

    def read_whole(self, name: str) -> torch.Tensor:
        """One tensor as it is in its file, in memory of its own. ModelError if it is not here."""
        with _open_tensors(self.path / self._file(name), "pt") as tensors:
            return copied(tensors.get_tensor(name))

    def read(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """The named tensors stacked along their first axis; no other bytes are read.

        `dtype`: what to convert to, by default that of the file. ModelError if a tensor is
        missing or has another shape or dtype than a weight may have.
        """
        result: torch.Tensor | None = None
        start = 0
        for name, shape in shapes.items():
            with self._stored(name, shape) as stored:
                if result is None:
                    rows = sum(each[0] for each in shapes.values())
                    result = new_tensor((rows, *shape[1:]), dtype or stored.dtype)
                # Copied: a window on a file that is truncated later would crash us.
                result[start : start + shape[0]] = stored
                start += shape[0]
        if result is None:
            raise LocalError("no tensor was asked for")
        return result

    @contextmanager
    def _stored(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """A tensor as its file has it, checked; unpacked if it is packed there."""
        packing = getattr(self.config, "quantization_config", None)
        if packing is not None and is_packed(name, self.names):
            from gennode.engine.checkpoint.unpacking import read_packed

            yield read_packed(packing, name, shape, self.names, self.read)
            return
        file = self._file(name)
        with _open_tensors(self.path / file, "pt") as tensors:
            _check(tensors, file, name, shape)
            yield tensors.get_tensor(name)

    def _file(self, name: str) -> str:
        """The file that holds a tensor."""
        file = self.tensors.get(name)
        if file is None and self.is_partial:
            raise ModelError(f"{self.path} has only a part of the model, without {name}",
                             hint="fetch those layers first")  # fmt: skip
        if file is None:
            raise _missing(name)
        return file


def find_model(name_or_path: str) -> Path:
    """The folder of a bundled model's name or of a path; ModelError if there is none."""
    if name_or_path in BUNDLED:
        folder = _BUNDLED_FOLDER / name_or_path
        if not folder.is_dir():
            raise ModelError(
                f"{name_or_path} is not in this installation",
                hint="reinstall gennode, or give the path of a model folder",
            )
        return folder
    if not Path(name_or_path).is_dir():
        raise ModelError(
            f"there is no model {name_or_path!r}",
            hint=f"give the path of a model folder, one of {', '.join(BUNDLED)}, or a model's "
            "id, all 64 digits of it",
        )
    return Path(name_or_path)


def open_model(
    path: Path,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    known: Manifest | None = None,
) -> ModelFolder:
    """Check a folder in Hugging Face format and hash it.

    `progress` is told of the bytes hashed; `cache` is a folder that remembers hashes. Where
    the folder has a manifest.json, every file must be as it says. A folder that is filled from
    peers is taken with the tensors that it has. `known`: what the folder was found to be before;
    its hashes are taken for those of files of the same sizes. Raises ModelError.
    """
    if not path.is_dir():
        raise ModelError(f"there is no model folder {path}", hint="check the path")
    folder = path.resolve()
    try:
        if is_partial(folder):
            return _open_partial(folder)
        return _open_model(folder, progress, cache, known)
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} can't be read: {error.strerror}",
            hint="check that the file is there and that you may read it",
        ) from error


def read_shape(path: Path) -> ModelShape:
    """The sizes that a model folder's config.json states, without a look at its weights."""
    try:
        data = _read_small(path, CONFIG, MAX_CONFIG_BYTES)
    except OSError as error:
        raise ModelError(f"{path}/{CONFIG} can't be read: {error.strerror}",
                         hint="check the path") from error  # fmt: skip
    return parse_config(data, CONFIG).shape


def _open_model(
    folder: Path, progress: Progress | None, cache: Path | None, known: Manifest | None
) -> ModelFolder:
    config = parse_config(_read_small(folder, CONFIG, MAX_CONFIG_BYTES), CONFIG)
    placed = _place_tensors(folder)
    _inside(folder, TOKENIZER, MAX_TOKENIZER_BYTES)
    optional = [name for name in OPTIONAL if (folder / name).exists()]
    for name in optional:
        _inside(folder, name, MAX_CONFIG_BYTES)
    names = {CONFIG, TOKENIZER, *optional, *placed.values()}
    if (folder / INDEX).exists():
        names.add(INDEX)
    stated = _read_manifest(folder) if (folder / MANIFEST).exists() else None
    if stated:
        names.update(file.name for file in stated.files)
    for name in names:
        _inside(folder, name)
    if known and _is_as_known(folder, names, known):
        manifest = known
    else:
        manifest = Manifest(config.shape, hash_files(folder, sorted(names), progress, cache))
    if stated:
        compare(stated, manifest)
    names_here = frozenset(placed)
    _check_tensors(folder, _promised(config, names_here), placed)
    end_tokens = _end_tokens(folder, config, has_preference="generation_config.json" in names)
    shelf = FolderShelf(folder, manifest)
    tensors = MappingProxyType(placed)
    return ModelFolder(folder, config, manifest, end_tokens, tensors, names_here, shelf)


def _open_partial(folder: Path) -> ModelFolder:
    """What peers gave was checked chunk by chunk; here only its meaning is."""
    shelf = PartialFolder.open(folder)
    manifest = shelf.manifest
    config = read_config(manifest, shelf.read_bytes)
    if config is None:
        raise ModelError(f"{folder} lacks {CONFIG}", hint="fetch the model again")
    placed = tensor_places(manifest, shelf.read_bytes, shelf.has_bytes)
    known = tensor_names(manifest, shelf.read_bytes) or frozenset()
    promised = _promised(config, known) if known else {}
    here_alone = {name: shape for name, shape in promised.items() if name in placed}
    _check_tensors(folder, here_alone, placed)
    preferred = any(place.file == "generation_config.json" for place in shelf.held)
    end_tokens = _end_tokens(folder, config, has_preference=preferred)
    tensors = MappingProxyType(dict(placed))
    return ModelFolder(folder, config, manifest, end_tokens, tensors, known, shelf)


def _promised(config: ModelConfig, names: Collection[str]) -> Shapes:
    """The tensors that a model has to have, with their shapes as far as its config says."""
    return tensors_of(config, names, Span(0, config.num_hidden_layers), owner=True)


def _end_tokens(folder: Path, config: ModelConfig, *, has_preference: bool) -> frozenset[int]:
    end_tokens = config.eos_token_id
    if has_preference:
        data = _read_small(folder, "generation_config.json", MAX_CONFIG_BYTES)
        preferred = parse_end_tokens(data, "generation_config.json")
        end_tokens = end_tokens if preferred is None else preferred
    return frozenset([end_tokens] if isinstance(end_tokens, int) else end_tokens or [])


def _inside(folder: Path, name: str, max_bytes: int | None = None) -> Path:
    """The real path of a file of the folder, which no link may lead out of."""
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{folder} lacks {name}", hint="download the missing file")
    real = path.resolve()
    # The hub's cache keeps each file once in `blobs` and links `snapshots/<revision>` to it.
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    if not real.is_relative_to(folder) and not real.is_relative_to(blobs):
        raise ModelError(f"{name} is a link out of {folder}", hint="copy the file into the folder")
    size_bytes = real.stat().st_size
    if max_bytes is not None and size_bytes > max_bytes:
        raise ModelError(f"{name} has {size_bytes} bytes, over the limit of {max_bytes}",
                         hint=_AGAIN)  # fmt: skip
    return real


def _read_small(folder: Path, name: str, max_bytes: int) -> bytes:
    return _inside(folder, name, max_bytes).read_bytes()


def _place_tensors(folder: Path) -> dict[str, str]:
    """Which file holds each tensor, from the index if there is one."""
    if (folder / INDEX).exists():
        placed = parse_index(_read_small(folder, INDEX, MAX_INDEX_BYTES))
        for file in set(placed.values()):
            _inside(folder, file)
        return placed
    if (folder / SINGLE).exists():
        with _open_tensors(_inside(folder, SINGLE)) as file:
            return dict.fromkeys(file.keys(), SINGLE)
    if any(entry.suffix in _PICKLED for entry in folder.iterdir()):
        raise ModelError(
            f"{folder} has only pickled weights, which can run any code when they are read",
            hint="convert them to safetensors with the tool that made them, on a machine that "
            "holds nothing of value, or find a copy in that format",
        )
    raise ModelError(f"{folder} lacks {SINGLE}", hint="download the missing file")


def _open_tensors(path: Path, framework: Literal["pt", "np"] = "np") -> safe_open:
    """Open one file; the library checks that all tensors lie inside it, without overlap.

    `framework`: whose tensors it gives. To look at shapes alone takes no torch.
    """
    try:
        with path.open("rb") as stream:
            prefix = stream.read(8)
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}", hint=_AGAIN) from error
    header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelError(f"{path.name} claims a header of {header_bytes} bytes", hint=_AGAIN)
    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ModelError(
            f"{path.name} is truncated or damaged: {error}", hint="download that file again"
        ) from error


def _check_tensors(folder: Path, shapes: Shapes, placed: Mapping[str, str]) -> None:
    """That each of these tensors is where it should be, in the shape the config implies."""
    missing = [name for name in shapes if name not in placed]
    if missing:
        raise _missing(missing[0])
    for file in sorted({placed[name] for name in shapes}):
        with _open_tensors(_inside(folder, file)) as tensors:
            for name, shape in shapes.items():
                if placed[name] == file:
                    _check(tensors, file, name, shape)


def _check(tensors: safe_open, file: str, name: str, shape: tuple[int, ...] | None) -> None:
    try:
        entry = tensors.get_slice(name)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ModelError(f"{file} lacks the tensor {name}", hint=_AGAIN) from error
    if shape is not None and tuple(entry.get_shape()) != shape:
        raise ModelError(
            f"{file}: {name} has shape {list(entry.get_shape())}, config.json wants {list(shape)}",
            hint="take config.json and the weights from the same model",
        )
    allowed = ("I32",) if name.rpartition(".")[2] in INTEGERS else _DTYPES
    if entry.get_dtype() not in allowed:
        raise ModelError(
            f"{file}: {name} is stored as {entry.get_dtype()}, which is not supported",
            hint=f"use weights in one of {', '.join(allowed)}",
        )


def _missing(name: str) -> ModelError:
    return ModelError(f"no file of the model has the tensor {name}", hint=_AGAIN)


def _read_manifest(folder: Path) -> Manifest:
    try:
        return msgspec.json.decode(_read_small(folder, MANIFEST, MAX_MANIFEST_BYTES), type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{MANIFEST} is malformed: {error}", hint=_AGAIN) from error


def _is_as_known(folder: Path, names: Iterable[str], known: Manifest) -> bool:
    """Whether a folder has the same files as before, as far as their sizes tell."""
    sizes = {name: (folder / name).stat().st_size for name in names}
    return sizes == {file.name: file.size_bytes for file in known.files}
