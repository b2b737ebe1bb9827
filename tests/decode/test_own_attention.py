"""Models whose attention code does not go through AttentionInterface, or whose layers drop its arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer
from tts_decode import TreeDecoder

from benches.model_table import TOLERANCE, largest_difference
from benches.tiny_architectures import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("falcon", {"multi_query": True, "parallel_attn": True}),
        ("falcon", {"multi_query": True, "parallel_attn": False, "bias": True}),
        ("falcon", {"multi_query": False, "num_kv_heads": 4, "parallel_attn": True}),
        # num_kv_heads holds for neither of these layouts, and transformers does not read it
        ("falcon", {"multi_query": True, "num_kv_heads": 2}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 1}),
        ("falcon", {"multi_query": True, "hidden_size": 352, "num_attention_heads": 11}),
        ("stablelm", {}),
        ("stablelm", {"qk_layernorm": True}),
        ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": True, "num_key_value_heads": 1}),
        ("stablelm", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.0}}),
        ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 5}),
        ("gpt_neo", {"attention_types": [[["local"], 2]], "window_size": 1}),
        ("gpt_neo", {"attention_types": [[["global"], 2]]}),
        ("nemotron", {}),
        ("gemma3n_text", {"num_kv_shared_layers": 2}),
        ("biogpt", {}),
        ("roc_bert", {}),
        ("whisper", {}),
        ("lfm2", {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}),
        (
            "granitemoehybrid",
            {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "num_local_experts": 0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_numbers_are_those_of_the_models_own_forward(model_type: str, options: dict[str, Any]) -> None:
    assert largest_difference(tiny_model(model_type, seed=1, options=options)) < TOLERANCE


@pytest.mark.parametrize("model_type", ["falcon", "gpt_neo"])
def test_the_model_is_its_own_again_after_each_step(model_type: str) -> None:
    """Also where a module has a forward that is not of its class (of hooks), and after a step that failed."""
    model = tiny_model(model_type)
    attention = next(
        m for m in model.modules() if type(m).__name__ in ("FalconAttention", "GPTNeoSelfAttention")
    )
    ids = torch.tensor([[3, 4, 5]])
    plain = model(ids).logits
    hooked = attention.forward
    attention.forward = hooked
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 23)

    async def step() -> None:
        await (await decoder.root([3, 4, 5])).next_logprobs()

    decoder.run(step())
    assert attention.__dict__["forward"] is hooked
    assert sum("forward" in module.__dict__ for module in model.modules()) == 1
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=0)

    failing = False

    def fail(*_: Any) -> None:
        if failing:
            raise RuntimeError("no head today")

    handle = model.get_output_embeddings().register_forward_pre_hook(fail)
    decoder.run(step())  # which sees the hook and looks at the model anew
    failing = True
    with pytest.raises(RuntimeError, match="no head today"):
        decoder.run(step())
    handle.remove()
    assert attention.__dict__["forward"] is hooked
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=0)
