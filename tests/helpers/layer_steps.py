"""Steps of a small decoder over a pool, and the results of its operators called one at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from layer_reference import EPS, HEAD_DIM, KV_HEADS, Q_HEADS
from torch import Tensor

from tts_kernels import (
    DecoderLayers,
    KVPool,
    KVTree,
    PackedWeight,
    TreePlan,
    Weight,
    packed_linear,
    plan,
    rms_norm,
    rotate_qkv,
)


class Step(NamedTuple):
    x: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    plan: TreePlan


def forked_steps(hidden: int) -> list[Step]:
    """A prompt of 37 tokens, which branches then share at its last whole page, and two steps of theirs."""
    tree = KVTree(num_pages=24)
    root = tree.create()
    steps = [make_step(tree, [root], 37, hidden)]
    tree.truncate(root, 32)
    branches = tree.fork(root, 5)
    return steps + [make_step(tree, branches, new, hidden) for new in (3, 1)]


def make_step(tree: KVTree, branches: list[int], new: int, hidden: int) -> Step:
    """`new` tokens of each branch."""
    appended = tree.append(branches, [range(new)] * len(branches))
    assert not len(appended.copies)
    tables, lengths = tree.block_tables(branches)
    count = len(branches) * new
    angles = torch.randn(count, HEAD_DIM)
    work = plan(tables, lengths, np.full(len(branches), new, np.int32))
    return Step(
        torch.randn(count, hidden), angles.cos(), angles.sin(), torch.from_numpy(appended.slots), work
    )


def linear(x: Tensor, weights: Weight | tuple[Weight, ...]) -> Tensor:
    """Of weights side by side."""
    if not isinstance(weights, tuple):
        return packed_linear(x, weights)
    return torch.cat([packed_linear(x, weight) for weight in weights], 1)


def swiglu(x: Tensor, gate_up: Weight | tuple[Weight, ...]) -> Tensor:
    """silu(gate) * up; of two weights by a gated one that picks their outputs: ones and zeros are exact."""
    made = linear(x, gate_up)
    if not isinstance(gate_up, tuple):
        return made
    ones = torch.eye(made.shape[1])
    return packed_linear(made, PackedWeight.pack_gated(*ones.chunk(2)))


def one_by_one(layers: DecoderLayers, step: Step, pool: KVPool, dtype: torch.dtype) -> Tensor:
    """The outputs of layers of the Llama kind."""
    x = step.x.clone()
    for index, layer in enumerate(layers.layers):
        assert layer.gate_up is not None
        assert layer.down is not None
        qkv = linear(rms_norm(x, layer.input_norm, EPS), layer.qkv)
        norms: dict[str, Any] = {"q_norm": layer.q_norm, "k_norm": layer.k_norm, "eps": EPS}
        q, k, v = rotate_qkv(qkv, step.cos, step.sin, Q_HEADS, KV_HEADS, dtype, **norms)
        pool.append(index, k, v, step.slots)
        out, _ = pool.attend(index, q, step.plan, scale=layer.scale, window=layer.window)
        packed_linear(out.flatten(1), layer.o, add_to=x)
        packed_linear(swiglu(rms_norm(x, layer.mlp_norm, EPS), layer.gate_up), layer.down, add_to=x)
    return x


def make_pool(dtype: torch.dtype, layers: int, summaries: str | None = None) -> KVPool:
    pool = KVPool(
        num_layers=layers,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        num_pages=24,
        dtype=dtype,
        summaries=summaries,
    )
    for tensor in (pool.k_pages, pool.v_pages, pool.summaries):
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 99)
    return pool


def contents(pool: KVPool) -> list[Tensor]:
    parts = (pool.k_pages, pool.v_pages, pool.scales, pool.summaries)
    return [part.clone() for part in parts if part is not None]


def bits_equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
