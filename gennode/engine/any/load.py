"""A checkpoint's tensors into a skeleton, by the names and conversions that the library knows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from gennode.engine.any.skeleton import Skeleton
from gennode.engine.checkpoint.memory import new_tensor
from gennode.engine.checkpoint.weights import ModelFolder
from gennode.errors import ModelError
from gennode.wire.ids import Span

_HINT = "take config.json and the weights from the same model"


class _Lazy:
    """A tensor of the folder, read when the library wants it."""

    def __init__(self, folder: ModelFolder, name: str) -> None:
        self._folder = folder
        self._name = name

    def __getitem__(self, _all: object) -> torch.Tensor:
        read = self._folder.read_whole(self._name)
        if read.ndim and read.is_floating_point() and read.dtype != torch.float32:
            # Not left to the library: on the heap, experts that are stacked leave holes.
            return new_tensor(tuple(read.shape), torch.float32).copy_(read)
        return read


def load_layer(skeleton: Skeleton, folder: ModelFolder, layer: int, device: torch.device) -> None:
    """Read one layer's tensors and no others. ModelError if they are not what the class has."""
    names = folder.other.tensors(folder.names, Span(layer, layer + 1), owner=False)
    _load(skeleton, folder, names)
    module = skeleton.layers[layer]
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"layer {layer} of the model lacks {name}", hint=_HINT)
    module.to(device)


def unload_layer(skeleton: Skeleton, layer: int) -> None:
    """Free a layer's weights."""
    for module in skeleton.layers[layer].modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            bare = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
            module.register_parameter(name, bare)


def load_outer(skeleton: Skeleton, folder: ModelFolder) -> None:
    """Read what lies around the layers. ModelError if it is not what the class has."""
    _load(skeleton, folder, folder.other.tensors(folder.names, None, owner=True))
    skeleton.model.tie_weights()
    for name, parameter in _outer_parameters(skeleton):
        if parameter.numel() > 1 and parameter.untyped_storage().nbytes() <= parameter.itemsize:
            raise ModelError(f"the model lacks {name}", hint=_HINT)


def _outer_parameters(skeleton: Skeleton) -> Iterator[tuple[str, nn.Parameter]]:
    for module in skeleton.outer_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{type(module).__name__}.{name}", parameter


@torch.no_grad()
def _load(skeleton: Skeleton, folder: ModelFolder, names: Collection[str]) -> None:
    model = skeleton.model
    mapping: Any = get_model_conversion_mapping(model)
    settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=mapping)
    lazy = {name: _Lazy(folder, name) for name in names}
    found, _ = convert_and_load_state_dict_in_model(model, lazy, settings)
    model._adjust_missing_and_unexpected_keys(found)
    model.requires_grad_(False)
    for name, *shapes in found.mismatched_keys:
        raise ModelError(
            f"{name} has shape {list(shapes[0])}, config.json wants {list(shapes[1])}", hint=_HINT
        )
    for name, problem in found.conversion_errors.items():
        raise ModelError(f"{name} can't be made of the file's tensors: {problem[-256:]}",
                         hint=_HINT)  # fmt: skip
    for name in sorted(found.unexpected_keys):
        raise ModelError(f"{name} is in the files, and the model has no place for it", hint=_HINT)
