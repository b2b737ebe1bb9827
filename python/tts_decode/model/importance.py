"""Measures how much attention each token of a branch draws in each layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tts_kernels import DevicePlan, KVPool, TreePlan


class TokenImportance:
    """Replaces a `SparseStep` in one forward: reads everything, and adds up what its queries attend to.

    plan: of the forward. pages: int32 [P], whose tokens are judged, all of them before every query.
    soft_caps: of the logits of each layer.

    Attributes:
        layers: float32 [P * page_size] each, in tokens: the attention that each token draws, summed over
            queries and heads. Each query and head distributes 1 over everything that it sees.
    """

    def __init__(self, plan: TreePlan | DevicePlan, pages: Tensor, soft_caps: Sequence[float | None]) -> None:
        self._plan, self._pages, self._soft_caps = plan, pages, soft_caps
        self.layers: list[Tensor] = []

    def select(self, layer: int, pool: KVPool, q: Tensor, scale: float | None) -> None:
        """Adds up attention. q: [T, num_q_heads, head_dim], queries of a layer whose keys are in the pool."""
        cap = self._soft_caps[layer]
        _, lse = pool.attend(layer, q, self._plan, scale=scale, logits_soft_cap=cap)
        keys, _ = pool.gather(layer, self._pages, len(self._pages) * pool.page_size)
        factor = q.shape[2] ** -0.5 if scale is None else scale
        total = torch.zeros(len(keys))
        group = q.shape[1] // pool.num_kv_heads
        for head in range(pool.num_kv_heads):  # one by one: [T, group, tokens] is large
            heads = slice(head * group, (head + 1) * group)
            logits = q[:, heads].float() @ keys[:, head].float().T * factor
            if cap is not None:
                logits = cap * (logits / cap).tanh()
            total += (logits - lse[:, heads, None]).exp().sum((0, 1))
        self.layers.append(total)
