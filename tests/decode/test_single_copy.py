"""Loaded float models whose packed weights are the only copy: numbers, memory, weights that come back."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from primitives import PROMPT, make
from tiny_models import FAMILIES, byte_tokenizer, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from tts_decode import TreeDecoder
from tts_decode.errors import ModelLoadError, UnsupportedModelError
from tts_decode.model import memory
from tts_decode.model.agreement.self_check import check_agreement
from tts_decode.model.footprint import packed_bytes, weight_bytes
from tts_decode.model.loading import load_model
from tts_decode.model.packed_modules import Packed, PackedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[5, 80, 17, 200, 33, 9]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def saved(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model that was saved; its norms are not the ones that they are made as."""
    model = tiny_model(family, dtype=dtype, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def packed_from(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model, _ = load_model(folder, dtype, pack_weights=True)
    return model


def packed_modules(model: nn.Module) -> Iterator[Packed]:
    return (module for module in model.modules() if isinstance(module, Packed))


def is_packed(decoder: TreeDecoder) -> bool:
    return decoder.runtime.engine.packed is not None


def next_logprobs(decoder: TreeDecoder) -> Tensor:
    async def ask() -> Tensor:
        root = await decoder.root(PROMPT)
        await root.extend([7, 8, 9])
        try:
            return await root.next_logprobs()
        finally:
            root.release()

    return decoder.run(ask())


def plain_logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_has_the_bits_of_one_that_was_packed_beside_its_own(
    family: str, dtype: torch.dtype, folder: Path
) -> None:
    model = saved(folder, family, dtype)
    loaded = packed_from(folder, dtype)
    decoder = make(loaded)
    assert is_packed(decoder)
    assert torch.equal(next_logprobs(decoder), next_logprobs(make(model)))
    torch.testing.assert_close(
        plain_logits(loaded), plain_logits(model), rtol=0, atol=1e-3 if dtype == torch.float32 else 0.5
    )
    if dtype == torch.float32:
        packed = [m for n, m in loaded.named_modules() if n.endswith(("_proj", "experts"))]
        assert all(isinstance(module, Packed) for module in packed)
    engine = decoder.runtime.engine
    ours, theirs = (sum(weight_bytes(one).values()) for one in (loaded, model))
    assert ours + packed_bytes(loaded, engine.packed) <= 1.02 * theirs
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert not list(packed_modules(loaded))


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_that_is_asked_for_is_a_parameter_again(folder: Path, tied: bool) -> None:
    model = saved(folder, tie_word_embeddings=tied)
    loaded = packed_from(folder)
    decoder = make(loaded)
    before = next_logprobs(decoder)
    o_proj = loaded.model.layers[0].self_attn.o_proj
    assert type(o_proj) is PackedLinear
    assert torch.equal(o_proj.weight, model.model.layers[0].self_attn.o_proj.weight)
    assert type(o_proj) is nn.Linear
    assert torch.equal(next_logprobs(decoder), before)
    with torch.no_grad():
        for one in (loaded, model):
            one.model.layers[0].self_attn.o_proj.weight.mul_(2)
            one.lm_head.weight.add_(0.01)
    assert (loaded.model.embed_tokens.weight is loaded.lm_head.weight) is tied
    assert torch.equal(next_logprobs(decoder), next_logprobs(make(model)))
    assert not torch.equal(next_logprobs(decoder), before)


def test_tables_follow_a_tied_head_that_has_its_weight_back(folder: Path) -> None:
    saved(folder, tie_word_embeddings=True)
    loaded = packed_from(folder)
    with torch.no_grad():
        loaded.lm_head.weight.zero_()
    assert loaded.lm_head.weight is dict(loaded.model.embed_tokens.named_parameters())["weight"]
    assert not loaded.model.embed_tokens(IDS).any()


def test_generate_of_transformers_leaves_the_weights_packed(folder: Path) -> None:
    model = saved(folder)
    loaded = packed_from(folder)
    before = len(list(packed_modules(loaded)))
    texts = [one.generate(IDS, max_new_tokens=8, do_sample=False) for one in (loaded, model)]
    assert torch.equal(*texts)
    assert len(list(packed_modules(loaded))) == before > 0


def test_the_general_path_runs_over_modules_of_transformers(folder: Path) -> None:
    model = saved(folder)
    loaded = packed_from(folder)
    decoder = make(loaded, pack_weights=False)
    assert not list(packed_modules(loaded))
    assert torch.equal(next_logprobs(decoder), next_logprobs(make(model, pack_weights=False)))
    plain, _ = load_model(folder, "float32")
    assert not list(packed_modules(plain))
    assert all(weight.requires_grad for weight in plain.parameters())
    from_name = TreeDecoder.from_pretrained(folder, "float32", pack_weights=False, kv_bytes=1 << 22)
    assert not list(packed_modules(from_name.model))


def test_training_is_refused_by_name_and_a_gradient_finds_the_weights(folder: Path) -> None:
    model = saved(folder)
    loaded = packed_from(folder)
    with pytest.raises(
        UnsupportedModelError, match=r"expected weights that are packed .*without pack_weights"
    ):
        loaded.train()
    inputs = torch.randn(1, 4, 64, requires_grad=True)
    gradients = [
        torch.autograd.grad(one(inputs_embeds=inputs).logits.sum(), inputs)[0] for one in (loaded, model)
    ]
    torch.testing.assert_close(*gradients)


def test_a_packed_layer_takes_what_a_linear_layer_takes(folder: Path) -> None:
    model = saved(folder)
    layer, plain = (one.model.layers[0].self_attn.q_proj for one in (packed_from(folder), model))
    inputs = torch.randn(2, 64, 3).mT
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), plain(inputs))
        torch.testing.assert_close(layer(inputs[0, 0]), plain(inputs[0, 0]))
    with pytest.raises(ValueError, match=r"input: got shape \[2, 3, 63\], expected \[..., 64\]"):
        layer(inputs[..., :63])


