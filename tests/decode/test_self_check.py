"""A model is served after it was seen to agree with its own forward, and refused where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import EOS, VOCAB, byte_tokenizer, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention
from tts_decode import SamplingParams, TreeDecoder, UnsupportedModelError
from tts_decode.decoding import decoder
from tts_decode.model import packed_model
from tts_decode.model.agreement import compared_paths, self_check

from benches.tiny_architectures import tiny_model as drawn_model
from tts_kernels import KVPool

pytestmark = pytest.mark.usefixtures("one_thread")

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "pad_token_id": 1,
}
_DECODER = _SHAPE | {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512}


def made(config: Any, *, randomised: bool = True) -> PreTrainedModel:
    """randomised: norms, biases and gates too, else as the class initialises them."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    if randomised:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() < 2:
                    weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def serve(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    return TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 23, **options)


def largest_difference(served: TreeDecoder, seed: int = 7) -> float:
    """Of the log-probabilities of 120 tokens, in a forked branch, and those of one plain forward."""
    tokens = torch.randint(2, 250, (120,), generator=torch.Generator().manual_seed(seed))

    async def forced() -> Tensor:
        root = await served.root(tokens[:33].tolist())
        branch = root.fork(1)[0]
        first = await branch.extend(tokens[33:80].tolist())
        return torch.cat([first, *[await branch.extend([token]) for token in tokens[80:].tolist()]])

    got = served.run(forced())
    with torch.no_grad():
        expected = served.model(tokens[None]).logits[0].log_softmax(-1)
    return float((got - expected[32:-1].gather(-1, tokens[33:, None])[:, 0]).abs().max())


# -- what was served wrong


@pytest.mark.parametrize("randomised", [True, False], ids=["trained", "initial"])
def test_doge_is_refused_also_while_its_mask_is_still_nothing(randomised: bool) -> None:
    """Its attention builds a mask from `A`, which begins as 0."""
    model = made(hf.DogeConfig(**_DECODER, keep_window_size=2048), randomised=randomised)
    assert randomised or not model.model.layers[0].self_attn.A.any()
    with pytest.raises(UnsupportedModelError, match="DogeForCausalLM needs an attention mask of its own"):
        serve(model)


_ROBERTAS = (
    hf.RobertaConfig,
    hf.XLMRobertaConfig,
    hf.CamembertConfig,
    hf.Data2VecTextConfig,
    hf.RobertaPreLayerNormConfig,
    hf.XLMRobertaXLConfig,
    lambda **o: hf.XmodConfig(**o, languages=["en"], default_language="en"),
)


