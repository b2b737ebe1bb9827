"""Models, caches and prompts for the tests of TreeCache."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from tts_kernels.integrations.transformers import TreeCache
from tts_kernels.integrations.transformers.versions import cache_argument

NEW = 12


def model_of(attention: str = "tts", **options: Any) -> PreTrainedModel:
    model = tiny_model(**options)
    model.set_attn_implementation(attention)
    return model


def cache_of(model: PreTrainedModel, **options: Any) -> TreeCache:
    return TreeCache(model.config, **{"kv_bytes": 1 << 24} | options)


def prompts(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, longest], padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return ids * mask + 256 * (1 - mask), mask


def generate(
    model: PreTrainedModel, ids: Tensor, mask: Tensor | None, cache: Any = None, **options: Any
) -> Tensor:
    torch.manual_seed(3)
    given = {} if cache is None else {cache_argument(): cache}
    out: Tensor = model.generate(
        ids,
        attention_mask=mask,
        **{"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False} | options,
        **given,
    )
    return out


def longer(mask: Tensor, ids: Tensor) -> Tensor:
    """The mask with ones for what came behind it."""
    return torch.cat([mask, torch.ones((len(ids), ids.shape[1] - mask.shape[1]), dtype=torch.long)], 1)
