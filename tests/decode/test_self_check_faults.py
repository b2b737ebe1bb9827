"""The self-check finds small faults of our own paths, and takes no rounding for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from checked_models import DECODER_SHAPE, made, serve
from tiny_models import tiny_model
from tts_decode import UnsupportedModelError
from tts_decode.decoding import assembly
from tts_decode.model import packed_model
from tts_decode.model.agreement import compared_paths, self_check

from tts_kernels import KVPool, PackedWeight

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_tie_are_no_disagreement(dtype: torch.dtype) -> None:
    """Pairs of experts that the router cannot tell apart: rounding alone chooses."""
    config = hf.MixtralConfig(**DECODER_SHAPE, num_local_experts=4, num_experts_per_tok=1)
    model = made(config).to(dtype)
    with torch.no_grad():
        for layer in model.model.layers:
            gate = layer.mlp.gate.weight
            gate[2:] = gate[:2] * (1 + 1e-7)
    found = serve(model).self_check
    assert found is not None
    assert found.paths == ("general", "packed")
    assert found.difference < found.tolerance / 5  # logits of bfloat16 models differ by a tenth


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

    def scaled(*args: Any) -> Any:
        packed = pack(*args)
        return packed._replace(scale=packed.scale * 1.01)

    for module in (packed_model, compared_paths):
        monkeypatch.setattr(module, "pack_layer", scaled)
    with pytest.raises(UnsupportedModelError, match=r"layer 0, at position .* packed path"):
        serve(model)


@pytest.mark.parametrize("part", ["input_norm", "mlp_norm", "q_norm", "o"])
def test_a_part_that_the_packed_path_forgets_is_found_at_initial_weights(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms are all 1 and biases all 0 there, so that leaving them out changes nothing yet."""
    pack = packed_model.pack_layer

    def forgetful(family: Any, layer: Any, call: Any) -> Any:
        packed = pack(family, layer, call)
        if part == "o":
            return packed._replace(o=PackedWeight.pack(layer.self_attn.o_proj.weight.detach()))
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


def test_steps_of_a_gpu_are_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter, on plain pages and work lists."""
    if torch.cuda.is_available():
        device = "cuda"
    else:
        device = "cpu"
        monkeypatch.setattr(assembly, "_runs_on_host", lambda device: False)
    model = made(hf.Gemma2Config(**DECODER_SHAPE, sliding_window=6, query_pre_attn_scalar=32)).to(device)
    assert serve(model, pack_weights=False).self_check is not None
    monkeypatch.setattr(KVPool, "copy", lambda pool, copies: None)
    monkeypatch.setattr(self_check, "_checked", {})
    with pytest.raises(UnsupportedModelError, match="in the step 'fork' of the general path"):
        serve(model, pack_weights=False)
