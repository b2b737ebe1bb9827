"""Greedy text equals `model.generate` in float32 for every family; unserved features are refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import FAMILIES, GENERAL, VOCAB, byte_tokenizer, greedy, tiny_model
from tts_decode import Branch, SamplingParams, TreeDecoder, UnsupportedModelError
from tts_decode.model.hf import HFEngine

pytestmark = pytest.mark.usefixtures("one_thread")
KV_BYTES = 1 << 24


async def greedy_branch(decoder: TreeDecoder, prompt: list[int], max_tokens: int) -> Branch:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, max_step_tokens=7)
    branch = await decoder.root(prompt, params)
    while not branch.finished:
        await branch.step()
    return branch


@pytest.mark.parametrize("family", FAMILIES + GENERAL)
@pytest.mark.parametrize("max_batch_tokens", [512, 11])
def test_greedy_equals_generate(family: str, max_batch_tokens: int) -> None:
    """Prompts of several lengths in one batch, beyond every sliding window, also when prefilled in chunks."""
    model = tiny_model(family)
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=KV_BYTES, max_batch_tokens=max_batch_tokens)
    rng = random.Random(0)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in (1, 5, 16, 33, 50)]
    branches = decoder.run_all([greedy_branch(decoder, prompt, 40) for prompt in prompts])
    varied = 0
    for prompt, branch in zip(prompts, branches, strict=True):
        expected = greedy(model, prompt, 40)
        assert branch.tokens == prompt + expected
        varied += len(set(expected)) > 8
    assert varied >= 3  # a model that repeats one token would prove little


@pytest.mark.parametrize("family", FAMILIES + GENERAL)
def test_logits_equal_the_models_own(family: str) -> None:
    """Log-probabilities of forced text and of the next token against one plain forward."""
    model = tiny_model(family, seed=3)
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=KV_BYTES)
    tokens = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(1)).tolist()

    async def forced() -> tuple[torch.Tensor, torch.Tensor]:
        branch = await decoder.root(tokens[:20])
        return await branch.extend(tokens[20:]), await branch.next_logprobs()

    logprobs, following = decoder.run(forced())
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    picked = expected[19:-1].gather(-1, torch.tensor(tokens[20:])[:, None])[:, 0]
    # float32 sums in another order: the logits are of order 10
    torch.testing.assert_close(logprobs, picked, atol=2e-4, rtol=0)
    torch.testing.assert_close(following, expected[-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_bfloat16_stays_close(family: str) -> None:
    model = tiny_model(family, dtype=torch.bfloat16)
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=KV_BYTES)
    tokens = list(range(40, 90))

    async def following() -> torch.Tensor:
        return await (await decoder.root(tokens)).next_logprobs()

    got = decoder.run(following())
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0, -1].float().log_softmax(-1)
        exact = tiny_model(family)(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
    # Ours may be as far from the float32 model as the model's own bfloat16 forward, but for a factor of 2.
    assert (got - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_the_model_still_generates_and_keeps_its_settings() -> None:
    model = tiny_model()
    before = model.config._attn_implementation
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=KV_BYTES)
    first = greedy(model, [1, 2, 3], 10)
    branch = decoder.run(greedy_branch(decoder, [1, 2, 3], 10))
    assert branch.tokens[3:] == first
    assert greedy(model, [1, 2, 3], 10) == first
    assert model.config._attn_implementation == before


def test_attention_without_a_decoder_is_an_error() -> None:
    model = tiny_model()
    HFEngine(model)
    model.set_attn_implementation("tts_tree")
    with pytest.raises(RuntimeError, match="runs under TreeDecoder only"):
        model(torch.tensor([[1, 2]]))


_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_FALCON = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "feature"),
    [
        (hf.DeepseekV3Config(**_SMALL, **_MLA, first_k_dense_replace=2), "multi-head latent attention"),
        (hf.Qwen3NextConfig(**_SMALL, head_dim=32, num_experts=2), "linear-attention or state-space layers"),
        (hf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2), "state-space layers"),
        (hf.FalconConfig(**_FALCON, alibi=True), "ALiBi positions rounded to bfloat16"),
        (hf.Gemma3TextConfig(**_SMALL, head_dim=32, use_bidirectional_attention=True), "bidirectional"),
        (hf.LlamaConfig(**_SMALL, head_dim=272), "head_dim 272"),
        (
            hf.Qwen2Config(**_SMALL, rope_parameters={"mrope_section": [8, 4, 4], "rope_theta": 1e4}),
            "M-RoPE",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value.replace(" ", "_"),
)  # fmt: skip
def test_unserved_features_are_refused_by_name(config: Any, feature: str) -> None:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModelError, match=feature):
        TreeDecoder(model, byte_tokenizer(), kv_bytes=KV_BYTES)
    assert model.config._attn_implementation == before


def test_encoder_decoders_are_refused() -> None:
    shape = {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    }
    config = hf.BartConfig(
        vocab_size=VOCAB, encoder_attention_heads=2, decoder_attention_heads=2, pad_token_id=1, **shape
    )
    with pytest.raises(UnsupportedModelError, match=r"encoder-decoder \(cross-attention\)"):
        TreeDecoder(hf.BartForConditionalGeneration(config), byte_tokenizer(), kv_bytes=KV_BYTES)


def test_other_dtypes_devices_and_objects_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r'load it with dtype="float32"'):
        TreeDecoder(tiny_model(dtype=torch.float16), byte_tokenizer(), kv_bytes=KV_BYTES)
    with pytest.raises(UnsupportedModelError, match="on the CPU or on one GPU, got meta"):
        TreeDecoder(tiny_model().to("meta"), byte_tokenizer(), kv_bytes=KV_BYTES)
    with pytest.raises(
        TypeError, match="model: got Linear, expected a causal language model of transformers"
    ):
        TreeDecoder(torch.nn.Linear(2, 2), byte_tokenizer(), kv_bytes=KV_BYTES)
    with pytest.raises(TypeError, match="tokenizer: got NoneType, expected one of transformers"):
        TreeDecoder(tiny_model(), None, kv_bytes=KV_BYTES)
