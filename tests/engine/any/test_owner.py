"""The owner's part of a model that is no Llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gennode.engine.any.owner import AnyOwner
from gennode.engine.checkpoint.weights import open_model
from gennode.engine.seam import OwnerEngine
from gennode.errors import LocalError, ModelError
from tools.tiny_models import LAYERS, VOCABULARY, make_tiny

Made = dict[str, tuple[OwnerEngine, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One that scales embeddings and caps logits, one with learned positions."""
    found: Made = {}
    for model_type in ("gemma2", "gpt2"):
        path = tmp_path_factory.mktemp(model_type)
        model = make_tiny(model_type, path)
        found[model_type] = (AnyOwner(open_model(path)), model)
    return found


def test_sizes_ends_and_text(made: Made) -> None:
    for owner, _ in made.values():
        assert (owner.layers, owner.dim, owner.max_positions) == (LAYERS, 32, 128)
        assert owner.is_end(257)
        assert not owner.is_end(256)
        assert owner.detokenize(owner.tokenize("naïve — 你好")) == "naïve — 你好"


@torch.inference_mode()
def test_embedding_is_what_the_first_layer_is_given(made: Made) -> None:
    owner, gemma = made["gemma2"]
    found = owner.embed([5, 299], 40)
    scale = torch.tensor(32**0.5)
    expected = gemma.model.embed_tokens.weight[[5, 299]] * scale
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    owner, gpt2 = made["gpt2"]
    inner = gpt2.transformer
    expected = inner.wte.weight[[7, 7]] + inner.wpe.weight[[100, 101]]
    np.testing.assert_array_equal(owner.embed([7, 7], 100), expected.numpy())
    assert owner.embed([], 3).shape == (0, 32)


@torch.inference_mode()
def test_logits_are_normed_and_capped(made: Made) -> None:
    owner, gemma = made["gemma2"]
    state = np.random.default_rng(1).standard_normal(32).astype(np.float32) * 100
    found = owner.logits(state)
    raw = gemma.lm_head(gemma.model.norm(torch.from_numpy(state)[None]))[0]
    cap = gemma.config.final_logit_softcapping
    np.testing.assert_array_equal(found, (torch.tanh(raw / cap) * cap).numpy())
    np.testing.assert_array_equal(found, owner.logits(state[None]))
    assert found.shape == (VOCABULARY,)


def test_calls_against_the_contract_are_our_own_fault(made: Made) -> None:
    owner, _ = made["gpt2"]
    wide: Any = np.zeros(32)  # of float64
    calls: tuple[Callable[[], object], ...] = (
        lambda: owner.embed([VOCABULARY], 0),
        lambda: owner.embed([-1], 0),
        lambda: owner.embed([1, 2], 127),
        lambda: owner.embed([1], -1),
        lambda: owner.logits(np.zeros(31, np.float32)),
        lambda: owner.logits(wide),
    )
    for call in calls:
        with pytest.raises(LocalError):
            call()


def test_weights_that_an_owner_lacks_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make_tiny("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.wpe.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks Embedding\.weight") as caught:
        AnyOwner(open_model(tmp_path))
    assert caught.value.hint
