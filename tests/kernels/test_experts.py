"""Mixtures of experts as the MLP of a layer, against float64 torch at every level."""

from __future__ import annotations

from typing import Any

import layer_reference as reference
import mixed_layers
import numpy as np
import pytest
import torch
from attention_checks import LEVELS
from layer_reference import HEAD_DIM, HIDDEN, MLP, Q_HEADS, SIZES, make, near
from quantised_cases import random_blocks
from torch import Tensor

from tts_kernels import (
    DecoderLayer,
    DecoderLayers,
    Experts,
    KVPool,
    KVTree,
    PackedWeight,
    QuantisedWeight,
    SharedExpert,
    _core,
    plan,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def mixture(weights: torch.dtype, *, count: int, top_k: int, normalised: bool) -> tuple[DecoderLayer, Any]:
    """A layer with experts, and their router, gate and up, and down, the last two [E, outputs, inputs]."""
    layer, matrices = make({}, weights)
    router = torch.randn(count, HIDDEN).to(weights)
    gate_up = (torch.randn(count, 2 * MLP, HIDDEN) * HIDDEN**-0.5).to(weights)
    down = (torch.randn(count, HIDDEN, MLP) * MLP**-0.5).to(weights)
    experts = Experts(
        router=PackedWeight.pack(router),
        gate_up=tuple(PackedWeight.pack_gated(*one.chunk(2)) for one in gate_up),
        down=tuple(map(PackedWeight.pack, down)),
        top_k=top_k,
        normalised=normalised,
    )
    return layer._replace(gate_up=None, down=None, experts=experts), (matrices, router, gate_up, down)


def mixed(layer: DecoderLayer, parts: Any, x: Tensor, attended: Tensor) -> Tensor:
    """float64, token by token."""
    matrices, router, gate_up, down = parts
    x = x.double() + reference.linear(attended.double().flatten(1), matrices.o)
    normed = reference.norm(x, layer.mlp_norm)
    shares = reference.linear(normed, (router, None)).softmax(-1)
    made = []
    for row, of_row in zip(normed, shares, strict=True):
        weights, chosen = of_row.topk(layer.experts.top_k)
        weights = weights / weights.sum() if layer.experts.normalised else weights
        total = torch.zeros_like(row)
        for weight, expert in zip(weights, chosen, strict=True):
            gate, up = reference.linear(row, (gate_up[expert], None)).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            total += weight * reference.linear(inner, (down[expert], None))
        made.append(total)
    return x + torch.stack(made)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("count", "top_k", "normalised"), [(5, 2, True), (33, 8, False), (3, 3, True), (4, 1, False)]
)
def test_experts_equal_the_reference(level: str, count: int, top_k: int, normalised: bool) -> None:
    """Rows have the same bits alone."""
    _core.set_cpu_isa(level)
    torch.manual_seed(3)
    layer, parts = mixture(torch.float32, count=count, top_k=top_k, normalised=normalised)
    layers = DecoderLayers([layer], **SIZES)
    x, attended = torch.randn(290, HIDDEN), torch.randn(290, Q_HEADS, HEAD_DIM)
    out, few = x.clone(), x[7:9].clone()
    layers.after_attention(0, out, attended)
    layers.after_attention(0, few, attended[7:9])
    near(out, mixed(layer, parts, x, attended), torch.float32)
    assert torch.equal(out[7:9], few)


def shared_mixture(share: bool, fused: bool) -> tuple[DecoderLayer, Any, Any]:
    """A layer with experts and a shared one; the mixture's parts; gate and up, down and share of that one."""
    layer, parts = mixture(torch.float32, count=5, top_k=2, normalised=False)
    gate_up, down = torch.randn(2 * MLP, HIDDEN) * HIDDEN**-0.5, torch.randn(HIDDEN, MLP) * MLP**-0.5
    first = PackedWeight.pack_gated(*gate_up.chunk(2)) if fused else PackedWeight.pack(gate_up)
    of_share = torch.randn(1, HIDDEN)
    shared = SharedExpert(first, PackedWeight.pack(down), PackedWeight.pack(of_share) if share else None)
    experts = layer.experts._replace(shared=shared)
    return layer._replace(experts=experts), parts, (gate_up, down, of_share)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("share", "fused"), [(True, False), (True, True), (False, True)])
