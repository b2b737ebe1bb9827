"""Quantised weights: packed as gguf reads them, and packed_linear against its float64 specification."""

from __future__ import annotations

from dataclasses import replace

import gguf
import pytest
import torch
from attention_checks import LEVELS
from hypothesis import given
from hypothesis import strategies as st
from quantised_cases import (
    HALVES,
    KINDS,
    as_gguf_reads,
    assert_layer_close,
    block_inputs,
    normal,
    random_blocks,
)
from torch import Tensor

from tts_kernels import PackedWeight, QuantForm, QuantisedWeight, _core, packed_linear, reference

pytestmark = pytest.mark.usefixtures("one_thread")

FMA_LEVELS = [level for level in LEVELS if level.startswith("a")]  # of x86-64


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_what_the_file_says(kind: str) -> None:
    """Any bits that are finite, also those that no quantiser writes."""
    inputs = 3 * block_inputs(kind)
    blocks = random_blocks(kind, 37, inputs, seed=5)
    weight = QuantisedWeight.from_gguf(kind, blocks)
    assert (weight.outputs, weight.inputs, weight.columns) == (37, inputs, 48)
    assert torch.equal(weight.dequantised(), as_gguf_reads(kind, blocks))
    up = random_blocks(kind, 37, inputs, seed=6)
    both = QuantisedWeight.from_gguf_gated(kind, blocks, up).dequantised()
    assert torch.equal(both, torch.stack([as_gguf_reads(kind, blocks), as_gguf_reads(kind, up)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 40])
def test_rows_are_those_of_the_dequantised_weight(kind: str, count: int) -> None:
    weight = QuantisedWeight.from_gguf(kind, random_blocks(kind, 37, 2 * block_inputs(kind), seed=7))
    rows = torch.randint(37, (count,), generator=torch.Generator().manual_seed(count))
    assert torch.equal(weight.rows(rows), weight.dequantised()[rows])


def test_rows_that_a_weight_does_not_have() -> None:
    weight = QuantisedWeight.from_gguf("Q4_0", random_blocks("Q4_0", 37, 32))
    for row in (-1, 37):
        with pytest.raises(IndexError, match="indices: got one that is not from 0 to below 37"):
            weight.rows(torch.tensor([3, row]))
    with pytest.raises(TypeError, match="indices"):
        weight.rows(torch.tensor([1.0]))


def test_many_outputs_are_packed_in_bands() -> None:
    blocks = random_blocks("Q4_K", 2100, 256)
    weight = QuantisedWeight.from_gguf("Q4_K", blocks)
    assert torch.equal(weight.dequantised(), as_gguf_reads("Q4_K", blocks))


@pytest.mark.parametrize("exponent", [0, 1, 2, 254])
def test_scales_of_mxfp4_at_the_ends_of_their_range(exponent: int) -> None:
    blocks = random_blocks("MXFP4", 16, 32)
    blocks[:, 0] = exponent
    blocks[:, 1:] &= 0x33  # magnitudes up to 3, as 12 times the largest scale has no float32
    weight = QuantisedWeight.from_gguf("MXFP4", blocks)
    assert torch.equal(weight.dequantised(), as_gguf_reads("MXFP4", blocks))


def test_memory_is_that_of_the_file() -> None:
    """Within 15 %, but for the kinds of two and three bits, which take four."""
    for kind in KINDS:
        blocks = random_blocks(kind, 64, 1024)
        share = QuantisedWeight.from_gguf(kind, blocks).panels.nbytes / blocks.nbytes
        assert share <= {"Q2_K": 2.0, "Q3_K": 1.35}.get(kind, 1.06), kind


@pytest.mark.parametrize("level", LEVELS)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.one_of(st.integers(0, 20), st.integers(0, 300)),
    groups=st.integers(1, 9),
    outputs=st.integers(1, 100),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    end=st.sampled_from(["plain", "bias", "gated", "add"]),
    apart=st.integers(0, 3),
    exact=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    level: str,
    kind: str,
    rows: int,
    groups: int,
    outputs: int,
    dtype: torch.dtype,
    end: str,
    apart: int,
    exact: bool,
    seed: int,
) -> None:
    _core.set_cpu_isa(level)

    def packed(weight: QuantisedWeight) -> QuantisedWeight:
        return weight.exact() if exact else weight

    inputs = groups * 32 if block_inputs(kind) == 32 else 256 * (1 + groups % 3)
    storage = torch.full((rows, inputs + apart), torch.nan, dtype=dtype)  # what lies between is not read
    x = storage[:, :inputs]
    x.copy_(normal(seed, rows, inputs))
    blocks = random_blocks(kind, outputs, inputs, seed)
    read, seen = as_gguf_reads(kind, blocks), x.double() if exact else reference.int8_rows(x)
    weights = [read]
    if end == "gated":
        up = random_blocks(kind, outputs, inputs, seed + 1)
        weights.append(as_gguf_reads(kind, up))
        out = packed_linear(x, packed(QuantisedWeight.from_gguf_gated(kind, blocks, up)))
        expected = reference.packed_linear(seen, read, up=weights[1])
    elif end == "bias":
        bias = normal(seed + 1, outputs)
        out = packed_linear(x, packed(QuantisedWeight.from_gguf(kind, blocks, bias)))
        expected = reference.packed_linear(seen, read, bias)
    elif end == "add" and outputs % 16 == 0:
        out = normal(seed + 1, rows, outputs)
        expected = out.double() + reference.packed_linear(seen, read)
        assert packed_linear(x, packed(QuantisedWeight.from_gguf(kind, blocks)), add_to=out) is out
    else:
        out = packed_linear(x, packed(QuantisedWeight.from_gguf(kind, blocks)))
        expected = reference.packed_linear(seen, read)
    assert out.dtype == torch.float32
    # Minima and offsets: terms larger than the weights that they add up to.
    sizes = [w.abs() + w.abs().amax() for w in weights]
    assert_layer_close(out, expected, seen, *sizes)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [*KINDS, "Q4_K exact"])
