"""A model's class as the library has it, without weights, run through some of its layers."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Before the library reads them: no code from the hub, and weights read one after the other,
# so that a layer is never in memory twice.
os.environ["USE_HUB_KERNELS"] = "NO"
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import initialization
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as library_logging

from gennode.engine.any.cache import SpanCache
from gennode.engine.checkpoint.any_config import AnyConfig
from gennode.errors import LocalError, ModelError
from gennode.wire.ids import Span

MAX_BUFFER_BYTES = 1 << 30  # rotary tables and masks; GPT-2's are the largest, 1 MiB a layer
_CONTAINERS = ("layers", "h", "blocks", "block")
_HINT = "docs/models.md lists what can be used; take the model's own config.json"
_REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, IndexError, KeyError),
    *(RuntimeError, StrictDataclassError, TypeError, ValueError),
)
"""What the library's configs and classes raise where a setting makes no sense to them."""

_BUILDING = threading.Lock()  # what is exchanged below belongs to the whole process

library_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
library_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


class _LeaveError(Exception):
    """Ends a forward pass where the rest of it is not wanted; carries what was found there."""

    def __init__(self, found: torch.Tensor) -> None:
        super().__init__()
        self.found = found


class Skeleton:
    """One model class whose layers can be run from any to any.

    The library's forward prepares masks, positions and caches as it does for the whole model.
    Each layer's own forward is wrapped: those outside of the span do nothing, the first is
    given our states, the last takes its result and ends the pass. Weights around the layers
    are zeros of one element, which is enough for workers: nothing that they hear of them lasts.
    """

    def __init__(self, config: AnyConfig, device: torch.device | None = None) -> None:
        """Raises ModelError if the library can't make this model, or run its layers apart."""
        self.config = config
        self._device = device or torch.device("cpu")
        self.model = _build(config)
        self.library_config: Any = self.model.config.get_text_config(decoder=True)
        self.layers = _find_layers(self.model, config.num_hidden_layers)
        self._span = Span(0, 0)
        self._states: torch.Tensor | None = None
        self._form = 0
        self._parameters = inspect.signature(self.model.forward).parameters
        for index, layer in enumerate(self.layers):
            layer.forward = self._wrapped(index, layer.forward)
        for module in self.outer_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                zero = torch.zeros((), dtype=parameter.dtype, device=self._device)
                zeros = nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
                module.register_parameter(name, zeros)
        for module in self.model.modules():  # parameters in layers have no memory to move yet
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self._device))
        self._learn_form()

    def outer_modules(self) -> Iterator[nn.Module]:
        """Every module that lies around the layers."""
        inner = {id(module) for layer in self.layers for module in layer.modules()}
        return (module for module in self.model.modules() if id(module) not in inner)

    def new_cache(self, span: Span, length: int = 0) -> SpanCache:
        """An empty cache for a sequence over a span."""
        return SpanCache(self.library_config, span, length)

    def run(
        self, span: Span, states: torch.Tensor, position: int, cache: SpanCache
    ) -> torch.Tensor:
        """States [rows, dim] at `position` pushed through a span's layers, [rows, dim]."""
        self._span, self._states = span, states[None]
        try:
            self._forward([self._neutral] * len(states), position, cache)
        except _LeaveError as left:
            return left.found[0]
        finally:
            self._states = None
        raise LocalError(f"a pass through layers {span} went by them")

    def embed(self, tokens: list[int], position: int) -> torch.Tensor:
        """What the first layer is given at these tokens, [rows, dim]."""
        self._span, self._states = Span(0, 0), None
        try:
            self._forward(tokens, position, self.new_cache(Span(0, 0), position))
        except _LeaveError as left:
            return left.found[0]
        raise LocalError("a pass that ends at the first layer went by it")

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """Logits [vocab] after the last layer's state [1, dim]."""
        layers = len(self.layers)
        self._span, self._states = Span(layers, layers), state[None]
        try:
            answer = self._forward([self._neutral], 0, self.new_cache(Span(0, 0)))
        finally:
            self._states = None
        found: torch.Tensor = answer.logits
        return found.reshape(-1)

    @property
    def _neutral(self) -> int:
        """A token that stands for nothing, and is no padding, which the library might mask."""
        return 1 if getattr(self.library_config, "pad_token_id", None) == 0 else 0

    def _forward(self, tokens: list[int], position: int, cache: SpanCache) -> Any:
        device = self._device
        arguments: dict[str, Any] = {
            "input_ids": torch.tensor([tokens], device=device),
            "use_cache": True,
            "position_ids": torch.arange(position, position + len(tokens), device=device)[None],
            "past_key_values": cache,
            "cache_params": cache,
        }
        return self.model(**{k: v for k, v in arguments.items() if k in self._parameters})

    def _wrapped(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward that knows whether it is wanted."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            incoming = args[0] if args else kwargs["hidden_states"]
            if not isinstance(incoming, torch.Tensor) or incoming.ndim != 3:
                raise TypeError("layers of this class return their states in another form")
            if self._span == (0, 0) and index == 0:
                raise _LeaveError(incoming)
            states = self._states
            if not self._span.start <= index < self._span.end:
                is_last = index == len(self.layers) - 1
                return self._formed(states if is_last and states is not None else incoming)
            if index == self._span.start and args:
                args = (states, *args[1:])
            elif index == self._span.start:
                kwargs["hidden_states"] = states
            answer = forward(*args, **kwargs)
            if index == self._span.end - 1:
                raise _LeaveError(answer if isinstance(answer, torch.Tensor) else answer[0])
            return answer

        return wrapped

    def _formed(self, states: torch.Tensor) -> Any:
        """States as the library expects them of a layer: bare, or first of a tuple."""
        return states if self._form == 0 else (states, *[None] * (self._form - 1))

    def _learn_form(self) -> None:
        """Find the form in which layers return their states: the one with which states get
        through all of them to the head."""
        head = self.model.get_output_embeddings()
        if head is None:
            raise ModelError("the model has no head", hint=_HINT)

        def arrived(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if args[0].ndim != 3:
                raise TypeError("states of another form")
            raise _LeaveError(args[0])

        handle = head.register_forward_pre_hook(arrived)
        mark = torch.zeros(1, 1, self.config.hidden_size, device=self._device)
        try:
            for self._form in range(4):
                self._span, self._states = Span(len(self.layers), len(self.layers)), mark
                try:
                    self._forward([self._neutral], 0, self.new_cache(Span(0, 0)))
                except _LeaveError:
                    return
                except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
                    continue  # not this one
        finally:
            handle.remove()
            self._states = None
        raise ModelError(f"layers of {self.config.architecture} can't be run apart", hint=_HINT)


def _find_layers(model: nn.Module, layers: int) -> nn.ModuleList:
    """The outermost list of so many modules, one with a usual name first."""
    found = [
        (name.rpartition(".")[2] not in _CONTAINERS, name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if not found:
        raise ModelError(f"the library's class has no list of {layers} layers", hint=_HINT)
    return min(found, key=lambda each: each[:3])[3]


def _build(config: AnyConfig) -> Any:
    """The whole class with parameters on meta and real buffers; ModelError if it can't be."""
    try:
        with _BUILDING, torch.device("meta"), initialization.no_init_weights():
            _check_buffers(_construct(config))
        with _BUILDING, _parameters_on_meta(), initialization.no_init_weights():
            model = _construct(config)
    except _REFUSALS as error:
        raise ModelError(
            f"transformers can't make a {config.architecture} of this config.json: "
            f"{str(error)[:512]}",
            hint=_HINT,
        ) from error
    model.train(False)
    return model.requires_grad_(False)


def _construct(config: AnyConfig) -> Any:
    library_config = CONFIG_MAPPING[config.model_type].from_dict(_floats(config.settings))
    _refuse_stateful(library_config)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(library_config)]
    if model_class.__name__ != config.architecture:
        raise ValueError(f"this library's class is {model_class.__name__}")
    return model_class(library_config)


def _floats(value: Any) -> Any:
    """A JSON value with the library's way to write numbers that JSON lacks undone."""
    if isinstance(value, dict) and value.keys() == {"__float__"}:
        return float(value["__float__"])
    if isinstance(value, Mapping):
        return {key: _floats(each) for key, each in value.items()}
    return [_floats(each) for each in value] if isinstance(value, list) else value


def _refuse_stateful(library_config: Any) -> None:
    rope = getattr(library_config, "rope_parameters", None) or {}
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") == "dynamic":
            raise ValueError("rope_type dynamic makes one sequence depend on others")


def _check_buffers(model: nn.Module) -> None:
    held_bytes = sum(each.numel() * each.element_size() for each in model.buffers())
    if held_bytes > MAX_BUFFER_BYTES:
        raise ValueError(f"its tables would take {held_bytes} bytes")


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that are made meanwhile have parameters without memory, but real buffers: the
    library computes those (frequencies, scales) when a module is made, and no file has them."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and parameter.device.type != "meta":
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
