"""The forward over packed weights against transformers' forward, its specification."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from primitives import make
from tiny_models import tiny_model
from transformers import PreTrainedModel
from tts_decode import Branch, SamplingParams, TreeDecoder, gather
from tts_decode.model.packed_model import _made

pytestmark = pytest.mark.usefixtures("one_thread")

SERVED = ("llama", "mistral", "qwen2", "qwen2_sliding", "qwen3")
PROMPT = list(range(40, 90))


async def next_logprobs(decoder: TreeDecoder, prompt: list[int] = PROMPT) -> torch.Tensor:
    root = await decoder.root(prompt)
    try:
        return await root.next_logprobs()
    finally:
        root.release()


def is_packed(decoder: TreeDecoder) -> bool:
    return decoder.runtime.engine.packed is not None


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("chunk", [9, 512])
def test_both_forwards_agree(family: str, chunk: int) -> None:
    """Forks, forced text, hidden states and embeddings; the logits are of order 10, sums in another order."""
    model = tiny_model(family, seed=5)
    for name, weight in model.named_parameters():
        if "norm" in name:  # all ones as they are made
            torch.nn.init.uniform_(weight, 0.5, 1.5)

    async def search(decoder: TreeDecoder) -> list[torch.Tensor]:
        root = await decoder.root(PROMPT)
        one, two, three = root.fork(3)
        texts = gather(one.extend([7, 8, 9] * 8), two.read([1, 2, 3], [0, 2]), three.logprobs_of("a text"))
        soft = await three.extend_embeds(torch.ones(2, 64))
        return [*await texts, soft, *(await gather(b.next_logprobs() for b in (one, two, three)))]

    packed, plain = make(model, max_batch_tokens=chunk), make(model, pack_weights=False)
    assert is_packed(packed)
    assert not is_packed(plain)
    for ours, theirs in zip(packed.run(search(packed)), plain.run(search(plain)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", SERVED)
def test_bfloat16_is_no_worse_than_the_models_own(family: str) -> None:
    """Both against the float32 model of the same bfloat16 weights; float32 between the products pays."""
    model = tiny_model(family, seed=1, dtype=torch.bfloat16)
    exact = tiny_model(family, seed=1)
    exact.load_state_dict(model.state_dict())
    error = {
        packed: (decoder.run(next_logprobs(decoder)) - truth).abs().mean()
        for packed in (True, False)
        for decoder in [make(model, pack_weights=packed)]
        for truth in [make(exact, pack_weights=False).run(next_logprobs(make(exact, pack_weights=False)))]
    }
    assert error[True] <= 1.1 * error[False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branchs_bits_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """Alone, beside others, and prefilled in other chunks."""
    model = tiny_model(dtype=dtype)

    async def logprobs(decoder: TreeDecoder, others: int) -> list[torch.Tensor]:
        root = await decoder.root(PROMPT)
        branches = root.fork(1 + others)
        forced = [branch.extend([i + 1, 2, 3]) for i, branch in enumerate(branches)]
        first, *_ = await gather(forced)
        following, *_ = await gather(branch.next_logprobs() for branch in branches)
        return [first, following]

    whole = make(model)
    alone = whole.run(logprobs(whole, 0))
    for others, chunk in [(1, 512), (40, 512), (0, 7), (11, 13)]:
        decoder = make(model, max_batch_tokens=chunk)
        for ours, expected in zip(decoder.run(logprobs(decoder, others)), alone, strict=True):
            assert torch.equal(ours, expected)


def test_steps_draw_the_same_tokens() -> None:
    model = tiny_model()

    async def texts(decoder: TreeDecoder) -> list[list[int]]:
        root = await decoder.root(PROMPT, SamplingParams(max_tokens=30, seed=4))
        branches: list[Branch] = root.fork(5)
        await gather(branch.step() for branch in branches)
        return [branch.tokens for branch in branches]

    packed, plain = make(model), make(model, pack_weights=False)
    assert packed.run(texts(packed)) == plain.run(texts(plain))


@pytest.mark.parametrize("how", ["in place", "replaced", "data", "module"])
def test_weights_that_change_are_packed_again(how: str) -> None:
    model = tiny_model()
    decoder = make(model)
    before = decoder.run(next_logprobs(decoder))
    weight = model.model.layers[1].mlp.up_proj.weight
    if how == "in place":
        with torch.no_grad():
            weight.mul_(1.5)
    elif how == "replaced":
        weight.data = weight.data * 1.5
    elif how == "data":
        weight.data.mul_(1.5)
        decoder = make(model)  # the first one does not see it
    else:
        model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 96, bias=False)
        decoder = make(model)  # nor this
    after = decoder.run(next_logprobs(decoder))
    plain = make(model, pack_weights=False)
    assert not torch.allclose(before, after, atol=1e-2)
    torch.testing.assert_close(after, plain.run(next_logprobs(plain)), atol=2e-4, rtol=0)


def test_decoders_of_a_model_share_what_is_packed_and_it_goes_with_the_model() -> None:
    model = tiny_model()
    first, second = make(model), make(model)
    assert first.runtime.engine.packed is second.runtime.engine.packed
    gone, packed = weakref.ref(model), len(_made)
    del model, first, second
    gc.collect()
    assert gone() is None
    assert len(_made) < packed


class Adapter(torch.nn.Linear):
    """As adapters and quantised layers are: a linear layer of another kind."""


def with_adapter(model: PreTrainedModel) -> None:
    old = model.model.layers[2].self_attn.v_proj
    new = Adapter(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.model.layers[2].self_attn.v_proj = new


class Unpacking(torch.Tensor):
    """As quantised weights are: a tensor that computes its own numbers, in a plain linear layer."""


def with_tensor_of_its_own(model: PreTrainedModel) -> None:
    linear = model.model.layers[2].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Unpacking))


def with_bias(*names: str) -> Callable[[PreTrainedModel], None]:
    """Of these linear layers alone."""

    def add(model: PreTrainedModel) -> None:
        for name in names:
            linear = model.model.layers[1].get_submodule(name)
            linear.bias = torch.nn.Parameter(torch.randn(linear.out_features))

    return add


def with_epsilon(name: str) -> Callable[[PreTrainedModel], None]:
    """Of one norm alone."""

    def change(model: PreTrainedModel) -> None:
        model.model.get_submodule(name).variance_epsilon = 0.5

    return change


ALONE = {
    "q bias": ("llama", with_bias("self_attn.q_proj")),
    "k bias": ("llama", with_bias("self_attn.k_proj")),
    "v bias": ("qwen3", with_bias("self_attn.v_proj")),
    "q and v bias": ("llama", with_bias("self_attn.q_proj", "self_attn.v_proj")),
    "gate bias": ("llama", with_bias("mlp.gate_proj")),
    "up bias": ("llama", with_bias("mlp.up_proj")),
    "input norm": ("llama", with_epsilon("layers.1.input_layernorm")),
    "mlp norm": ("llama", with_epsilon("layers.2.post_attention_layernorm")),
    "final norm": ("llama", with_epsilon("norm")),
    "q norm": ("qwen3", with_epsilon("layers.0.self_attn.q_norm")),
}


@pytest.mark.parametrize("loaded", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("what", ALONE)
def test_what_one_layer_has_alone_counts(what: str, loaded: bool) -> None:
    """loaded: whether the decoder was there before."""
    family, change = ALONE[what]
    model = tiny_model(family)
    if loaded:
        decoder = make(model)
        change(model)
        decoder.weights_changed()
    else:
        change(model)
        decoder = make(model)
    actual = decoder.run(next_logprobs(decoder))
    assert not is_packed(decoder)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "options", "change"),
    [
        ("llama", {"hidden_act": "mish"}, None),
        ("llama", {"intermediate_size": 90}, None),
        ("llama", {}, with_adapter),
        ("llama", {}, with_tensor_of_its_own),
        ("llama", {}, lambda model: model.model.layers[0].mlp.register_forward_hook(lambda *a: None)),
    ],
)
def test_other_models_run_as_transformers_has_them(family: str, options: dict[str, Any], change: Any) -> None:
    model = tiny_model(family, **options)
    if change is not None:
        change(model)
    decoder = make(model)
    assert not is_packed(decoder)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(decoder.run(next_logprobs(decoder)), expected, atol=2e-4, rtol=0)


def test_models_made_in_inference_mode_are_served_without_packing() -> None:
    """Their weights have no version counters, by which changes are seen."""
    with torch.inference_mode():
        model = tiny_model()
    decoder, plain = make(model), make(tiny_model())
    assert not is_packed(decoder)
    expected = plain.run(next_logprobs(plain))
    torch.testing.assert_close(decoder.run(next_logprobs(decoder)), expected, atol=2e-4, rtol=0)


def test_biases_of_attention_are_added() -> None:
    model = tiny_model(attention_bias=True)
    for layer in model.model.layers:
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            torch.nn.init.normal_(getattr(layer.self_attn, projection).bias)
    decoder = make(model)
    assert is_packed(decoder)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(decoder.run(next_logprobs(decoder)), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "names", [("down_proj",), ("gate_proj", "up_proj"), ("gate_proj", "up_proj", "down_proj")]
)
def test_biases_of_the_mlp_are_added(names: tuple[str, ...]) -> None:
    model = tiny_model()
    with_bias(*(f"mlp.{name}" for name in names))(model)
    decoder = make(model)
    assert is_packed(decoder)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(decoder.run(next_logprobs(decoder)), expected, atol=2e-4, rtol=0)


def test_a_class_head_does_not_matter() -> None:
    model = tiny_model(auto=hf.AutoModelForSequenceClassification, num_labels=2)
    packed, plain = make(model), make(model, pack_weights=False)
    assert is_packed(packed)

    async def states(decoder: TreeDecoder) -> torch.Tensor:
        root = await decoder.root(PROMPT)
        return await root.read([1, 2, 3], [0, 1, 2])

    torch.testing.assert_close(packed.run(states(packed)), plain.run(states(plain)), atol=2e-4, rtol=0)
