"""Tiny saved models with quantised weights, packed bit by bit as the formats define them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tiny_models import byte_tokenizer, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # outputs in a word, from its lowest bits on

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Layer:
    """scale * (u - zero) with u, zero of `bits` bits [outputs, inputs] and [outputs, groups].

    group_of: int32 [inputs], each input's group.
    """

    u: Numbers
    zero: Numbers
    scale: Tensor
    bits: int
    group_of: Numbers

    def weight(self) -> Tensor:
        """float64, exact."""
        less = torch.from_numpy(self.u.astype(np.float64) - self.zero[:, self.group_of])
        return less * self.scale.double()[:, self.group_of]


def neighbours(inputs: int, groups: int) -> Numbers:
    """The group of each input where groups are of neighbours."""
    return (np.arange(inputs) // (inputs // groups)).astype(np.int32)


def words(numbers: Numbers, bits: int) -> Tensor:
    """int32 [..., n bits / 32] of integers [..., n]: the first in the lowest bits; short rows end in 0."""
    each = 32 // bits
    missing = -numbers.shape[-1] % each
    padded = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], missing), numbers.dtype)], -1)
    parts = padded.astype(np.uint64).reshape(*padded.shape[:-1], -1, each)
    made = np.zeros(parts.shape[:-1], np.uint64)
    for place in range(each):
        made |= parts[..., place] << np.uint64(bits * place)
    return torch.from_numpy(made.astype(np.uint32).view(np.int32))


def turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous()


def gptq(layer: Layer, v1: bool = True) -> dict[str, Tensor]:
    zeros = words(layer.zero.T, layer.bits).numpy().view(np.uint32)
    if v1:  # less one each, with borrows from the next
        ones = sum(1 << place for place in range(0, 32, layer.bits))
        zeros = (zeros.astype(np.int64) - ones) % (1 << 32)
    return {
        "qweight": turned(words(layer.u, layer.bits)),
        "qzeros": torch.from_numpy(zeros.astype(np.uint32).view(np.int32)),
        "scales": turned(layer.scale),
        "g_idx": torch.from_numpy(layer.group_of),
    }


def awq(layer: Layer) -> dict[str, Tensor]:
    def packed(numbers: Numbers) -> Tensor:
        inner = numbers.T.reshape(numbers.shape[1], -1, 8)[..., AWQ_ORDER]
        return words(inner, 4)[..., 0]

    return {"qweight": packed(layer.u), "qzeros": packed(layer.zero), "scales": turned(layer.scale)}


def pack_quantized(layer: Layer, symmetric: bool = False) -> dict[str, Tensor]:
    made = {
        "weight_packed": words(layer.u, layer.bits),
        "weight_scale": layer.scale,
        "weight_shape": torch.tensor(layer.u.shape),
    }
    return made if symmetric else made | {"weight_zero_point": turned(words(layer.zero.T, layer.bits))}


def int_quantized(layer: Layer, symmetric: bool = True) -> dict[str, Tensor]:
    middle = 1 << (layer.bits - 1)
    made = {
        "weight": torch.from_numpy((layer.u.astype(np.int16) - middle).astype(np.int8)),
        "weight_scale": layer.scale,
    }
    zeros = torch.from_numpy((layer.zero.astype(np.int16) - middle).astype(np.int8))
    return made if symmetric else made | {"weight_zero_point": zeros}


@dataclass
class Saved:
    """A model whose linear layers but the head are quantised.

    Attributes:
        bits, group: of the numbers; group -1 is a whole row.
        pack: a layer's tensors.
        settings: `quantization_config`.
        symmetric: zero points are the middle.
        scales: their dtype.
        one_scale: and zero point, for all weights of a layer.
        act_order: groups are of any inputs.
        family, options: of the model.
    """

    bits: int
    group: int
    pack: Callable[[Layer], dict[str, Tensor]] = field(repr=False)  # its address would be in names of tests
    settings: dict[str, Any]
    symmetric: bool = False
    scales: torch.dtype = torch.float16
    one_scale: bool = False
    act_order: bool = False
    family: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)

    def write(
        self, folder: Path, change: Callable[[dict[str, Tensor]], Any] = lambda tensors: None
    ) -> PreTrainedModel:
        """Saves it, after a change of its tensors. Returns the float model of the same weights."""
        model = tiny_model(self.family, intermediate_size=128, **self.options)
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        rng = np.random.default_rng(0)
        for name, module in model.named_modules():
            if type(module) is nn.Linear and name != "lm_head":
                layer = self.layer(rng, *module.weight.shape)
                del tensors[f"{name}.weight"]
                tensors |= {f"{name}.{key}": value for key, value in self.pack(layer).items()}
                module.weight.data = layer.weight().float()
        change(tensors)
        model.config.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        self.write_settings(folder, {})
        return model

    def write_settings(self, folder: Path, changes: dict[str, Any]) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text()) | {"quantization_config": self.settings | changes}
        file.write_text(json.dumps(config))

    def layer(self, rng: np.random.Generator, outputs: int, inputs: int) -> Layer:
        groups = 1 if self.group == -1 else inputs // self.group
        middle = 1 << (self.bits - 1)
        shape = outputs, groups
        u = rng.integers(0, 1 << self.bits, (outputs, inputs)).astype(np.uint8)
        zero = rng.integers(0, 1 << self.bits, shape).astype(np.uint8)
        scale = torch.from_numpy(rng.standard_normal(shape) * 0.3 / middle).to(self.scales)
        if self.one_scale:
            zero[:], scale[:] = zero[0], scale[0].clone()
        group_of = neighbours(inputs, groups)
        if self.act_order:
            rng.shuffle(group_of)
        return Layer(u, np.full_like(zero, middle) if self.symmetric else zero, scale, self.bits, group_of)


def compressed(format: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings of compressed-tensors, as llm-compressor writes them."""
    scheme = {"type": "int", "dynamic": False, "actorder": None, "block_structure": None} | weights
    group = {
        "targets": ["Linear"],
        "weights": scheme,
        "input_activations": inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }
