"""Branches of one prompt without sharing: transformers' `generate` with a separate cache for each."""

from __future__ import annotations

import itertools
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Replicated:
    """kv_bytes: of the caches at the end. tokens_per_second: of all branches in the fastest step, which other
    work on the machine delayed least."""

    kv_bytes: int
    tokens_per_second: float


def replicated_decoding(model: Any, prompt: list[int], branches: int, steps: int) -> Replicated:
    """Decodes `branches` branches for `steps` steps. The prompt is computed once, untimed, and copied.

    Args:
        model: one of transformers, whose cache holds only keys and values.
        prompt: its ids, at least two.
    """
    import transformers

    ids = torch.tensor([prompt], device=model.device)
    rows = ids.expand(branches, -1)
    cache = transformers.DynamicCache(config=model.config)
    times: list[float] = []

    def goes_on(tokens: Any, scores: Any, **_: Any) -> torch.Tensor:
        times.append(time.perf_counter())
        return torch.zeros(branches, dtype=torch.bool, device=model.device)

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the argument's new name is unknown before 5.24
        model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
        cache.batch_repeat_interleave(branches)
        times.append(time.perf_counter())
        model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            past_key_values=cache,
            do_sample=True,
            min_new_tokens=steps,
            max_new_tokens=steps,
            stopping_criteria=transformers.StoppingCriteriaList([goes_on]),  # called after each step
        )
    fastest = min(after - before for before, after in itertools.pairwise(times))
    held = sum(keys.nbytes + values.nbytes for keys, values, *_ in cache)
    return Replicated(held, branches / fastest)
