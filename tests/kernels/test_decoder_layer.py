"""What a layer says as data, against float64 torch at every level; the halves of a layer and a whole call."""

from __future__ import annotations

import pickle
from typing import Any

import layer_reference as reference
import numpy as np
import pytest
import torch
from attention_checks import LEVELS
from layer_reference import HEAD_DIM, HEADS, HIDDEN, Q_HEADS, SIZES, make, near
from torch import Tensor

from tts_kernels import DecoderLayers, KVPool, KVTree, PackedWeight, _core, plan

pytestmark = pytest.mark.usefixtures("one_thread")

# What each layer has beside plain norms and SwiGLU.
FORMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gated weight": {"fused": True},
    "biases": {"biases": True},
    "layer norms": {"norms": "layer", "biases": True, "activation": "gelu_tanh"},
    "geglu and sandwich": {"activation": "geglu_tanh", "out_norm": True, "mlp_out_norm": True},
    "post norms alone": {"input_norm": None, "mlp_norm": None, "out_norm": True, "mlp_out_norm": True},
    "norm of all heads": {"head_norms": "whole"},
    "norm of each head": {"head_norms": "each", "rotary": 1},
    "parallel": {"parallel": True, "norms": "layer", "rotary_pairs": True, "fused": True},
    "erf and a gate": {"activation": "geglu"},
    "erf": {"activation": "gelu", "biases": True},
    "squares": {"activation": "relu_squared", "norms": "layer"},
    "factor": {"factor": 0.3, "fused": True},
    "factor and a norm": {"factor": 0.3, "out_norm": True},
    "no rotation": {"rotary": None},
    "sinks": {"sinks": True},
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_equal_to_the_reference(level: str, form: str, weights: torch.dtype) -> None:
    """Rows have the same bits alone, and in a chunk on a thread of their own."""
    _core.set_cpu_isa(level)
    torch.manual_seed(0)
    layer, matrices = make(FORMS[form], weights)
    rotary_dim = 20 if layer.rotary_pairs else 32
    layers = DecoderLayers([layer], **SIZES, rotary_dim=rotary_dim)
    turns = torch.rand(layers.tables, 300, rotary_dim) * 20
    x, cos, sin = torch.randn(300, HIDDEN), turns.cos(), turns.sin()
    attended = torch.randn(300, Q_HEADS, HEAD_DIM)
    found = half_by_half(layers, x, cos, sin, attended)
    expected = reference.before_attention(layer, matrices, x, (cos, sin), HEADS)
    expected = (*expected, reference.after_attention(layer, matrices, x, attended))
    for ours, theirs in zip(found, expected, strict=True):
        near(ours, theirs, weights)
    few = half_by_half(layers, x[7:9], cos[:, 7:9].contiguous(), sin[:, 7:9].contiguous(), attended[7:9])
    for ours, theirs in zip(found, few, strict=True):
        assert torch.equal(ours[7:9], theirs)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", ["gelu", "relu_squared", "gelu_tanh"])
def test_activations_at_all_sizes(level: str, activation: str) -> None:
    """Through products with the identity."""
    _core.set_cpu_isa(level)
    layer, _ = make({"activation": activation, "mlp_norm": None}, torch.float32, 64, 64)
    one, none = PackedWeight.pack(torch.eye(64)), PackedWeight.pack(torch.zeros(64, Q_HEADS * HEAD_DIM))
    layers = DecoderLayers([layer._replace(mlp_norm=None, gate_up=one, down=one, o=none)], **SIZES)
    x = torch.cat([torch.linspace(-20, 20, 640), torch.logspace(-30, 3, 320), -torch.logspace(-30, 3, 320)])
    x = x.view(-1, 64)
    out = x.clone()
    layers.after_attention(0, out, torch.zeros(len(x), Q_HEADS, HEAD_DIM))
    expected = x.double() + reference.ACTIVATIONS[activation][0](x.double())
    torch.testing.assert_close(out.double(), expected, atol=2**-21, rtol=2**-18)


def half_by_half(
    layers: DecoderLayers, x: Tensor, cos: Tensor, sin: Tensor, attended: Tensor
) -> tuple[Tensor, ...]:
    """q, k, v and the outputs of a layer."""
    if layers.tables == 1:
        cos, sin = cos[0], sin[0]
    out = x.clone()
    heads = layers.before_attention(0, out, cos, sin, torch.float32)
    layers.after_attention(0, out, attended)
    return (*heads, out)