def test_a_shared_expert_equals_the_reference(level: str, share: bool, fused: bool) -> None:
    """Rows have the same bits alone, also where a share is next to nothing."""
    _core.set_cpu_isa(level)
    torch.manual_seed(8)
    layer, parts, (gate_up, down, of_share) = shared_mixture(share, fused)
    layers = DecoderLayers([layer], **SIZES)
    x, attended = torch.randn(150, HIDDEN), torch.randn(150, Q_HEADS, HEAD_DIM)
    x[5] *= 1e3
    out, few = x.clone(), x[4:6].clone()
    layers.after_attention(0, out, attended)
    layers.after_attention(0, few, attended[4:6])
    normed = x.double() + reference.linear(attended.double().flatten(1), parts[0].o)
    normed = reference.norm(normed, layer.mlp_norm)
    gate, up = reference.linear(normed, (gate_up, None)).chunk(2, -1)
    added = reference.linear(torch.nn.functional.silu(gate) * up, (down, None))
    if share:
        added = added * torch.sigmoid(reference.linear(normed, (of_share, None)))
    near(out, mixed(layer, parts, x, attended) + added, torch.float32)
    assert torch.equal(out[4:6], few)


def test_a_shared_expert_that_does_not_fit_is_named() -> None:
    layer, _, _ = shared_mixture(True, True)
    shared = layer.experts.shared
    for wrong, error, message in (
        (shared._replace(down=layer.experts.router), ValueError, "down of the shared expert: got 48 inputs"),
        (
            shared._replace(share=layer.experts.router),
            ValueError,
            "share of the shared expert: got 48",
        ),
        (
            shared._replace(down=PackedWeight.pack(torch.randn(HIDDEN, MLP), torch.zeros(HIDDEN))),
            ValueError,
            "down of the shared expert: got a bias, expected none",
        ),
        (shared._replace(gate_up=None), TypeError, "gate_up of the shared expert: got NoneType"),
        (tuple(shared), TypeError, r"layers\[0\].experts.shared: got tuple"),
    ):
        with pytest.raises(error, match=message):
            DecoderLayers([layer._replace(experts=layer.experts._replace(shared=wrong))], **SIZES)


CLAMP = (1.7, 0.8)


def clamped_mixture() -> tuple[DecoderLayer, Any]:
    """As `mixture`, with biases everywhere: router, gate and up, down, each weight before its bias."""
    layer, matrices = make({}, torch.float32)
    router = torch.randn(5, HIDDEN), torch.randn(5)
    gate_up = (torch.randn(5, 2 * MLP, HIDDEN) * HIDDEN**-0.5), torch.randn(5, 2 * MLP)
    down = (torch.randn(5, HIDDEN, MLP) * MLP**-0.5), torch.randn(5, HIDDEN)
    experts = Experts(
        router=PackedWeight.pack(*router),
        gate_up=tuple(map(PackedWeight.pack, *gate_up)),
        down=tuple(map(PackedWeight.pack, *down)),
        top_k=2,
        normalised=True,
        clamp=CLAMP,
    )
    return layer._replace(gate_up=None, down=None, experts=experts), (matrices, router, gate_up, down)


def clamped(layer: DecoderLayer, parts: Any, x: Tensor, attended: Tensor) -> Tensor:
    """float64, token by token."""
    matrices, router, gate_up, down = parts
    x = x.double() + reference.linear(attended.double().flatten(1), matrices.o)
    normed = reference.norm(x, layer.mlp_norm)
    made = []
    for row, logits in zip(normed, reference.linear(normed, router), strict=True):
        values, chosen = logits.topk(2)
        total = torch.zeros_like(row)
        for weight, expert in zip(values.softmax(0), chosen, strict=True):
            gate, up = reference.linear(row, (gate_up[0][expert], gate_up[1][expert])).chunk(2)
            gate, up = gate.clamp(max=CLAMP[1]), up.clamp(-CLAMP[1], CLAMP[1])
            inner = (up + 1) * gate * torch.sigmoid(CLAMP[0] * gate)
            total += weight * reference.linear(inner, (down[0][expert], down[1][expert]))
        made.append(total)
    return x + torch.stack(made)


