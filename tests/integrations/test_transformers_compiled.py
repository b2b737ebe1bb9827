"""torch.compile of models that run over a TreeCache: the same tokens, or a refusal with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel
from tree_caches import cache_of, generate, prompts

from tts_kernels.integrations.transformers import register

pytestmark = pytest.mark.usefixtures("one_thread")
register()


def _compile_forward(model: PreTrainedModel, **options: Any) -> None:
    model.forward = torch.compile(model.forward, **options)


def _compile_layers(model: PreTrainedModel, **options: Any) -> None:
    layers: list[nn.Module] = list(model.model.layers)
    for layer in layers:
        layer.compile(**options)


COMPILED: dict[str, Callable[..., None]] = {
    "model": lambda model, **options: model.compile(**options),
    "forward": _compile_forward,
    "layers": _compile_layers,
}


@pytest.mark.parametrize("what", COMPILED)
@pytest.mark.filterwarnings("ignore")
def test_compiled_models(own: PreTrainedModel, tree: PreTrainedModel, what: str) -> None:
    """The same tokens; the attention runs between the graphs."""
    ids, mask = prompts(30, 4)
    torch._dynamo.reset()
    COMPILED[what](tree, backend="eager")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}
    expected = generate(own, ids, mask, **options)
    assert torch.equal(generate(tree, ids, mask, cache_of(tree), **options), expected)


@pytest.mark.parametrize("what", COMPILED)
def test_models_compiled_into_one_graph(tree: PreTrainedModel, what: str) -> None:
    torch._dynamo.reset()
    COMPILED[what](tree, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="TreeCache keeps its tree outside of compiled"):
        generate(tree, *prompts(30), cache_of(tree))


def test_compile_config(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """transformers compiles for static caches only, and says so."""
    options: dict[str, Any] = {"compile_config": hf.CompileConfig()}
    ids, mask = prompts(30)
    assert torch.equal(generate(tree, ids, mask, cache_of(tree), **options), generate(own, ids, mask))
