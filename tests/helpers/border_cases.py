"""Every operator with arguments to change, and every kind of bad tensor, for the tests of the border."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from fuzz import targets
from fuzz.mutations import Subclass
from torch import Tensor

OPS = [
    targets.rms_norm,
    targets.packed_linear,
    targets.quantised_linear,
    targets.rotate_qkv,
    targets.sample_tokens,
    targets.append_kv,
    targets.copy_pages,
    targets.gather_kv,
    targets.tree_attention,
    targets.score_pages,
    targets.select_top_pages,
    targets.count_selected,
    targets.decoder_layers,
    targets.pack,
    targets.paged_attention,
    targets.pack_quantised,
    targets.pack_groups,
    targets.round_weight,
]


def resized(tensor: Tensor) -> Tensor:
    changed = tensor.detach().clone()
    changed.untyped_storage().resize_(changed.untyped_storage().nbytes() - 1)
    return changed


BAD: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda t: t.to("meta"),
    "storage resized to 0": lambda t: emptied(t),
    "storage short by a byte": resized,
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "subclass": lambda t: t.as_subclass(Subclass),
    "a list": lambda t: t.tolist(),
    "complex": lambda t: t.to(torch.complex64),
    "one dimension more": lambda t: t[None],
    "0-dim": lambda t: t.flatten()[0],
    "gradient": lambda t: t.detach().clone().requires_grad_(),
}


def emptied(tensor: Tensor) -> Tensor:
    changed = tensor.detach().clone()
    changed.untyped_storage().resize_(0)
    return changed


def full_case(target: Callable[[random.Random], targets.Case], seed: int = 0) -> targets.Case:
    """A call with tensors that are not empty and as many optional ones as there are."""
    torch.manual_seed(seed)
    cases = [target(random.Random(seed + i)) for i in range(12)]

    def tensors(case: targets.Case) -> int:
        found = [value for value in case.args.values() if isinstance(value, Tensor)]
        return len(found) if all(map(Tensor.numel, found)) else -1

    return max(cases, key=tensors)