def test_a_rows_bits_do_not_depend_on_the_others_nor_on_threads(level: str, kind: str) -> None:
    _core.set_cpu_isa(level)
    kind, _, exact = kind.partition(" ")
    x, weight = normal(3, 300, 512), QuantisedWeight.from_gguf(kind, random_blocks(kind, 80, 512))
    weight = weight.exact() if exact else weight
    whole = packed_linear(x, weight)
    torch.set_num_threads(2)
    assert torch.equal(packed_linear(x, weight), whole)
    torch.set_num_threads(1)
    counts = [*range(1, 20), 31, 33, 64, 65, 127, 200, 299]
    for count in counts:
        assert torch.equal(packed_linear(x[:count], weight), whole[:count])
        assert torch.equal(packed_linear(x[300 - count :], weight), whole[300 - count :])


@pytest.mark.parametrize("level", FMA_LEVELS)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_K", "Q6_K", "IQ4_NL"])
def test_levels_with_fused_multiply_add_give_the_same_bits(level: str, kind: str) -> None:
    x, weight = normal(4, 41, 768), QuantisedWeight.from_gguf(kind, random_blocks(kind, 48, 768))
    _core.set_cpu_isa("avx2")
    expected = packed_linear(x, weight)
    _core.set_cpu_isa(level)
    assert torch.equal(packed_linear(x, weight), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_eight_bits_of_x_lose(kind: str) -> None:
    """At most half a step of each value; for normal values some 0.6 % of the result."""
    x, blocks = normal(5, 20, 1024), random_blocks(kind, 64, 1024)
    read = as_gguf_reads(kind, blocks).double()
    out, exact = packed_linear(x, QuantisedWeight.from_gguf(kind, blocks)).double(), x.double() @ read.T
    steps = (x.view(20, -1, 32).abs().amax(-1) / 127).repeat_interleave(32, 1).double()
    assert ((out - exact).abs() <= 0.501 * steps @ read.abs().T + 1e-6).all()
    assert (out - exact).norm() < 0.008 * exact.norm()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
def test_the_largest_products_do_not_saturate(level: str, kind: str, byte: int) -> None:
    """All weights at an end of their range beside inputs at +-127 times their scale, of the same sign
    throughout or in turn: sums of bytes that a level keeps in 16 bits come closest to their bounds."""
    _core.set_cpu_isa(level)
    blocks = random_blocks(kind, 16, 2 * block_inputs(kind), seed=8)
    scales = blocks.clone()
    blocks[:] = byte
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    places = [at + i for at in HALVES.get(kind, ()) for i in (0, 1)] or [0]
    for place in places:
        blocks[:, place::size] = scales[:, place::size]
    weight = QuantisedWeight.from_gguf(kind, blocks)
    signs = torch.ones(5, weight.inputs)
    signs[1], signs[2, ::2], signs[3, ::3] = -1, -1, -1
    signs[4] = torch.where(normal(9, weight.inputs) > 0, 1.0, -1.0)
    plain = as_gguf_reads(kind, blocks).double()
    found = packed_linear(signs, weight)[:, :16].double()
    bound = 1e-5 * (signs.double().abs() @ plain.T.abs()) + 1e-6
    assert ((found - signs.double() @ plain.T).abs() <= bound).all()


@pytest.mark.parametrize("level", LEVELS)
def test_rows_that_are_not_finite_or_tiny(level: str) -> None:
    _core.set_cpu_isa(level)
    weight = QuantisedWeight.from_gguf("Q8_0", random_blocks("Q8_0", 16, 128))
    x = normal(6, 8, 128)
    sound = packed_linear(x, weight)
    for row, value in enumerate([torch.nan, torch.inf, -torch.inf]):
        x[row, 40] = value
    x[3], x[4] = 0.0, 1e-40
    out = packed_linear(x, weight)
    assert out[:3].isnan().all()
    assert (out[3:5] == 0).all()
    assert torch.equal(out[5:], sound[5:])


def test_out_gets_the_same_bits() -> None:
    x, weight = normal(7, 5, 96), QuantisedWeight.from_gguf("Q5_0", random_blocks("Q5_0", 37, 96))
    memory = torch.full((5, 60), torch.nan)
    out = packed_linear(x, weight, out=memory[:, : weight.columns])
    assert out.data_ptr() == memory.data_ptr()
    assert torch.equal(out, packed_linear(x, weight))
    assert memory[:, weight.columns :].isnan().all()


def test_opcheck() -> None:
    weight = QuantisedWeight.from_gguf("Q4_0", random_blocks("Q4_0", 48, 64), torch.randn(48))
    arguments = torch.randn(3, 64), weight.panels, weight.bias, torch.zeros(3, 48), 0, weight.form.numbers
    torch.library.opcheck(torch.ops.tts_kernels.packed_linear.default, arguments)


def test_the_form_of_float_weights_is_empty() -> None:
    panels = PackedWeight.pack(torch.zeros(16, 32)).panels
    with pytest.raises(ValueError, match="form: got"):
        torch.ops.tts_kernels.packed_linear(torch.zeros(2, 32), panels, None, torch.zeros(2, 16), 0, [8, 32])


BLOCKS = random_blocks("Q4_0", 16, 64)
WEIGHT = QuantisedWeight.from_gguf("Q4_0", BLOCKS)


def with_scale(kind: str, value: float, at: int = 0) -> Tensor:
    blocks = random_blocks(kind, 20, 256)
    blocks[17, at : at + 2] = torch.tensor([value], dtype=torch.float16).view(torch.uint8)
    return blocks


def with_exponent(value: int) -> Tensor:
    blocks = random_blocks("MXFP4", 16, 64)
    blocks[3, 17] = value
    return blocks


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: QuantisedWeight.from_gguf("IQ2_XS", BLOCKS),
            ValueError,
            "kind: got 'IQ2_XS', expected one of",
        ),
        (lambda: QuantisedWeight.from_gguf("F16", BLOCKS), ValueError, "kind: got 'F16'"),
        (lambda: QuantisedWeight.from_gguf(2, BLOCKS), TypeError, "kind: got 2"),
        (
            lambda: QuantisedWeight.from_gguf("Q4_0", BLOCKS[:, :35].contiguous()),
            ValueError,
            "blocks: got .*row_bytes = 35.*row_bytes % 18 == 0",
        ),
        (lambda: QuantisedWeight.from_gguf("Q4_0", BLOCKS[0]), ValueError, r"blocks: got shape \[36\]"),
        (lambda: QuantisedWeight.from_gguf("Q4_0", BLOCKS.int()), TypeError, "blocks: got torch.int32"),
        (lambda: QuantisedWeight.from_gguf("Q4_0", BLOCKS[:0]), ValueError, "blocks: got outputs = 0"),
        (lambda: QuantisedWeight.from_gguf("Q4_0", BLOCKS, torch.zeros(15)), ValueError, "bias: got shape"),
        (lambda: QuantisedWeight.from_gguf_gated("Q4_0", BLOCKS, BLOCKS[:8]), ValueError, "up: got shape"),
        *(
            (
                lambda k=kind, v=value, a=at: QuantisedWeight.from_gguf(k, with_scale(k, v, a)),
                ValueError,
                "blocks: got .* blocks with a scale that is NaN or infinite",
            )
            for kind, at in [("Q4_0", 0), ("Q4_1", 2), ("Q8_0", 0), ("Q4_K", 2), ("Q6_K", 208)]
            for value in (float("nan"), float("inf"))
        ),
        (lambda: QuantisedWeight.from_gguf("MXFP4", with_exponent(255)), ValueError, "NaN or infinite"),
        (lambda: packed_linear(torch.zeros(2, 32), WEIGHT), ValueError, r"x: got shape \[2, 32\].* = 64"),
        (lambda: packed_linear(torch.zeros(64), WEIGHT), ValueError, r"x: got shape \[64\]"),
        (lambda: packed_linear(torch.zeros(2, 64).double(), WEIGHT), TypeError, "x: got torch.float64"),
        (lambda: replace(WEIGHT, inputs=63), ValueError, "inputs: got 63"),
        (lambda: replace(WEIGHT, inputs=128), ValueError, "inputs: got 128.*num_blocks"),
        (lambda: replace(WEIGHT, outputs=33), ValueError, "outputs: got 33"),
        (lambda: replace(WEIGHT, panels=WEIGHT.panels[:, :, 1:]), ValueError, "panels: got shape"),
        (lambda: replace(WEIGHT, panels=WEIGHT.panels.float()), TypeError, "panels: got torch.float32"),
        (lambda: replace(WEIGHT, form="Q4_0"), TypeError, "form: got str"),
        (lambda: replace(WEIGHT, gated=True), ValueError, "outputs: got 16"),
        (lambda: QuantForm(7, 32, "float16"), ValueError, "form: got 7 bits"),
        (lambda: QuantForm(4, 64, "float16"), ValueError, "form: got groups of 64"),
        (lambda: QuantForm(4, 32, "float64"), ValueError, "scales: got 'float64'"),
        (lambda: QuantForm(4, 32, "float16", has_zeros=1), TypeError, "has_zeros: got 1"),
        (
            lambda: QuantForm(4, 32, "float16", has_min=True, has_zeros=True),
            ValueError,
            "form: got minima beside zero points",
        ),
        (
            lambda: QuantForm(4, 32, "two-level", has_zeros=True),
            ValueError,
            "form: got zero points beside scales in two levels",
        ),
        (lambda: QuantForm(8, 32, "float16", offset=100), ValueError, "form: got values up to 255"),
        (lambda: QuantForm(4, 32, "float16", True, 8), ValueError, "form: got an offset beside minima"),
        (lambda: QuantForm(5, 32, "float16", table=(0,) * 16), ValueError, "form: got a table for 5 bits"),
        (lambda: QuantForm(4, 32, "float16", table=(0,) * 15), ValueError, "table: got"),
        (lambda: QuantForm.of([4, 32]), ValueError, r"form: got \[4, 32\]"),
        (lambda: QuantForm.of([4, 32, 0, 3, 0]), ValueError, r"form: got \[4, 32, 0, 3, 0\]"),
        (lambda: QuantForm.of([4, 32, 4, 0, 0]), ValueError, r"form: got \[4, 32, 4, 0, 0\]"),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_the_kinds_are_those_that_gguf_knows() -> None:
    for kind in KINDS:
        assert kind in gguf.GGMLQuantizationType.__members__