@pytest.mark.parametrize("form", FORMS)
def test_a_call_has_the_bits_of_its_halves(form: str) -> None:
    """With attention between them, soft caps and windows included, then norm and capped logits."""
    torch.manual_seed(1)
    capped = {"soft_cap": 1.5, "window": 20}
    drawn = [make(FORMS[form], torch.bfloat16)[0]._replace(**options) for options in ({}, capped)]
    norm, head = torch.rand(2, HIDDEN) + 0.5, PackedWeight.pack(torch.randn(20, HIDDEN).bfloat16())
    options = {"norm": norm, "head": head, "logit_factor": 0.7, "logit_soft_cap": 3.0}
    layers = pickle.loads(pickle.dumps(DecoderLayers(drawn, **SIZES, rotary_dim=16, **options)))
    tree, pools = (
        KVTree(8),
        [KVPool(num_layers=2, num_kv_heads=2, head_dim=32, num_pages=8) for _ in range(2)],
    )
    branch = tree.create()
    slots = torch.from_numpy(tree.append([branch], [range(37)]).slots)
    work = plan(*tree.block_tables([branch]), np.array([37], np.int32))
    turns = torch.rand(layers.tables, 37, 16) * 20
    cos, sin = (part if layers.tables > 1 else part[0] for part in (turns.cos(), turns.sin()))
    whole = torch.randn(37, HIDDEN)
    x, logits, rows = whole.clone(), [torch.zeros(2, 32) for _ in range(3)], torch.tensor([36, 4])
    states = layers(whole, cos, sin, pools[0], slots, work, torch.float32, rows=rows, logits=logits[0])
    for index, layer in enumerate(layers.layers):
        q, k, v = layers.before_attention(index, x, cos, sin, torch.float32)
        pools[1].append(index, k, v, slots)
        given = {"scale": layer.scale, "window": layer.window, "sinks": layer.sinks}
        attended, _ = pools[1].attend(index, q, work, logits_soft_cap=layer.soft_cap, **given)
        layers.after_attention(index, x, attended)
    behind = layers.output(x, rows=rows, logits=logits[1])
    layers.logits(behind[rows], logits[2])
    for ours, theirs in ((whole, x), (states, behind), (logits[0], logits[1]), (logits[0], logits[2])):
        assert torch.equal(ours, theirs)
    near(states, reference.norm(x.double(), norm), torch.float32)
    raw = reference.linear(behind[rows].double(), (head_matrix(head), None)) * 0.7
    near(logits[0][:, :20], 3 * torch.tanh(raw / 3), torch.bfloat16)


def head_matrix(head: PackedWeight) -> Tensor:
    return head.panels.permute(0, 2, 1, 3).reshape(-1, HIDDEN)[: head.outputs].float()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "relu"}, ValueError, r"layers\[0\].activation: got 'relu'"),
        ({"activation": "gelu_tanh"}, ValueError, r"layers\[0\].down: got 80 inputs"),
        ({"mlp_norm": None, "parallel": True}, ValueError, r"layers\[0\].mlp_norm: got None"),
        ({"input_norm": torch.ones(3, HIDDEN)}, ValueError, r"layers\[0\].input_norm: got shape \[3, 48\]"),
        ({"out_norm": torch.ones(HIDDEN).double()}, TypeError, r"layers\[0\].out_norm: got torch.float64"),
        ({"q_norm": torch.ones(64)}, ValueError, r"layers\[0\].q_norm: got shape \[64\]"),
        (
            {"q_norm": torch.ones(192), "k_norm": torch.ones(32)},
            ValueError,
            r"layers\[0\].k_norm: expected a norm of each head or of all heads",
        ),
        ({"soft_cap": 0.0}, ValueError, r"layers\[0\].soft_cap: got 0.0"),
        ({"factor": float("nan")}, ValueError, r"layers\[0\].factor: got nan"),
        ({"rotary": -1}, ValueError, "rotary: got -1"),
        ({"window": 0}, ValueError, r"layers\[0\].window: got 0"),
        ({"sinks": torch.ones(5)}, ValueError, r"layers\[0\].sinks: got shape \[5\]"),
        ({"sinks": torch.ones(6).double()}, TypeError, r"layers\[0\].sinks: got torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    layer, _ = make({}, torch.float32)
    with pytest.raises(error, match=message):
        DecoderLayers([layer._replace(**change)], **SIZES)


def test_bad_arguments_of_the_halves_change_nothing() -> None:
    layer, _ = make({}, torch.float32)
    layers = DecoderLayers([layer], **SIZES, norm=torch.ones(HIDDEN), rotary_dim=16)
    x, angles, attended = torch.randn(3, HIDDEN), torch.randn(3, 16), torch.randn(3, 6, 32)
    before = x.clone()
    for call, message in (
        (lambda: layers.before_attention(1, x, angles, angles, torch.float32), "index: got 1"),
        (lambda: layers.before_attention(0, x, angles[:2], angles, torch.float32), "cos: got shape"),
        (lambda: layers.after_attention(0, x, attended[:, :5]), "attended: got shape"),
        (lambda: layers.after_attention(-1, x, attended), "index: got -1"),
        (lambda: layers.output(x, logits=torch.zeros(3, 16)), "logits: got a tensor"),
        (lambda: layers.output(x[:, :16]), "x: got shape"),
        (lambda: layers.logits(x, torch.zeros(3, 16)), "logits: got a tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="rotary_dim: got 34"):
        DecoderLayers([layer], **SIZES, rotary_dim=34)
    with pytest.raises(ValueError, match="logit_soft_cap: got 0"):
        DecoderLayers([layer], **SIZES, logit_soft_cap=0.0)
