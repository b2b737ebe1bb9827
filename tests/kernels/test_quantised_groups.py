"""Weights in groups with a scale and a zero point: packed exactly, multiplied as their definition says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_checks import LEVELS
from hypothesis import given
from hypothesis import strategies as st
from quantised_cases import Groups, assert_layer_close, normal
from torch import Tensor

from tts_kernels import QuantisedWeight, _core, packed_linear, reference

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
BITS = [4, 5, 6, 8]
FMA_LEVELS = [level for level in LEVELS if level.startswith("a")]  # of x86-64


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [16, 32, 48, 64, 128, 384])
def test_a_weight_is_its_scale_times_what_its_number_is_above_zero(
    bits: int, group: int, dtype: torch.dtype, zeros: bool
) -> None:
    groups = Groups.random(bits, 37, 384, group, dtype, zeros)
    weight = groups.packed()
    assert (weight.outputs, weight.inputs, weight.form.has_zeros) == (37, 384, zeros)
    assert torch.equal(weight.dequantised(), groups.weights().float())


def test_many_outputs_are_packed_in_bands() -> None:
    groups = Groups.random(4, 2100, 64, 32, torch.float16, zeros=True)
    assert torch.equal(groups.packed().dequantised(), groups.weights().float())


def test_numbers_may_lie_in_any_order() -> None:
    """As checkpoints have them, whose rows are inputs."""
    groups = Groups.random(4, 48, 128, 64, torch.float16, zeros=True)
    turned = replace(
        groups, **{name: getattr(groups, name).T.contiguous().T for name in ("numbers", "scales", "zeros")}
    )
    assert torch.equal(turned.packed().panels, groups.packed().panels)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "dtype"), [(4, torch.float16), (8, torch.float32)])
def test_rows_of_it(bits: int, dtype: torch.dtype, zeros: bool) -> None:
    groups = Groups.random(bits, 40, 192, 96, dtype, zeros)
    wanted = torch.tensor([39, 0, 17, 17])
    assert torch.equal(groups.packed().rows(wanted), groups.weights()[wanted].float())


@pytest.mark.parametrize(
    ("bits", "dtype", "zeros", "expected"),
    [
        (4, torch.float16, False, 4.5),
        (4, torch.float16, True, 4.75),
        (8, torch.bfloat16, False, 8.5),
        (8, torch.float32, False, 9.0),
        (8, torch.float32, True, 9.25),
    ],
)
def test_bits_a_weight(bits: int, dtype: torch.dtype, zeros: bool, expected: float) -> None:
    weight = Groups.random(bits, 64, 256, 128, dtype, zeros).packed()
    assert 8 * weight.panels.nbytes / (64 * 256) == expected


@pytest.mark.parametrize("level", LEVELS)
@given(
    bits=st.sampled_from(BITS),
    dtype=st.sampled_from(DTYPES),
    zeros=st.booleans(),
    rows=st.one_of(st.integers(0, 20), st.integers(0, 300)),
    each=st.sampled_from([16, 32, 64, 96, 128]),
    count=st.integers(1, 5),
    outputs=st.integers(1, 100),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    level: str,
    bits: int,
    dtype: torch.dtype,
    zeros: bool,
    rows: int,
    each: int,
    count: int,
    outputs: int,
    has_bias: bool,
    seed: int,
) -> None:
    _core.set_cpu_isa(level)
    inputs = max(each, 32) * count
    groups = Groups.random(bits, outputs, inputs, each, dtype, zeros, seed)
    x, bias = normal(seed, rows, inputs), normal(seed + 1, outputs) if has_bias else None
    out = packed_linear(x, groups.packed(bias))
    seen, weights = reference.int8_rows(x), groups.weights()
    # u and zero points: terms larger than the weights that they add up to.
    spread = groups.scales.double().abs().amax() * (1 << bits)
    assert_layer_close(out, reference.packed_linear(seen, weights, bias), seen, weights.abs() + spread)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("bits", "dtype"), [(4, torch.float16), (4, torch.float32), (8, torch.bfloat16), (8, torch.float32)]
)
@pytest.mark.parametrize("zeros", [False, True])
def test_a_rows_bits_do_not_depend_on_the_others_nor_on_threads(
    level: str, bits: int, dtype: torch.dtype, zeros: bool
) -> None:
    _core.set_cpu_isa(level)
    x, weight = normal(3, 300, 256), Groups.random(bits, 80, 256, 128, dtype, zeros).packed()
    whole = packed_linear(x, weight)
    torch.set_num_threads(2)
    assert torch.equal(packed_linear(x, weight), whole)
    torch.set_num_threads(1)
    for count in [*range(1, 20), 31, 33, 64, 65, 127, 299]:
        assert torch.equal(packed_linear(x[:count], weight), whole[:count])
        assert torch.equal(packed_linear(x[300 - count :], weight), whole[300 - count :])


@pytest.mark.parametrize("level", FMA_LEVELS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_with_fused_multiply_add_give_the_same_bits(level: str, bits: int, dtype: torch.dtype) -> None:
    x, weight = normal(4, 41, 384), Groups.random(bits, 48, 384, 128, dtype, zeros=True).packed()
    _core.set_cpu_isa("avx2")
    expected = packed_linear(x, weight)
    _core.set_cpu_isa(level)
    assert torch.equal(packed_linear(x, weight), expected)


def test_opcheck() -> None:
    weight = Groups.random(4, 48, 64, 32, torch.float32, zeros=True).packed(torch.randn(48))
    arguments = torch.randn(3, 64), weight.panels, weight.bias, torch.zeros(3, 48), 0, weight.form.numbers
    torch.library.opcheck(torch.ops.tts_kernels.packed_linear.default, arguments)


GROUPS = Groups.random(4, 20, 128, 64, torch.float16, zeros=True)
EIGHT = Groups.random(8, 20, 128, 64, torch.float32, zeros=False)


def one_scale(groups: Groups, value: float) -> Tensor:
    scales = groups.scales.clone()
    scales[17, 1] = value
    return scales


@pytest.mark.parametrize(
    ("groups", "changed", "error", "message"),
    [
        (GROUPS, {"bits": 7}, ValueError, "form: got 7 bits"),
        (GROUPS, {"bits": 3}, ValueError, "bits: got 3"),
        (GROUPS, {"bits": 4.0}, TypeError, "bits: got 4.0"),
        (GROUPS, {"numbers": GROUPS.numbers.int()}, TypeError, "numbers: got torch.int32"),
        (GROUPS, {"numbers": GROUPS.numbers + 1}, ValueError, "numbers: got 16, expected integers of 4 bits"),
        (GROUPS, {"numbers": GROUPS.numbers[:, :48]}, ValueError, "numbers: got .*inputs = 48.*inputs % 32"),
        (GROUPS, {"numbers": GROUPS.numbers[0]}, ValueError, r"numbers: got shape \[128\]"),
        (GROUPS, {"zeros": GROUPS.zeros + 1}, ValueError, "zeros: got 16, expected integers of 4 bits"),
        (GROUPS, {"zeros": GROUPS.zeros.int()}, TypeError, "zeros: got torch.int32"),
        (GROUPS, {"zeros": GROUPS.zeros[:, :1]}, ValueError, r"zeros: got shape \[20, 1\]"),
        (GROUPS, {"zeros": None}, TypeError, "zeros: got None"),
        (GROUPS, {"zeros": -1}, ValueError, "zeros: got -1"),
        (GROUPS, {"scales": GROUPS.scales[:5]}, ValueError, r"scales: got shape \[5, 2\]"),
        (GROUPS, {"scales": GROUPS.scales.double()}, TypeError, "scales: got torch.float64"),
        (
            GROUPS,
            {"scales": torch.ones(20, 3), "zeros": 8},
            ValueError,
            "scales: got .*groups = 3.*inputs % groups == 0",
        ),
        (GROUPS, {"scales": torch.ones(20, 16), "zeros": 8}, ValueError, "scales: got .*groups = 16"),
        (GROUPS, {"scales": torch.ones(20, 0), "zeros": 8}, ValueError, "scales: got .*groups = 0"),
        *(
            (GROUPS, {"scales": one_scale(GROUPS, value)}, ValueError, "scales: got NaN, infinity")
            for value in (float("nan"), float("inf"), -float("inf"))
        ),
        (EIGHT, {"scales": one_scale(EIGHT, 2e36)}, ValueError, "scales: got .* does not hold 256 times"),
        (EIGHT, {"zeros": 100}, ValueError, "form: got values up to 255 less 100"),
    ],
)
def test_bad_arguments(
    groups: Groups, changed: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(groups, **changed).packed()


def test_bias_of_another_size() -> None:
    with pytest.raises(ValueError, match="bias: got shape"):
        GROUPS.packed(torch.zeros(19))


def test_eight_bits_with_one_zero_point_that_no_offset_serves() -> None:
    """A tensor of zero points does."""
    groups = replace(EIGHT, zeros=torch.full((20, 2), 100, dtype=torch.uint8))
    assert torch.equal(groups.packed().dequantised(), groups.weights().float())


def test_a_weight_with_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="scales: got"):
        QuantisedWeight.from_groups(GROUPS.numbers, torch.ones(20, 2, requires_grad=True), 8, bits=4)