@pytest.mark.parametrize("level", LEVELS)
def test_clamped_experts_with_biases_equal_the_reference(level: str) -> None:
    """Rows have the same bits alone, and a NaN stays in its row."""
    _core.set_cpu_isa(level)
    torch.manual_seed(9)
    layer, parts = clamped_mixture()
    layers = DecoderLayers([layer], **SIZES)
    x, attended = torch.randn(150, HIDDEN), torch.randn(150, Q_HEADS, HEAD_DIM)
    out, few, broken = x.clone(), x[7:9].clone(), x.clone()
    broken[3, 5] = float("nan")
    layers.after_attention(0, out, attended)
    layers.after_attention(0, few, attended[7:9])
    layers.after_attention(0, broken, attended)
    near(out, clamped(layer, parts, x, attended), torch.float32)
    assert torch.equal(out[7:9], few)
    assert broken[3].isnan().all()
    assert torch.equal(broken[4:], out[4:])


def test_a_clamp_that_does_not_fit_is_named() -> None:
    layer, _ = clamped_mixture()
    gated, _ = mixture(torch.float32, count=4, top_k=2, normalised=True)
    for experts, error, message in (
        (layer.experts._replace(clamp=(1.7, 0.0)), ValueError, "clamp: got"),
        (layer.experts._replace(clamp=(float("nan"), 7.0)), ValueError, "clamp"),
        (layer.experts._replace(clamp=7.0), TypeError, "clamp: got 7.0"),
        (gated.experts._replace(clamp=CLAMP), ValueError, "clamp: got .*expert 0 is gated"),
    ):
        with pytest.raises(error, match=message):
            DecoderLayers([layer._replace(experts=experts)], **SIZES)


def draw_expert(index: int) -> tuple[Any, Any, Any, Any]:
    """gate_up and down, each before its matrix; kinds, and where the gate lies, differ between experts."""
    kinds = ("Q4_K", "Q6_K", "Q8_0", "bfloat16", "MXFP4")
    first, second = kinds[index % 5], kinds[(index + 2) % 5]
    sides = [mixed_layers.draw(kind, 512, 256) for kind in (first, second)]
    gate_up, of_gate_up = mixed_layers.joined(*sides)
    if index % 3 == 0:
        gate_up, of_gate_up = mixed_layers.draw_gated("Q4_K", 512, 256)
    down, of_down = mixed_layers.draw(second, 256, 512)
    return gate_up, of_gate_up[0], down, of_down[0]


@pytest.mark.parametrize("level", LEVELS)
def test_quantised_experts_equal_the_reference(level: str) -> None:
    """Rows have the same bits alone."""
    _core.set_cpu_isa(level)
    torch.manual_seed(5)
    plain, matrices = make({}, torch.float32, 256, 512)
    gate_up, of_gate_up, down, of_down = zip(*map(draw_expert, range(7)), strict=True)
    router = torch.randn(7, 256)
    experts = Experts(PackedWeight.pack(router), gate_up, down, top_k=3, normalised=True)
    layer = plain._replace(gate_up=None, down=None, experts=experts)
    layers = DecoderLayers([layer], **SIZES)
    x, attended = torch.randn(150, 256), torch.randn(150, Q_HEADS, HEAD_DIM)
    out, few = x.clone(), x[7:9].clone()
    layers.after_attention(0, out, attended)
    layers.after_attention(0, few, attended[7:9])
    mixed_layers.near(out, mixed(layer, (matrices, router, of_gate_up, of_down), x, attended))
    assert torch.equal(out[7:9], few)


