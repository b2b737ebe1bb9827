"""Weights whose groups are of any inputs (act-order): sorted when packed, and x with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_checks import LEVELS
from hypothesis import given
from hypothesis import strategies as st
from quantised_cases import Groups, assert_layer_close, normal
from torch import Tensor

from tts_kernels import PackedWeight, _core, packed_linear, reference

pytestmark = pytest.mark.usefixtures("one_thread")

FMA_LEVELS = [level for level in LEVELS if level.startswith("a")]  # of x86-64
GROUPS = Groups.random(4, 40, 256, 64, torch.float16, zeros=True).shuffled(0)


def sorted_inputs(groups: Groups) -> list[int]:
    """Those of the first group, then those of the next."""
    group_of = groups.group_of.tolist()
    return sorted(range(len(group_of)), key=lambda i: (group_of[i], i))


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_weights_stay_in_the_order_of_the_layer(bits: int, dtype: torch.dtype, zeros: bool) -> None:
    groups = Groups.random(bits, 37, 384, 96, dtype, zeros).shuffled(bits)
    weight, expected = groups.packed(), groups.weights().float()
    assert weight.order.tolist() == sorted_inputs(groups)
    assert torch.equal(weight.dequantised(), expected)
    wanted = torch.tensor([36, 0, 17, 17])
    assert torch.equal(weight.rows(wanted), expected[wanted])


def test_neighbours_need_no_order() -> None:
    plain = replace(GROUPS, group_of=None)
    same = replace(GROUPS, group_of=torch.arange(256, dtype=torch.int32) // 64).packed()
    assert same.order is None
    assert torch.equal(same.panels, plain.packed().panels)


@pytest.mark.parametrize("level", LEVELS)
@given(
    bits=st.sampled_from([4, 5, 6, 8]),
    scales=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    zeros=st.booleans(),
    rows=st.one_of(st.integers(0, 20), st.integers(0, 300)),
    each=st.sampled_from([16, 32, 64, 96, 128]),
    count=st.integers(2, 5),
    outputs=st.integers(1, 100),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    level: str,
    bits: int,
    scales: torch.dtype,
    dtype: torch.dtype,
    zeros: bool,
    rows: int,
    each: int,
    count: int,
    outputs: int,
    seed: int,
) -> None:
    _core.set_cpu_isa(level)
    inputs = max(each, 32) * count
    groups = Groups.random(bits, outputs, inputs, each, scales, zeros, seed).shuffled(seed)
    x, bias = normal(seed, rows, inputs).to(dtype), normal(seed + 1, outputs)
    out = packed_linear(x, groups.packed(bias))
    order = sorted_inputs(groups)
    seen, weights = reference.int8_rows(x[:, order]), groups.weights()[:, order]
    # u and zero points: terms larger than the weights that they add up to.
    spread = groups.scales.double().abs().amax() * (1 << bits)
    assert_layer_close(out, reference.packed_linear(seen, weights, bias), seen, weights.abs() + spread)


@pytest.mark.parametrize("level", LEVELS)
def test_exact_products_are_those_of_the_weights(level: str) -> None:
    _core.set_cpu_isa(level)
    x, weights = normal(1, 23, 256), GROUPS.weights()
    out = packed_linear(x, GROUPS.packed().exact())
    assert_layer_close(out, x.double() @ weights.T, x, weights)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_the_others_nor_on_threads(level: str, dtype: torch.dtype) -> None:
    _core.set_cpu_isa(level)
    x, weight = normal(3, 300, 256).to(dtype), GROUPS.packed()
    whole = packed_linear(x, weight)
    torch.set_num_threads(2)
    assert torch.equal(packed_linear(x, weight), whole)
    torch.set_num_threads(1)
    for count in [*range(1, 20), 64, 299]:
        assert torch.equal(packed_linear(x[300 - count :], weight), whole[300 - count :])


@pytest.mark.parametrize("level", FMA_LEVELS)
def test_levels_with_fused_multiply_add_give_the_same_bits(level: str) -> None:
    x, weight = normal(4, 41, 256), GROUPS.packed()
    _core.set_cpu_isa("avx2")
    expected = packed_linear(x, weight)
    _core.set_cpu_isa(level)
    assert torch.equal(packed_linear(x, weight), expected)


def test_opcheck() -> None:
    x, weight = torch.randn(3, 256), GROUPS.packed()
    arguments = x, weight.panels, weight.bias, torch.zeros(3, 48), 0, weight.form.numbers, weight.order
    torch.library.opcheck(torch.ops.tts_kernels.packed_linear.default, arguments)


def changed(at: int, value: int) -> Tensor:
    group_of = GROUPS.group_of.clone()
    group_of[at] = value
    return group_of


@pytest.mark.parametrize(
    ("group_of", "error", "message"),
    [
        (changed(7, 4), ValueError, "group_of: got 0 to 4, expected 0 <= group < 4"),
        (changed(7, -1), ValueError, "group_of: got -1 to 3"),
        (
            changed(7, (int(GROUPS.group_of[7]) + 1) % 4),
            ValueError,
            "group_of: got groups of 63 to 65 inputs",
        ),
        (
            torch.zeros(256, dtype=torch.int64),
            ValueError,
            "got groups of 0 to 256 inputs, expected 64 in each",
        ),
        (GROUPS.group_of[:255], ValueError, r"group_of: got shape \[255\]"),
        (GROUPS.group_of.view(2, 128), ValueError, r"group_of: got shape \[2, 128\]"),
        (GROUPS.group_of.float(), TypeError, "group_of: got torch.float32"),
        (GROUPS.group_of.tolist(), TypeError, "group_of: got list"),
    ],
)
def test_groups_that_are_none(group_of: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(GROUPS, group_of=group_of).packed()


@pytest.mark.parametrize(
    ("order", "error", "message"),
    [
        (torch.zeros(256, dtype=torch.int32), ValueError, "order: got others than all inputs"),
        (torch.arange(1, 257, dtype=torch.int32), ValueError, "order: got others than all inputs"),
        (torch.arange(255, dtype=torch.int32), ValueError, r"order: got shape \[255\]"),
        (torch.arange(256), TypeError, "order: got torch.int64"),
    ],
)
def test_orders_that_are_none(order: Tensor, error: type[Exception], message: str) -> None:
    weight = GROUPS.packed()
    with pytest.raises(error, match=message):
        replace(weight, order=order)


@pytest.mark.parametrize("outside", [-1, 256, 2**31 - 1])
@pytest.mark.parametrize("exact", [False, True])
def test_an_order_that_was_changed_since_leads_nowhere(outside: int, exact: bool) -> None:
    weight = GROUPS.packed().exact() if exact else GROUPS.packed()
    weight.order[200] = outside
    out = torch.full((3, weight.columns), 7.0)
    with pytest.raises(ValueError, match=r"order: got .* expected 0 <= input < 256"):
        packed_linear(torch.randn(3, 256), weight, out=out)
    assert (out == 7.0).all()
    with pytest.raises(ValueError, match="order: got"):
        weight.rows(torch.tensor([3]))


def test_an_order_beside_float_weights() -> None:
    weight = PackedWeight.pack(torch.randn(16, 256))
    arguments = torch.randn(3, 256), weight.panels, None, torch.zeros(3, 16), 0, [], GROUPS.packed().order
    with pytest.raises(ValueError, match="order: got a tensor, expected None: panels are not quantised"):
        torch.ops.tts_kernels.packed_linear(*arguments)