@pytest.mark.parametrize("config", _ROBERTAS)
@pytest.mark.parametrize("head", [True, False])
def test_positions_that_begin_elsewhere_are_refused(config: Callable[..., Any], head: bool) -> None:
    model = made(config(**_SHAPE, max_position_embeddings=130, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match=r"the input of layer 0.*positions may not begin at 0"):
        serve(model if head else model.base_model)


def test_bert_whose_positions_begin_at_0_is_served() -> None:
    served = serve(made(hf.BertConfig(**_SHAPE, max_position_embeddings=130, is_decoder=True)))
    assert served.self_check is not None
    assert largest_difference(served) < 1e-3


def llama4(**options: Any) -> PreTrainedModel:
    config = hf.Llama4TextConfig(
        **_DECODER,
        intermediate_size_mlp=64,
        num_local_experts=2,
        layer_types=["full_attention"] * 2,
        no_rope_layers=[1, 0],
        **options,
    )
    return made(config)


@pytest.mark.parametrize("floor_scale", [4, 8192])
def test_llama4_whose_scale_goes_by_the_row_is_refused(floor_scale: int) -> None:
    """At 8192 the scale is 1 in all that a short forward sees."""
    with pytest.raises(UnsupportedModelError, match=r"(counts its rows itself|does not agree)"):
        serve(llama4(attn_temperature_tuning=True, floor_scale=floor_scale))


def test_llama4_without_that_scale_is_served() -> None:
    assert largest_difference(serve(llama4(attn_temperature_tuning=False))) < 1e-3


class OwnMask(LlamaAttention):
    """Adds biases by distance to the mask that it gets, as ALiBi does."""

    def forward(self, hidden_states: Tensor, *args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        rows = torch.arange(hidden_states.shape[1])
        bias = (rows - rows[:, None]).clamp(max=0) / 8.0
        mask = torch.where(rows <= rows[:, None], bias, float("-inf"))[None, None]
        return super().forward(hidden_states, *args, attention_mask=mask, **kwargs)


def test_a_mask_of_its_own_is_refused() -> None:
    model = tiny_model()
    model.model.layers[2].self_attn.__class__ = OwnMask
    with pytest.raises(UnsupportedModelError, match="an attention mask of its own"):
        serve(model)


def test_a_mask_that_comes_later_is_refused_too() -> None:
    served = serve(tiny_model(), pack_weights=False)
    served.model.model.layers[2].self_attn.__class__ = OwnMask
    with pytest.raises(UnsupportedModelError, match="an attention mask of its own"):
        served.run(served.root([1, 2, 3]))


class Shifted(nn.Module):
    """An MLP that mixes each token with the one before it, as token shifts and short convolutions do."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + 0.1 * nn.functional.pad(x, (0, 0, 1, -1)))


def test_what_looks_at_other_tokens_beside_attention_is_refused() -> None:
    model = tiny_model()
    model.model.layers[1].mlp = Shifted(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1, at position .*looks at other tokens"):
        serve(model, pack_weights=False)


# -- what acts on long texts only


def test_windows_that_do_not_reach_the_attention_function_are_refused() -> None:
    """Phi-MoE masks by its window, which is longer than the texts of the check, and hands it to nobody."""
    config = hf.PhimoeConfig(**_DECODER, sliding_window=100, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(UnsupportedModelError, match="a token does not see all before it"):
        serve(made(config))


def test_settings_of_long_texts_that_nobody_knows_are_refused_by_name() -> None:
    config = hf.LlamaConfig(**_DECODER, attention_floor=8192)
    model = made(config)
    with pytest.raises(UnsupportedModelError, match=r"attention_floor = 8192 in its config.*check=False"):
        serve(model)
    assert serve(model, check=False).self_check is None


def test_other_kinds_of_rotary_scaling_are_refused_by_name() -> None:
    model = made(hf.LlamaConfig(**_DECODER))
    model.config.rope_parameters["rope_type"] = "stretched"
    with pytest.raises(UnsupportedModelError, match="rotary scaling of type stretched"):
        serve(model)


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LATE: dict[str, Callable[[], Any]] = {
    "sliding_window": lambda: hf.MistralConfig(**_DECODER, sliding_window=4),
    "sliding_window_pattern": lambda: hf.Gemma3TextConfig(
        **_DECODER, sliding_window=5, sliding_window_pattern=2, query_pre_attn_scalar=32
    ),
    "max_window_layers": lambda: hf.Qwen2Config(
        **_DECODER, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "local_attention": lambda: hf.ModernBertDecoderConfig(**_SHAPE | {"bos_token_id": 2}, local_attention=12),
    "llama_4_scaling_beta": lambda: hf.Ministral3Config(
        **_DECODER, rope_parameters=_YARN | {"rope_theta": 1e4, "llama_4_scaling_beta": 0.5}
    ),
    "linear": lambda: hf.LlamaConfig(
        **_DECODER, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
    "yarn": lambda: hf.LlamaConfig(**_DECODER, rope_parameters=_YARN | {"rope_theta": 1e4}),
    "llama3": lambda: hf.LlamaConfig(
        **_DECODER,
        rope_parameters=_LLAMA3 | {"factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32},
    ),
    "chunk_size_feed_forward": lambda: hf.BertConfig(
        **_SHAPE, max_position_embeddings=130, is_decoder=True, chunk_size_feed_forward=1
    ),
}


@pytest.mark.parametrize("setting", _LATE)
def test_what_is_served_at_all_lengths_is_right_at_low_limits(setting: str) -> None:
    assert largest_difference(serve(made(_LATE[setting]()))) < 1e-3


@pytest.mark.parametrize("model_type", ["cohere2_moe", "gpt_neo"])
def test_windows_of_other_names_are_right_beyond_them(model_type: str) -> None:
    """`prefix_dense_sliding_window_pattern` and `window_size`, with windows of 9 tokens."""
    assert largest_difference(serve(drawn_model(model_type))) < 1e-3


# -- rounding and routing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_tie_are_no_disagreement(dtype: torch.dtype) -> None:
    """Pairs of experts that the router cannot tell apart: rounding alone chooses."""
    config = hf.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=1)
    model = made(config).to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight
            gate[2:] = gate[:2] * (1 + 1e-7)
    found = serve(model).self_check
    assert found is not None
    assert found.difference < found.tolerance / 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_fault_is_found_in_a_large_residual_stream(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scale of 1.01 in one layer's attention, beside hidden states a thousand times larger."""
    model = tiny_model("gemma2", dtype=dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1000)
    assert serve(model).self_check is not None
    attend = KVPool.attend

    def scaled(pool: KVPool, layer: int, *args: Any, scale: float, **options: Any) -> Any:
        return attend(pool, layer, *args, scale=scale * (1.01 if layer == 1 else 1.0), **options)

    monkeypatch.setattr(KVPool, "attend", scaled)
    monkeypatch.setattr(self_check, "_checked", {})
    with pytest.raises(UnsupportedModelError, match=r"layer 1, at position .* general path"):
        serve(model)


def test_a_small_fault_is_found_in_the_packed_path_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1000)
    pack = packed_model.pack_layer

    def scaled(layer: Any, window: int | None) -> Any:
        packed = pack(layer, window)
        return packed._replace(scale=packed.scale * 1.01)

    for module in (packed_model, compared_paths):
        monkeypatch.setattr(module, "pack_layer", scaled)
    with pytest.raises(UnsupportedModelError, match=r"layer 0, at position .* packed path"):
        serve(model)


# -- faults in our own paths


@pytest.mark.parametrize("part", ["input_norm", "mlp_norm", "q_norm", "o"])
def test_a_part_that_the_packed_path_forgets_is_found_at_initial_weights(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are all 1 and biases all 0 there, so that leaving them out changes nothing yet."""
    pack = packed_model.pack_layer

    def forgetful(layer: Any, window: int | None) -> Any:
        packed = pack(layer, window)
        if part == "o":
            return packed._replace(o=packed_model.PackedWeight.pack(layer.self_attn.o_proj.weight.detach()))
        return packed._replace(**{part: torch.ones_like(getattr(packed, part))})

    for module in (packed_model, compared_paths):
        monkeypatch.setattr(module, "pack_layer", forgetful)
    model = tiny_model("qwen3" if part == "q_norm" else "llama", attention_bias=True)
    with pytest.raises(UnsupportedModelError, match=r"layer 0, at position .* packed path"):
        serve(model)


@pytest.mark.parametrize("packed", [True, False])
def test_pages_that_are_not_copied_at_a_fork_are_found(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVPool, "copy", lambda pool, copies: None)
    with pytest.raises(UnsupportedModelError, match="in the step 'fork' of the"):
        serve(tiny_model(), pack_weights=packed)


def test_windows_that_our_attention_ignores_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = KVPool.attend
    monkeypatch.setattr(
        KVPool, "attend", lambda pool, *args, window, **options: attend(pool, *args, window=None, **options)
    )
    with pytest.raises(UnsupportedModelError, match=r"layer 0, at position \d+ in the step 'prefill"):
        serve(tiny_model("gemma3"))


# -- what a check leaves, and when it runs


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
    model = made(hf.RobertaConfig(**_SHAPE, max_position_embeddings=130, is_decoder=True), randomised=False)
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
    model = hf.RobertaModel(hf.RobertaConfig(**_SHAPE, max_position_embeddings=130, is_decoder=True))
    with pytest.raises(UnsupportedModelError, match="the input of layer 0"):
        serve(model)


def test_check_false_serves_what_would_be_refused() -> None:
    model = made(hf.RobertaConfig(**_SHAPE, max_position_embeddings=130, is_decoder=True))
    served = serve(model, check=False)
    assert served.self_check is None
    assert largest_difference(served) > 0.1


def test_weights_that_are_nan_are_named() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3] = torch.nan
    with pytest.raises(UnsupportedModelError, match="its own forward has NaN or inf in the input of layer 2"):
        serve(model)


def test_steps_of_a_gpu_are_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, on plain pages and work lists."""
    if torch.cuda.is_available():
        device = "cuda"
    else:
        device = "cpu"
        monkeypatch.setattr(decoder, "_runs_on_host", lambda device: False)
    model = made(hf.Gemma2Config(**_DECODER, sliding_window=6, query_pre_attn_scalar=32)).to(device)
    assert serve(model).self_check is not None
    monkeypatch.setattr(KVPool, "copy", lambda pool, copies: None)
    monkeypatch.setattr(self_check, "_checked", {})
    with pytest.raises(UnsupportedModelError, match="in the step 'fork' of the general path"):
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
