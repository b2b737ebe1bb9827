"""When a model is checked against its own forward, and what a check leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from checked_models import SHAPE, largest_difference, made, serve
from tiny_models import VOCAB, tiny_model
from torch import Tensor, nn
from tts_decode import SamplingParams, UnsupportedModelError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_check_leaves_the_model_as_it_was(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)

    def state() -> list[Any]:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        modules = [(name, sorted(module.__dict__)) for name, module in model.named_modules()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        where = [(name, id(t), t.data_ptr(), t._version, t.dtype, t.requires_grad) for name, t in tensors]
        return [where, modules, hooks, model.config._attn_implementation]

    before, copies = state(), [weight.clone() for weight in model.parameters()]
    serve(model)
    assert state() == before
    assert all(map(torch.equal, model.parameters(), copies))


def test_a_refused_model_is_left_as_it_was() -> None:
    model = made(hf.RobertaConfig(**SHAPE, max_position_embeddings=130, is_decoder=True), randomised=False)
    before = [(id(weight), weight._version) for weight in model.parameters()]
    with pytest.raises(UnsupportedModelError):
        serve(model)
    assert [(id(weight), weight._version) for weight in model.parameters()] == before
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_model_is_checked_once_until_it_changes() -> None:
    model = tiny_model()
    first, second = serve(model), serve(model)
    assert first.self_check is second.self_check
    assert first.self_check.paths == ("general", "packed")
    assert serve(model, pack_weights=False).self_check.paths == ("general",)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert serve(model).self_check is not first.self_check


def shift(x: Tensor) -> Tensor:
    return x + 0.1 * nn.functional.pad(x, (0, 0, 1, -1))


def forward_set(mlp: Any) -> None:
    mlp.forward = lambda x: type(mlp).forward(mlp, shift(x))


def hook_added(mlp: Any) -> None:
    mlp.register_forward_pre_hook(lambda _module, inputs: (shift(inputs[0]),))


def class_set(mlp: Any) -> None:
    parent = type(mlp)
    mlp.__class__ = type("Shift", (parent,), {"forward": lambda self, x: parent.forward(self, shift(x))})


@pytest.mark.parametrize("change", [forward_set, hook_added, class_set])
def test_a_model_whose_code_changed_is_checked_again(change: Callable[[Any], None]) -> None:
    model = tiny_model()
    serve(model, pack_weights=False)
    change(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1, at position .*looks at other tokens"):
        serve(model, pack_weights=False)


def scale_set(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.scaling *= 0.5


def eps_set(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5


def window_set(model: Any) -> None:
    model.config.sliding_window = 4
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 4


@pytest.mark.parametrize("change", [scale_set, eps_set, window_set])
def test_a_new_decoder_packs_what_was_set_on_modules(change: Callable[[Any], None]) -> None:
    model = tiny_model("mistral")
    first = serve(model)
    change(model)
    assert largest_difference(serve(model)) < 1e-3
    assert largest_difference(first) < 1e-3


def test_a_new_decoder_checks_what_was_written_through_data() -> None:
    model = tiny_model()
    serve(model)
    model.model.layers[1].mlp.down_proj.weight.data[3] = torch.nan
    with pytest.raises(UnsupportedModelError, match="NaN or inf"):
        serve(model)


@pytest.mark.parametrize("head", [hf.AutoModel, hf.AutoModelForSequenceClassification])
def test_models_without_lm_head_are_compared_by_their_hidden_states(head: Any) -> None:
    found = serve(tiny_model(auto=head)).self_check
    assert found is not None
    assert found.paths == ("general", "packed")
    model = hf.RobertaModel(hf.RobertaConfig(**SHAPE, max_position_embeddings=130, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match="the input of layer 0"):
        serve(model)


def test_check_false_serves_what_would_be_refused() -> None:
    model = made(hf.RobertaConfig(**SHAPE, max_position_embeddings=130, is_decoder=True))
    served = serve(model, check=False)
    assert served.self_check is None
    assert largest_difference(served) > 0.1


def test_weights_that_are_nan_are_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(UnsupportedModelError, match="its own forward has NaN or inf in the input of layer 2"):
        serve(model)


def test_hidden_states_come_from_the_decoder_inside_the_base_model() -> None:
    """OPT's head runs it without the base model around it."""
    config = hf.OPTConfig(
        vocab_size=VOCAB, hidden_size=64, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=130, word_embed_proj_dim=64, init_std=0.2,
    )  # fmt: skip
    served = serve(made(config))
    served.keep_hidden += 1

    async def step() -> Tensor:
        root = await served.root([3, 4, 5], SamplingParams(temperature=0, max_step_tokens=1))
        return (await root.step()).hidden

    hidden = served.run(step())
    tokens = [3, 4, 5]
    with torch.no_grad():
        token = int(served.model(torch.tensor([tokens])).logits[0, -1].argmax())
        states = served.model.model(torch.tensor([[*tokens, token]])).last_hidden_state[0]
    torch.testing.assert_close(hidden, states[-1], atol=1e-4, rtol=0)
