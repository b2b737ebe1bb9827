"""Decoder layers of quantised and mixed weights, some side by side: against float64 torch, and the single
operators to the bit; what does not fit is named."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import layer_reference as reference
import pytest
import torch
from attention_checks import LEVELS
from layer_reference import EPS, HEAD_DIM, HEADS, Q_HEADS, SIZES
from layer_steps import bits_equal, contents, forked_steps, make_pool, make_step, one_by_one
from mixed_layers import HIDDEN, MIXES, MLP, draw, draw_gated, make_mixed, near
from quantised_cases import random_blocks

from tts_kernels import (
    DecoderLayer,
    DecoderLayers,
    KVTree,
    PackedWeight,
    QuantisedWeight,
    _core,
    packed_linear,
    rms_norm,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Beside the Llama kind.
FORMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "sandwich and factor": {"out_norm": True, "mlp_out_norm": True, "factor": 0.3, "head_norms": "whole"},
    "geglu": {"activation": "geglu_tanh", "rotary": None},
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mix", MIXES)
def test_equal_to_the_reference(level: str, form: str, mix: str) -> None:
    """Rows have the same bits in any batch."""
    _core.set_cpu_isa(level)
    torch.manual_seed(0)
    layer, matrices = make_mixed(MIXES[mix], FORMS[form])
    layers = pickle.loads(pickle.dumps(DecoderLayers([layer], **SIZES)))
    turns = torch.rand(1, 300, HEAD_DIM) * 20
    x, cos, sin = torch.randn(300, HIDDEN), turns.cos(), turns.sin()
    attended = torch.randn(300, Q_HEADS, HEAD_DIM)
    heads = layers.before_attention(0, x, cos[0], sin[0], torch.float32)
    out = x.clone()
    layers.after_attention(0, out, attended)
    for ours, theirs in zip(
        heads, reference.before_attention(layer, matrices, x, (cos, sin), HEADS), strict=True
    ):
        near(ours, theirs)
    near(out, reference.after_attention(layer, matrices, x, attended))
    for begin, end in [(7, 8), (7, 15), (20, 84), (0, 299)]:
        part, angles = x[begin:end].clone(), (cos[0, begin:end], sin[0, begin:end])
        few = layers.before_attention(0, part, *angles, torch.float32)
        assert all(torch.equal(a, b[begin:end]) for a, b in zip(few, heads, strict=True))
        layers.after_attention(0, part, attended[begin:end])
        assert torch.equal(part, out[begin:end])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pages", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mix", MIXES)
def test_equal_to_the_operators_one_by_one(level: str, pages: torch.dtype, mix: str) -> None:
    """A prompt of 37 tokens, which branches then share, and two steps of theirs; layers of other kinds."""
    _core.set_cpu_isa(level)
    torch.manual_seed(1)
    drawn = [make_mixed(one)[0] for one in (MIXES[mix], MIXES["floats beside"])]
    layers = DecoderLayers(drawn, **SIZES)
    one, other = make_pool(pages, 2), make_pool(pages, 2)
    for step in forked_steps(HIDDEN):
        expected = one_by_one(layers, step, one, pages)
        x = step.x.clone()
        layers(x, step.cos, step.sin, other, step.slots, step.plan)
        assert bits_equal(x, expected)
        assert x.isfinite().all()
        assert all(map(bits_equal, contents(other), contents(one)))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [9, 301])
def test_threads_and_chunks_change_nothing(threads: int, tokens: int) -> None:
    """301 tokens go through in chunks, on a thread each, where threads are two."""
    torch.manual_seed(2)
    layers = DecoderLayers([make_mixed(MIXES[mix])[0] for mix in ("Q4_K_M", "halves")], **SIZES)
    one, other = make_pool(torch.float32, 2), make_pool(torch.float32, 2)
    tree = KVTree(num_pages=24)
    step = make_step(tree, [tree.create()], tokens, HIDDEN)
    expected = one_by_one(layers, step, one, torch.float32)
    x = step.x.clone()
    torch.set_num_threads(threads)
    layers(x, step.cos, step.sin, other, step.slots, step.plan)
    assert bits_equal(x, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "bfloat16"])
def test_parts_side_by_side_have_the_bits_of_one_weight(level: str, kind: str) -> None:
    """Queries, keys and values of one weight; gate and up of a gated one."""
    _core.set_cpu_isa(level)
    torch.manual_seed(3)
    apart, _ = make_mixed(MIXES["floats"])
    widths = (Q_HEADS * HEAD_DIM, 64, 64, MLP, MLP)
    if kind == "bfloat16":
        parts = [torch.randn(width, HIDDEN).bfloat16() for width in widths]
        qkv, gate_up = PackedWeight.pack(torch.cat(parts[:3])), PackedWeight.pack_gated(*parts[3:])
        weights = [PackedWeight.pack(part) for part in parts]
    else:
        parts = [random_blocks(kind, width, HIDDEN, seed) for seed, width in enumerate(widths)]
        qkv = QuantisedWeight.from_gguf(kind, torch.cat(parts[:3]))
        gate_up = QuantisedWeight.from_gguf_gated(kind, *parts[3:])
        weights = [QuantisedWeight.from_gguf(kind, part) for part in parts]
    together = apart._replace(qkv=qkv, gate_up=gate_up)
    half = together._replace(qkv=(*weights[:2], weights[2]), gate_up=(weights[3], weights[4]))
    x, turns, attended = torch.randn(9, HIDDEN), torch.rand(9, HEAD_DIM), torch.randn(9, Q_HEADS, HEAD_DIM)
    results = []
    for layer in (together, half):
        layers, out = DecoderLayers([layer], **SIZES), x.clone()
        heads = layers.before_attention(0, x, turns.cos(), turns.sin(), torch.float32)
        layers.after_attention(0, out, attended)
        results.append((*heads, out))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("kind", ["Q6_K", "Q4_0"])
def test_a_quantised_head(kind: str) -> None:
    """Of outputs that do not fill their last panel."""
    torch.manual_seed(4)
    layer, _ = make_mixed(MIXES["Q4_K_M"])
    norm, (head, _) = torch.rand(HIDDEN) + 0.5, draw(kind, 37, HIDDEN)
    layers = DecoderLayers([layer], **SIZES, norm=norm, head=head)
    x, rows, logits = torch.randn(7, HIDDEN), torch.tensor([5, 0]), torch.zeros(2, 48)
    states = layers.output(x, rows=rows, logits=logits)
    assert torch.equal(states, rms_norm(x, norm, EPS))
    assert torch.equal(logits[:, :37], packed_linear(states[rows], head))
    with pytest.raises(ValueError, match="logits: got memory that a weight shares"):
        layers.output(x[:1], logits=head.panels.view(-1)[: 48 * 4].view(torch.float32).view(1, 48))


def wrong(layer: DecoderLayer) -> list[tuple[dict[str, Any], type[Exception], str]]:
    """What is changed of a layer, and what is said of it."""
    q, k, v = (draw("Q4_0", width, HIDDEN)[0] for width in (192, 64, 64))
    narrow, odd = draw("Q4_0", 64, HIDDEN // 2)[0], draw("Q4_0", 24, HIDDEN)[0]
    half, gated = draw("Q4_0", MLP, HIDDEN)[0], draw_gated("Q4_0", MLP, HIDDEN)[0]
    return [
        ({"qkv": (q, k, narrow)}, ValueError, r"layers\[0\].qkv\[2\]: got 128 inputs, 64 outputs"),
        ({"qkv": (q, k)}, ValueError, r"layers\[0\].qkv: got weights of \[192, 64\] outputs side by side"),
        ({"qkv": (k, q, v)}, ValueError, r"qkv: got weights of \[64, 192, 64\] .* \[192, 64, 64\]"),
        ({"qkv": q}, ValueError, r"layers\[0\].qkv: got 256 inputs, 192 outputs, .* expected 256, 320"),
        ({"qkv": ()}, TypeError, r"layers\[0\].qkv: got \(\), expected a weight"),
        ({"qkv": (q, k, v.panels)}, TypeError, r"layers\[0\].qkv\[2\]: got Tensor, expected a PackedWeight"),
        ({"qkv": [q, k, v]}, TypeError, r"layers\[0\].qkv: got list"),
        ({"qkv": (q, k, draw_gated("Q4_0", 64, HIDDEN)[0])}, ValueError, r"qkv\[2\]: got .*gated: True"),
        ({"o": (layer.o,)}, TypeError, r"layers\[0\].o: got tuple"),
        ({"o": half}, ValueError, r"layers\[0\].o: got 256 inputs"),
        ({"gate_up": half}, ValueError, r"layers\[0\].down: got 512 inputs, 256 outputs, .* expected 256"),
        ({"gate_up": (half, q)}, ValueError, r"gate_up: got weights of \[512, 192\] outputs"),
        ({"gate_up": (half, gated)}, ValueError, r"gate_up\[1\]: got 256 inputs, 512 outputs, gated: True"),
        ({"gate_up": (odd, odd)}, ValueError, r"gate_up\[0\]: got 24 outputs, expected a multiple of 16"),
        ({"gate_up": gated, "activation": "geglu_tanh"}, ValueError, "activation: got 'geglu_tanh'"),
        ({"down": draw("Q4_0", HIDDEN, 544)[0]}, ValueError, r"layers\[0\].down: got 544 inputs"),
    ]


@pytest.mark.parametrize("index", range(16))
def test_what_does_not_fit_is_named(index: int) -> None:
    torch.manual_seed(5)
    layer, _ = make_mixed(MIXES["halves"])
    change, error, message = wrong(layer)[index]
    with pytest.raises(error, match=message):
        DecoderLayers([layer._replace(**change)], **SIZES)


def test_weights_are_looked_at_in_each_call() -> None:
    torch.manual_seed(7)
    layer, _ = make_mixed(MIXES["Q4_K_M"])
    layers = DecoderLayers([layer], **SIZES)
    x, attended = torch.randn(3, HIDDEN), torch.randn(3, Q_HEADS, HEAD_DIM)
    before = x.clone()
    assert isinstance(layer.qkv, tuple)
    layer.qkv[1].panels.untyped_storage().resize_(8)
    with pytest.raises(ValueError, match=r"layers\[0\].panels: got a storage of 8 bytes"):
        layers.after_attention(0, x, attended)
    assert torch.equal(x, before)


def test_a_form_that_the_panels_do_not_have() -> None:
    layer, _ = make_mixed(MIXES["Q4_K_M"])
    other = draw("Q8_0", HIDDEN, 192)[0]
    assert isinstance(layer.o, QuantisedWeight)
    assert isinstance(other, QuantisedWeight)
    with pytest.raises(ValueError, match="panels: got shape"):
        replace(layer.o, form=other.form)
    object.__setattr__(layer.o, "form", other.form)
    with pytest.raises(ValueError, match=r"layers\[0\].panels: got shape"):
        DecoderLayers([layer], **SIZES)