@pytest.mark.parametrize("index", range(4))
def test_one_expert_has_the_bits_of_a_plain_mlp(index: int) -> None:
    torch.manual_seed(6)
    plain, _ = make({}, torch.float32, 256, 512)
    gate_up, _, down, _ = draw_expert(index)
    plain = plain._replace(gate_up=gate_up, down=down)
    router = PackedWeight.pack(torch.randn(1, 256))
    experts = Experts(router, (gate_up,), (down,), top_k=1, normalised=True)
    x, attended = torch.randn(9, 256), torch.randn(9, Q_HEADS, HEAD_DIM)
    results = [x.clone(), x.clone()]
    for out, layer in zip(
        results, (plain, plain._replace(gate_up=None, down=None, experts=experts)), strict=True
    ):
        DecoderLayers([layer], **SIZES).after_attention(0, out, attended)
    assert torch.equal(*results)


def test_experts_may_be_given() -> None:
    """Those that the router would choose change nothing, others do; one that is not there is refused."""
    torch.manual_seed(4)
    layer, _ = mixture(torch.float32, count=6, top_k=1, normalised=True)
    layers = DecoderLayers([layer], **SIZES)
    tree, branch = KVTree(4), 0
    branch = tree.create()
    slots = torch.from_numpy(tree.append([branch], [range(9)]).slots)
    work = plan(*tree.block_tables([branch]), np.array([9], np.int32))
    x, turns = torch.randn(9, HIDDEN), torch.rand(9, HEAD_DIM)

    def run(experts: Tensor | None) -> Tensor:
        pool = KVPool(num_layers=1, num_kv_heads=2, head_dim=32, num_pages=4)
        out = x.clone()
        layers(out, turns.cos(), turns.sin(), pool, slots, work, experts=experts)
        return out

    free = run(None)
    given = torch.stack([run(torch.full((9, 1), expert)) for expert in range(6)])
    same = given.eq(free).all(-1)
    assert same.sum(0).eq(1).all()
    chosen = same.float().argmax(0)[:, None]
    assert torch.equal(run(chosen), free)
    with pytest.raises(ValueError, match="experts: got 6, expected 0 <= expert < 6"):
        run(torch.full((9, 1), 6))
    with pytest.raises(ValueError, match="experts: got shape"):
        run(torch.zeros(9, 2, dtype=torch.long))


QUANTISED = QuantisedWeight.from_gguf("Q8_0", random_blocks("Q8_0", 16, 64))


def test_experts_that_do_not_fit_are_named() -> None:
    layer, _ = mixture(torch.float32, count=4, top_k=2, normalised=True)
    plain, _ = make({}, torch.float32)
    experts = layer.experts
    assert experts is not None
    for wrong, error, message in (
        (
            layer._replace(experts=experts._replace(top_k=5)),
            ValueError,
            r"layers\[0\].experts: got 4 gate_up",
        ),
        (layer._replace(experts=experts._replace(down=experts.down[:3])), ValueError, r"layers\[0\].router"),
        (
            layer._replace(experts=experts._replace(gate_up=experts.down)),
            ValueError,
            "gate_up of expert 0: got",
        ),
        (
            layer._replace(experts=experts._replace(router=QUANTISED)),
            TypeError,
            r"layers\[0\].router: got QuantisedWeight, expected a PackedWeight",
        ),
        (
            layer._replace(experts=experts._replace(gate_up=(*experts.gate_up[:3], (QUANTISED,) * 2))),
            ValueError,
            r"gate_up of expert 3\[0\]: got 64 inputs",
        ),
        (
            layer._replace(experts=experts._replace(down=(*experts.down[:3], QUANTISED))),
            ValueError,
            "down of expert 3: got 64 inputs",
        ),
        (layer._replace(down=plain.down), TypeError, "gate_up, down: got weights beside experts"),
        (layer._replace(experts=None), TypeError, r"layers\[0\].gate_up: got NoneType"),
    ):
        with pytest.raises(error, match=message):
            DecoderLayers([wrong], **SIZES)
