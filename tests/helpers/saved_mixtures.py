"""Tiny mixtures in published formats: separate tensors per expert, floats or quantised, or MXFP4."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file
from saved_checkpoints import Saved
from tiny_models import byte_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

_SHAPE: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: hf.MixtralConfig(**_SHAPE, intermediate_size=96, num_local_experts=4),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_SHAPE, intermediate_size=128, moe_intermediate_size=32, num_experts=5, mlp_only_layers=[1]
    ),
    "olmoe": lambda: hf.OlmoeConfig(**_SHAPE, intermediate_size=64, num_experts=3),
    "gpt_oss": lambda: hf.GptOssConfig(
        **(_SHAPE | {"num_attention_heads": 4}), intermediate_size=96, num_local_experts=3
    ),
}
PARTS = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
Change = Callable[[dict[str, Tensor]], Any]


def mixture(family: str, seed: int = 0) -> PreTrainedModel:
    """float32, all of it random."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.1)
    return model


def published(name: str, family: str) -> str:
    """What files call a tensor."""
    if family != "mixtral":
        return name
    for ours, theirs in PARTS.items():
        if ".experts." in name:
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name.replace(".mlp.", ".block_sparse_moe.")


def expert_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """By their names: views of the model's tensors of all experts."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(".experts"):
            for index, (both, down) in enumerate(zip(module.gate_up_proj, module.down_proj, strict=True)):
                for part, weight in zip(PARTS, (*both.chunk(2), down), strict=True):
                    found[f"{name}.{index}.{part}"] = weight
    return found


def save_mixture(
    folder: Path, family: str, saved: Saved | None = None, change: Change = lambda tensors: None
) -> PreTrainedModel:
    """saved: how linear layers and experts are quantised. Returns the float model of the same weights."""
    model = mixture(family)
    experts = expert_weights(model)
    tensors = {name: value for name, value in model.state_dict().items() if ".experts." not in name}
    linears = {
        name: module.weight
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name != "lm_head"
    }
    rng = np.random.default_rng(0)
    for name, weight in (experts | (linears if saved else {})).items():
        if saved is None:
            tensors[f"{name}.weight"] = weight
            continue
        tensors.pop(f"{name}.weight", None)
        layer = saved.layer(rng, *weight.shape)
        weight.data.copy_(layer.weight())
        tensors |= {f"{name}.{key}": value for key, value in saved.pack(layer).items()}
    tensors = {published(name, family): value for name, value in tensors.items()}
    write(folder, model, tensors, change, None if saved is None else saved.settings)
    return model


def save_mxfp4(folder: Path, change: Change = lambda tensors: None) -> dict[str, Tensor]:
    """A gpt-oss. Returns its tensors."""
    model = mixture("gpt_oss")
    tensors = dict(model.state_dict())
    generator = torch.Generator().manual_seed(2)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, rows = tensors.pop(name).shape
        shape = experts, rows, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=generator).to(torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 125, shape, generator=generator).to(torch.uint8)
    tensors = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in tensors.items()
    }
    write(folder, model, tensors, change, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return tensors


def write(
    folder: Path, model: PreTrainedModel, tensors: dict[str, Tensor], change: Change, settings: Any
) -> None:
    tensors = dict(tensors)
    change(tensors)
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    made = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    if settings is not None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
