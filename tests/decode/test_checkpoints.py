"""Checkpoints of GPTQ, AWQ and compressed-tensors: each weight is read as its format says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from saved_checkpoints import Layer, Saved, awq, compressed, gptq, int_quantized, neighbours, pack_quantized
from tiny_models import greedy
from torch import Tensor
from transformers import PreTrainedModel
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.model.loading import load_model
from tts_decode.model.quantised_modules import QuantisedLinear

GPTQ4 = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
AWQ4 = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
BY_GROUP = {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": False}
BY_ROW = {"num_bits": 8, "strategy": "channel", "group_size": None, "symmetric": True}
EACH_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}

CASES = {
    "gptq": Saved(4, 32, gptq, GPTQ4),
    "gptq, symmetric": Saved(4, 64, gptq, GPTQ4 | {"group_size": 64, "sym": True}, symmetric=True),
    "gptq, whole rows": Saved(4, -1, gptq, GPTQ4 | {"group_size": -1, "desc_act": True}),
    "gptq, 8 bits": Saved(8, 32, gptq, GPTQ4 | {"bits": 8}),
    "gptq_v2": Saved(4, 32, lambda x: gptq(x, v1=False), GPTQ4 | {"checkpoint_format": "gptq_v2"}),
    "gptq, biases": Saved(4, 32, gptq, GPTQ4, family="qwen2"),
    "gptq, bfloat16": Saved(4, 32, gptq, GPTQ4, scales=torch.bfloat16),
    "gptq, act-order": Saved(4, 32, gptq, GPTQ4 | {"desc_act": True}, act_order=True),
    "gptq, act-order, 8 bits, symmetric": Saved(
        8,
        32,
        gptq,
        GPTQ4 | {"bits": 8, "sym": True, "desc_act": True},
        symmetric=True,
        act_order=True,
        family="qwen2",
    ),
    "awq": Saved(4, 64, awq, AWQ4),
    "awq, whole rows": Saved(4, -1, awq, AWQ4 | {"group_size": -1, "version": "GEMM"}),
    "packed": Saved(4, 64, pack_quantized, compressed("pack-quantized", BY_GROUP)),
    "packed, symmetric": Saved(
        4,
        64,
        lambda x: pack_quantized(x, symmetric=True),
        compressed("pack-quantized", BY_GROUP | {"symmetric": True}),
        symmetric=True,
    ),
    "packed, act-order": Saved(
        4,
        32,
        lambda x: pack_quantized(x) | {"weight_g_idx": torch.from_numpy(x.group_of)},
        compressed("pack-quantized", BY_GROUP | {"group_size": 32, "actorder": "group"}),
        act_order=True,
    ),
    "packed, g_idx not set": Saved(
        4,
        32,
        lambda x: pack_quantized(x) | {"weight_g_idx": torch.full((x.u.shape[1],), -1)},
        compressed("pack-quantized", BY_GROUP | {"group_size": 32}),
    ),
    "packed, 8 bits, rows": Saved(
        8,
        -1,
        pack_quantized,
        compressed("pack-quantized", BY_ROW | {"symmetric": False}),
        scales=torch.float32,
    ),
    "int8": Saved(
        8,
        -1,
        int_quantized,
        compressed("int-quantized", BY_ROW, EACH_TOKEN),
        symmetric=True,
        scales=torch.bfloat16,
    ),
    "int8, zero points": Saved(
        8,
        -1,
        lambda x: int_quantized(x, symmetric=False),
        compressed("naive-quantized", BY_ROW | {"symmetric": False}),
        scales=torch.float32,
    ),
    "int8, one scale": Saved(
        8,
        -1,
        lambda x: int_quantized(x) | {"weight_scale": x.scale[:1, 0]},
        compressed("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": True}),
        symmetric=True,
        one_scale=True,
    ),
    "int4 in bytes": Saved(
        4,
        64,
        lambda x: int_quantized(x, symmetric=False),
        compressed("int-quantized", BY_GROUP),
    ),
    "tied": Saved(4, 32, gptq, GPTQ4, options={"tie_word_embeddings": True}),
}


def with_head(tensors: dict[str, Tensor]) -> None:
    """Of zeros, but for token 7."""
    u = np.full((264, 64), 8, np.uint8)
    u[7] = 15
    head = Layer(u, np.full((264, 2), 8, np.uint8), torch.ones(264, 2).half(), 4, neighbours(64, 2))
    tensors |= {f"lm_head.{name}": value for name, value in gptq(head).items()}


def test_a_head_of_its_own_beside_a_config_that_ties_it(tmp_path: Path) -> None:
    options = {"tie_word_embeddings": True, "vocab_size": 264}
    expected = Saved(4, 32, gptq, GPTQ4, options=options).write(tmp_path, with_head)
    loaded, _ = load_model(tmp_path, "float32", weights="file")
    assert not loaded.config.tie_word_embeddings
    assert loaded.lm_head.dequantised().nonzero()[:, 0].unique().tolist() == [7]
    assert torch.equal(loaded.get_input_embeddings().weight, expected.get_input_embeddings().weight)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


def layers(model: PreTrainedModel) -> dict[str, QuantisedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}


@pytest.mark.parametrize("case", CASES)
def test_each_weight_is_what_the_format_says(case: str, tmp_path: Path) -> None:
    expected = CASES[case].write(tmp_path)
    loaded, tokenizer = load_model(tmp_path, "float32", weights="file")
    assert tokenizer("hello").input_ids == list(b"hello")
    found = layers(loaded)
    assert len(found) == 7 * 3
    for name, module in expected.named_modules():
        if name in found:
            assert torch.equal(found[name].dequantised(), module.weight), name
            has = None if module.bias is None else module.bias
            bias = None if found[name].bias is None else found[name].bias[: module.out_features]
            assert (has is None and bias is None) or torch.equal(bias, has)
    for name, value in expected.named_parameters():
        if name.rpartition(".")[0] not in found:
            assert torch.equal(loaded.get_parameter(name), value), name
    # Beside int8 activations logits are near, and would be far with any layer misread.
    difference = (logits(loaded).double() - logits(expected).double()).norm()
    assert difference < 0.25 * logits(expected).norm()


@pytest.mark.parametrize("case", ["gptq", "gptq, biases", "gptq, act-order", "awq", "int8"])
def test_dequantised(case: str, tmp_path: Path) -> None:
    expected = CASES[case].write(tmp_path)
    loaded, _ = load_model(tmp_path, weights="float32")
    assert not layers(loaded)
    assert torch.equal(logits(loaded), logits(expected))


@pytest.mark.parametrize("case", ["gptq", "gptq, act-order", "awq", "int8", "tied"])
def test_the_packed_path_serves_it(case: str, tmp_path: Path) -> None:
    """As transformers' own generate runs over the same modules."""
    CASES[case].write(tmp_path)
    model, tokenizer = load_model(tmp_path, "float32", weights="file")
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22, sampling=SamplingParams(temperature=0.0))
    assert decoder.runtime.engine.packed is not None

    async def run() -> list[int]:
        branch = await decoder.root("some text")
        step = await branch.step(max_tokens=6)
        branch.release()
        return list(step.tokens)

    assert asyncio.run(run()) == greedy(model, list(b"some text"), 6)