@pytest.mark.parametrize("value", [None, "no", 1])
def test_pack_weights_is_a_flag(folder: Path, value: Any) -> None:
    saved(folder)
    with pytest.raises(TypeError, match="pack_weights"):
        load_model(folder, pack_weights=value)


def test_a_model_that_is_handed_over_keeps_its_modules() -> None:
    model = tiny_model()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    assert is_packed(make(model))
    assert not list(packed_modules(model))
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())


def test_casts_and_copies(folder: Path) -> None:
    model = saved(folder)
    loaded = packed_from(folder)
    other = copy.deepcopy(loaded)
    other.bfloat16()
    assert not list(packed_modules(other))
    assert torch.equal(other.lm_head.weight, model.lm_head.weight.bfloat16())
    loaded.float()
    assert list(packed_modules(loaded))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", ["o", "qkv", "head"])
def test_the_self_check_finds_panels_that_are_not_the_modules(folder: Path, dtype: str, what: str) -> None:
    """Numbers that the kernels read are changed behind the modules' own."""
    saved(folder)
    loaded = packed_from(folder, dtype)
    decoder = make(loaded, check=False)
    packed: Any = decoder.runtime.engine.packed
    weights = {"o": packed.layers[1].o, "qkv": packed.layers[1].qkv[1], "head": packed.head}
    if dtype == "bfloat16" and what != "head":
        pytest.skip("layers are compared in float32, packed for that moment")
    module = (
        loaded.lm_head if what == "head" else getattr(loaded.model.layers[1].self_attn, f"{what[0]}_proj")
    )
    if what == "qkv":
        module = loaded.model.layers[1].self_attn.k_proj
    module.register_buffer("weight_panels", weights[what].panels.clone(), persistent=False)
    weights[what].panels.mul_(1.5)
    with pytest.raises(UnsupportedModelError, match="differ"):
        check_agreement(decoder.runtime.engine, on_host=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_check_leaves_constant_panels_as_they_are(folder: Path, dtype: torch.dtype) -> None:
    """It moves them for its own time, so that they hide nothing."""
    model = saved(folder, dtype=dtype)
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()
    model.save_pretrained(folder)
    loaded = packed_from(folder, dtype)
    before = [module.weight_panels for module in packed_modules(loaded)]
    make(loaded)
    assert all(
        module.weight_panels is own for module, own in zip(packed_modules(loaded), before, strict=True)
    )
    assert not loaded.model.layers[1].self_attn.o_proj.weight_panels.any()
    assert not any(module.exact for module in packed_modules(loaded))


_MEASURED = """
import ctypes, gc, json, sys, torch, transformers
from transformers.models.llama import modeling_llama
from tts_decode import TreeDecoder
from tts_decode.model.loading import load_model

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

# What modules and caches take:
TreeDecoder(*load_model(sys.argv[1], "float32", pack_weights=True), kv_bytes=1 << 20)
before = kilobytes("VmRSS")
model, tokenizer = load_model(sys.argv[2], sys.argv[3], pack_weights=True)
loaded = kilobytes("VmHWM")
decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 20)
assert decoder.runtime.engine.packed is not None
peak = kilobytes("VmHWM")
gc.collect()
if hasattr(ctypes.CDLL(None), "malloc_trim"):
    ctypes.CDLL(None).malloc_trim(0)  # else RSS has what the allocator kept for later, more or less of it
print(json.dumps([before, loaded, peak, kilobytes("VmRSS")]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_in_memory_once_while_they_are_loaded_and_after(
    folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    saved(tmp_path / "small")
    config = hf.LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=10 if dtype == torch.float32 else 20,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=512,
        tie_word_embeddings=True,
    )
    model = hf.LlamaForCausalLM(config)
    model.save_pretrained(folder)  # in float32: the model in bfloat16 is half of its file
    byte_tokenizer().save_pretrained(folder)
    size = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    assert size > 100e6
    name = str(dtype).removeprefix("torch.")
    made = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(tmp_path / "small"), str(folder), name],
        check=True,
        capture_output=True,
        text=True,
        timeout=240,
    )
    before, loaded, peak, stays = (1024 * kilobytes for kilobytes in json.loads(made.stdout))
    assert loaded - before < 1.2 * size
    assert peak - before < 1.2 * size + 64e6  # of the self-check: a layer in float32, torch's scratch
    assert stays - before < 1.2 * size + 32e6


def test_a_folder_that_memory_does_not_hold_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(folder)
    size = 4 * sum(weight.numel() for weight in model.parameters())
    (folder / "model.safetensors").write_bytes(b"not read")
    monkeypatch.setattr(memory, "memory_bytes", lambda: 40960)
    with pytest.raises(ModelLoadError, match=rf"takes {size / 1e9:.2f} GB .* has 0.00 GB"):
        load_model(folder, "float32")
