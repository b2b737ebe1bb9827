"""Saved mixtures: float experts are read one by one, quantised ones stay so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import Saved, awq, compressed, gptq, pack_quantized
from saved_mixtures import CONFIGS, PARTS, expert_weights, published, save_mixture, save_mxfp4
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from tts_decode import TreeDecoder
from tts_decode.errors import ModelLoadError
from tts_decode.model import loading
from tts_decode.model.families.conditions import why_general
from tts_decode.model.loading import load_model
from tts_decode.model.quantised_experts import QuantisedExperts
from tts_decode.model.quantised_modules import QuantisedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = tuple(family for family in CONFIGS if family != "gpt_oss")
IDS = torch.arange(3, 40)[None]
WEIGHTS = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}
FORMATS = {
    "gptq": Saved(4, 32, gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}),
    "awq": Saved(4, 32, awq, {"quant_method": "awq", "bits": 4, "group_size": 32}),
    "compressed": Saved(4, 32, pack_quantized, compressed("pack-quantized", WEIGHTS)),
}
ROUNDING = 0.1  # what int8 activations lose, in relation to the logits


@pytest.fixture(autouse=True)
def by_our_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise AssertionError("loaded by transformers")

    monkeypatch.setattr(loading, "_load_whole", refuse)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def share(got: Tensor, expected: Tensor) -> float:
    return float(((got - expected).norm() / expected.norm()).detach())


def weights_in(model: Any) -> dict[str, Tensor]:
    """Of quantised experts, by the names of their layers."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantisedExperts):
            for part, own in zip(PARTS, (module.gate, module.up, module.down), strict=True):
                for index, weight in enumerate(own.dequantised().chunk(module.num_experts)):
                    found[f"{name}.{index}.{part}"] = weight
    return found


def served(model: Any, tokenizer: Any) -> Tensor:
    """Log-probabilities behind the tokens, from a decoder that has checked itself."""
    assert why_general(model) is None
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 22)
    assert decoder.runtime.engine.packed is not None

    async def ask() -> Tensor:
        root = await decoder.root(IDS[0].tolist())
        return await root.next_logprobs()

    return decoder.run(ask())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float_experts(family: str, dtype: str, tmp_path: Path) -> None:
    expected = save_mixture(tmp_path, family).to(getattr(torch, dtype))
    model, tokenizer = load_model(tmp_path, dtype)
    assert type(model) is type(expected)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    packed, _ = load_model(tmp_path, dtype, pack_weights=True)
    last = logits(expected)[0, -1].log_softmax(-1)
    assert share(served(packed, tokenizer), last) < (1e-4 if dtype == "float32" else 0.03)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMATS)
def test_quantised_experts_stay(family: str, form: str, tmp_path: Path) -> None:
    expected = save_mixture(tmp_path, family, FORMATS[form])
    model, tokenizer = load_model(tmp_path, "float32", weights="file")
    found = weights_in(model)
    for name, weight in expert_weights(expected).items():
        assert torch.equal(found.pop(name), weight), name
    assert not found
    assert share(logits(model), logits(expected)) < ROUNDING
    assert share(served(model, tokenizer), logits(expected)[0, -1].log_softmax(-1)) < ROUNDING
    plain, _ = load_model(tmp_path, weights="float32")
    for name, value in expected.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("weights", "most"), [("int8", 0.01), ("int4", 0.12)])
def test_experts_are_rounded(family: str, weights: str, most: float, tmp_path: Path) -> None:
    expected = save_mixture(tmp_path, family)
    model, tokenizer = load_model(tmp_path, "float32", weights=weights)
    found = weights_in(model)
    for name, weight in expert_weights(expected).items():
        assert 0 < share(found.pop(name), weight) < most, name
    assert not found
    assert share(served(model, tokenizer), logits(model)[0, -1].log_softmax(-1)) < ROUNDING


def test_experts_of_which_only_some_layers_can_be_rounded_stay_floats(tmp_path: Path) -> None:
    """Groups of 32 divide the 64 inputs of `gate` and `up`, and not the 48 of `down`."""
    expected = tiny_model("qwen3_moe")
    expected.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, "float32", weights="int8")
    for name, weight in expected.named_parameters():
        if ".experts." in name:
            assert torch.equal(model.get_parameter(name), weight), name
    assert any(isinstance(module, QuantisedLinear) for module in model.modules())


def scaled(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name][0, 0] = torch.nan


