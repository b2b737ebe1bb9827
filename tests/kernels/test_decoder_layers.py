"""All layers in one call equal the operators called in order, to the bit; bad input changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_reference import EPS, HEAD_DIM, HIDDEN, KV_HEADS, MLP, Q_HEADS
from layer_steps import bits_equal, contents, forked_steps, make_pool, make_step, one_by_one

from tts_kernels import DecoderLayer, DecoderLayers, KVTree, PackedWeight, packed_linear, rms_norm


def make_layers(
    weights: torch.dtype, count: int, *, head_norms: bool, biases: bool, window: int | None
) -> DecoderLayers:
    def pack(outputs: int, inputs: int, *, bias: bool = False) -> PackedWeight:
        matrix = (torch.randn(outputs, inputs) * inputs**-0.5).to(weights)
        return PackedWeight.pack(matrix, torch.randn(outputs) if bias else None)

    def layer(index: int) -> DecoderLayer:
        gate, up = ((torch.randn(MLP, HIDDEN) * HIDDEN**-0.5).to(weights) for _ in range(2))
        return DecoderLayer(
            input_norm=torch.rand(HIDDEN) + 0.5,
            qkv=pack((Q_HEADS + 2 * KV_HEADS) * HEAD_DIM, HIDDEN, bias=biases),
            q_norm=torch.rand(HEAD_DIM) + 0.5 if head_norms else None,
            k_norm=torch.rand(HEAD_DIM) + 0.5 if head_norms else None,
            o=pack(HIDDEN, Q_HEADS * HEAD_DIM, bias=biases),
            mlp_norm=torch.rand(HIDDEN) + 0.5,
            gate_up=PackedWeight.pack_gated(gate, up),
            down=pack(HIDDEN, MLP),
            scale=0.1 * (index + 1),
            window=window if index % 2 else None,
        )

    heads = {"num_q_heads": Q_HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return DecoderLayers([layer(index) for index in range(count)], **heads, eps=EPS)


@pytest.mark.parametrize("summaries", [None, "minmax", "quarters"])
@pytest.mark.parametrize(("head_norms", "biases", "window"), [(False, False, None), (True, True, 20)])
@pytest.mark.parametrize("pages", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_equal_to_the_operators_one_by_one(
    weights: torch.dtype,
    pages: torch.dtype,
    head_norms: bool,
    biases: bool,
    window: int | None,
    summaries: str | None,
) -> None:
    """A prompt of 37 tokens, which branches then share at its last whole page, and two steps of theirs."""
    torch.manual_seed(0)
    layers = make_layers(weights, 3, head_norms=head_norms, biases=biases, window=window)
    one, other = (make_pool(pages, 3, summaries) for _ in range(2))
    rows = weights if pages == torch.int8 else pages
    for step in forked_steps(HIDDEN):
        expected = one_by_one(layers, step, one, rows)
        x = step.x.clone()
        layers(x, step.cos, step.sin, other, step.slots, step.plan, rows)
        assert bits_equal(x, expected)
        assert x.isfinite().all()
        for ours, theirs in zip(contents(other), contents(one), strict=True):
            assert bits_equal(ours, theirs)


@pytest.mark.parametrize("rows", [None, [4, 0, 4]])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_norm_and_the_head_behind_the_last_layer(weights: torch.dtype, rows: list[int] | None) -> None:
    torch.manual_seed(2)
    bare = make_layers(weights, 2, head_norms=False, biases=False, window=None)
    norm, head = torch.rand(HIDDEN) + 0.5, PackedWeight.pack(torch.randn(20, HIDDEN).to(weights))
    heads = {"num_q_heads": Q_HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    layers = DecoderLayers(bare.layers, **heads, eps=EPS, norm=norm, head=head)
    tree, pools = KVTree(num_pages=24), [make_pool(weights, 2) for _ in range(2)]
    step = make_step(tree, [tree.create()], 5, HIDDEN)
    x, chosen = step.x.clone(), None if rows is None else torch.tensor(rows)
    logits = torch.full((3, 40), 7.0)
    states = layers(x, *step[1:3], pools[0], *step[3:], rows=chosen, logits=logits[:, :32])
    expected = rms_norm(one_by_one(bare, step, pools[1], weights), norm, EPS)
    assert states is not None
    assert bits_equal(states, expected)
    expected = expected[:3] if rows is None else expected[rows]
    assert bits_equal(logits[:, :20], packed_linear(expected, head))
    assert logits[:, 32:].eq(7).all()
    refused: list[tuple[DecoderLayers, dict[str, Any], str]] = [
        (layers, {"rows": torch.tensor([5, 0, 1]), "logits": logits[:, :32]}, r"rows\[0\]: got 5"),
        (layers, {"rows": torch.tensor([-1, 0, 1]), "logits": logits[:, :32]}, r"rows\[0\]: got -1"),
        (layers, {"logits": torch.zeros(6, 32)}, "rows: got 6, expected at most the 5 tokens"),
        (layers, {"rows": torch.tensor([1]), "logits": logits[:, :32]}, r"logits: got shape \[3, 32\]"),
        (layers, {"logits": logits[:, :31]}, r"logits: got shape \[3, 31\]"),
        (
            layers,
            {"logits": head.panels.flatten()[:64].float().view(2, 32)},
            "logits: got memory that",
        ),
        (bare, {"logits": logits[:, :32]}, "logits: got a tensor, expected None: there is no head"),
    ]
    for made, options, message in refused[: None if weights == torch.float32 else -2]:
        before = contents(pools[0])
        with pytest.raises(ValueError, match=message):
            made(x, *step[1:3], pools[0], *step[3:], **options)
        assert all(map(bits_equal, contents(pools[0]), before))
    for wrong, message in (
        ({"head": head}, "norm: got None beside a head"),
        ({"norm": norm[:-1]}, "norm: got shape"),
        ({"norm": norm, "head": PackedWeight.pack(torch.ones(16, 32))}, "head: got"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            DecoderLayers(bare.layers, **heads, eps=EPS, **wrong)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_long_prompt_goes_through_in_chunks(weights: torch.dtype, threads: int) -> None:
    """Of 150 or 151 tokens, on a thread each."""
    torch.manual_seed(1)
    layers = make_layers(weights, 2, head_norms=True, biases=True, window=None)
    one, other = (make_pool(weights, 2) for _ in range(2))
    tree = KVTree(num_pages=24)
    step = make_step(tree, [tree.create()], 301, HIDDEN)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = one_by_one(layers, step, one, weights)
        x = step.x.clone()
        layers(x, step.cos, step.sin, other, step.slots, step.plan)
    finally:
        torch.set_num_threads(before)
    assert bits_equal(x, expected)
    assert x.isfinite().all()
    for ours, theirs in zip(contents(other), contents(one), strict=True):
        assert bits_equal(ours, theirs)


def bad_inputs() -> list[tuple[str, type[Exception], str]]:
    return [
        ("x rows", ValueError, "x: got shape"),
        ("x dtype", TypeError, "x: got torch.float64, expected torch.float32"),
        ("cos", ValueError, "cos: got shape"),
        ("slots", ValueError, "slots.0.: got 100000"),
        ("plan", ValueError, r"plan: got one of 4 queries, expected 5"),
        ("page", ValueError, "pages"),
        ("pool layers", ValueError, "pool: got 2 layers, expected 3"),
        ("dtype", TypeError, "dtype: got torch.float64"),
        (
            "other dtype",
            TypeError,
            "dtype: got torch.bfloat16, expected torch.float32, the dtype of the pool",
        ),
    ]


@pytest.mark.parametrize(("what", "error", "message"), bad_inputs())
def test_bad_input_changes_nothing(what: str, error: type[Exception], message: str) -> None:
    torch.manual_seed(0)
    layers = make_layers(torch.float32, 3, head_norms=False, biases=False, window=None)
    tree = KVTree(num_pages=24)
    branches = [tree.create() for _ in range(5)]
    four = make_step(tree, branches[:4], 1, HIDDEN)
    step = make_step(tree, branches, 1, HIDDEN)
    pool = make_pool(torch.float32, 2 if what == "pool layers" else 3)
    x, cos, slots, work, dtype = step.x, step.cos, step.slots, step.plan, torch.float32
    if what == "x rows":
        x = x[:4]
    elif what == "x dtype":
        x = x.double()
    elif what == "cos":
        cos = cos[:, :16]
    elif what == "slots":
        slots = torch.full_like(slots, 100000)
    elif what == "plan":
        work = four.plan
    elif what == "page":
        work.pages[2] = 24
    elif what == "dtype":
        dtype = torch.float64
    elif what == "other dtype":
        dtype = torch.bfloat16
    before, x_before = contents(pool), x.clone()
    with pytest.raises(error, match=message):
        layers(x, cos, step.sin, pool, slots, work, dtype)
    assert bits_equal(x, x_before)
    assert all(map(bits_equal, contents(pool), before))


def test_weights_that_do_not_fit_are_named() -> None:
    good = make_layers(torch.float32, 2, head_norms=False, biases=False, window=None).layers
    heads: dict[str, Any] = {"num_q_heads": Q_HEADS, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    other = PackedWeight.pack(torch.randn(HIDDEN, MLP + 2))
    with pytest.raises(ValueError, match=r"layers\[1\].down: got 82 inputs, 48 outputs, gated: False"):
        DecoderLayers([good[0], good[1]._replace(down=other)], **heads, eps=EPS)
    with pytest.raises(ValueError, match=r"layers\[0\].q_norm: got shape \[8\]"):
        DecoderLayers([good[0]._replace(q_norm=torch.ones(8))], **heads, eps=EPS)
    with pytest.raises(ValueError, match="layers: got none"):
        DecoderLayers([], **heads, eps=EPS)
