"""The effect of each key of a GGUF file on the model. `architectures.py` lists each architecture's own keys.

A key in the namespace of the file's architecture belongs to one of five groups. Any other key is refused.

* It sets an attribute of the config: `Architecture.integers`, `numbers`.
* It belongs to the rotary positions (`ROTARY`), which `rope.py` converts into the config's `rope_parameters`.
* `config.py` and `particulars.py` read it (`COMPUTED`, `Architecture.computed`).
* It changes the arithmetic in an unsupported way, unless it has the one value that changes nothing
  (`NEUTRAL`).
* It is a note for people (`HARMLESS`).

Source of the meanings: llama.cpp, which defines the format (src/llama-model.cpp, src/llama-context.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ROTARY = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",  # the old name of rope.scaling.factor
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    }
)

COMPUTED = frozenset(
    {
        "vocab_size",
        "block_count",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.scale",
    }
)

# Key: the value that changes nothing. An architecture that serves the key takes precedence.
NEUTRAL: Mapping[str, int | float | bool | str] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.output_scale": 1.0,
    "attention.shared_kv_layers": 0,
    "attention.sliding_window": 0,
    "attention.temperature_length": 0,
    "attn_logit_softcapping": 0.0,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "expert_shared_count": 0,
    "expert_used_count": 0,
    "expert_weights_scale": 1.0,
    "final_logit_softcapping": 0.0,
    "leading_dense_block_count": 0,
    "logit_scale": 1.0,
    "nextn_predict_layers": 0,
    "pooling_type": 0,
    "residual_scale": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "router_logit_softcapping": 0.0,
    "swin_norm": False,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}

HARMLESS = frozenset(
    {
        "rope.scaling.finetuned",  # says that the model was trained with the scaling, which is applied anyway
    }
)

# Namespaces, besides the architecture's own, that affect arithmetic or mark a file that is not a whole model.
REFUSED_NAMESPACES = frozenset({"adapter", "clip", "diffusion", "imatrix", "xielu"})


Layout = Literal["paired_heads", "raised_norms", "transposed", "transposed_experts"]


@dataclass(frozen=True)
class Architecture:
    """How files of one `general.architecture` map to a transformers model.

    integers, numbers: key -> attribute of the config. Integers are positive.
    fixed: attributes of the config that the architecture implies.
    optional: keys that may be missing; the config's attribute then has its default, or the one in `fixed`.
    computed: keys that `particulars.py` reads for this architecture only.
    neutral: keys that must have the value that the architecture implies, instead of `NEUTRAL`.
    partial_rotary: the model may rotate only the first part of a head.
    rotary_tensors: the file's tensors of rotary factors that llama.cpp reads for the architecture.
    switches: attribute of the config -> the tensor whose presence in the file sets it.
    layout: how the file's tensors differ from the model's parameters (`layouts.py`); None: they do not.
    """

    model_type: str
    integers: Mapping[str, str]
    numbers: Mapping[str, str]
    fixed: Mapping[str, object] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    computed: frozenset[str] = frozenset()
    neutral: Mapping[str, int | float | bool | str] = field(default_factory=dict)
    rotary: bool = True
    partial_rotary: bool = False
    rotary_tensors: frozenset[str] = frozenset()
    switches: Mapping[str, str] = field(default_factory=dict)
    layout: Layout | None = None

    def knows(self, key: str) -> bool:
        """Whether any of the lists has the key, given without its namespace."""
        return self.serves(key) or key in self.neutral or key in NEUTRAL or key in HARMLESS

    def serves(self, key: str) -> bool:
        """Whether any value of the key becomes part of the model."""
        return (
            key in self.integers
            or key in self.numbers
            or key in self.computed
            or key in COMPUTED
            or (self.rotary and key in ROTARY)
        )