GATE = published("model.layers.1.mlp.experts.2.gate_proj.", "mixtral")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{GATE}scales"), r"experts\.2\.gate_proj\.scales"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith(GATE)],
            r"no quantised weight model\.layers\.1\.mlp\.experts\.2\.gate_proj",
        ),
        (lambda t: scaled(t, f"{GATE}scales"), "expected finite numbers"),
        (lambda t: t.update({f"{GATE}qweight": t[f"{GATE}qweight"][1:]}), re.escape(f"{GATE}qweight: got")),
        (lambda t: t.update({f"{GATE}scales": t[f"{GATE}scales"].float()}), "in several forms"),
        (
            lambda t: t.update({GATE.replace(".2.", ".9.") + "qweight": t[f"{GATE}qweight"]}),
            r"experts\.9\.gate_proj",
        ),
    ],
)
def test_damaged_experts(change: Any, message: str, tmp_path: Path) -> None:
    save_mixture(tmp_path, "mixtral", FORMATS["gptq"], change)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path, "float32", weights="file")


def test_act_order_of_experts_is_served_as_floats(tmp_path: Path) -> None:
    expected = save_mixture(tmp_path, "mixtral", replace(FORMATS["gptq"], act_order=True))
    with pytest.raises(
        ModelLoadError, match=r"experts\.0\.\w+_proj .*\(act-order, desc_act\).*weights='float32'"
    ):
        load_model(tmp_path, "float32", weights="file")
    plain, _ = load_model(tmp_path, weights="float32")
    for name, value in expected.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name


def dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers does it: [experts, inputs, outputs], with gate and up alternating."""
    stems = [name.removesuffix("_blocks") for name in tensors if name.endswith("_blocks")]
    return {
        stem: convert_moe_packed_tensors(
            tensors[f"{stem}_blocks"], tensors[f"{stem}_scales"], dtype=torch.float32
        )
        for stem in stems
    }


def test_experts_of_gpt_oss_stay_in_mxfp4(tmp_path: Path) -> None:
    expected = dequantised(save_mxfp4(tmp_path))
    model, tokenizer = load_model(tmp_path, "float32", weights="file")
    for name, module in model.named_modules():
        if not isinstance(module, QuantisedExperts):
            continue
        assert module.gate.kind == "MXFP4"
        gate, up, down = (
            own.dequantised().view(module.num_experts, -1, own.quantised.inputs)
            for own in (module.gate, module.up, module.down)
        )
        both = expected.pop(f"{name}.gate_up_proj")
        assert torch.equal(gate, both[..., ::2].transpose(1, 2))
        assert torch.equal(up, both[..., 1::2].transpose(1, 2))
        assert torch.equal(down, expected.pop(f"{name}.down_proj").transpose(1, 2))
    assert not expected
    plain, _ = load_model(tmp_path, weights="float32")
    assert share(logits(model), logits(plain)) < ROUNDING
    assert share(served(model, tokenizer), logits(plain)[0, -1].log_softmax(-1)) < ROUNDING


def test_mxfp4_dequantised(tmp_path: Path) -> None:
    tensors = save_mxfp4(tmp_path)
    plain, _ = load_model(tmp_path, weights="float32")
    state = plain.state_dict()
    for name, value in (tensors | dequantised(tensors)).items():
        if value.is_floating_point():
            assert torch.equal(state[name], value.float()), name


BLOCKS, SCALES = (f"model.layers.1.mlp.experts.down_proj_{name}" for name in ("blocks", "scales"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(SCALES), re.escape(SCALES)),
        (lambda t: t.update({SCALES: t[SCALES][:, 1:]}), re.escape(f"{SCALES}: got shape [3, 63, 3]")),
        (
            lambda t: t.update({BLOCKS: t[BLOCKS][:2]}),
            re.escape(f"{BLOCKS.replace('blocks', 'scales')}: got"),
        ),
        (lambda t: t.update({BLOCKS: t[BLOCKS].short()}), re.escape(f"{BLOCKS}: got int16")),
        (lambda t: t[SCALES].view(-1)[5:6].fill_(255), "NaN or infinite"),
        (lambda t: t.pop("model.layers.1.mlp.experts.down_proj_bias"), r"experts\.down_proj_bias"),
    ],
)
def test_damaged_mxfp4(change: Any, message: str, tmp_path: Path) -> None:
    save_mxfp4(tmp_path, change)
    with pytest.raises(ModelLoadError, match=message):
        load_model(tmp_path, "float32", weights="file")
