"""packed_linear against its float64 specification, at every instruction-set level."""

from __future__ import annotations

import pytest
import torch
from attention_checks import LEVELS, PAIR_LEVELS
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tts_kernels import PackedWeight, _core, packed_linear, reference

pytestmark = pytest.mark.usefixtures("one_thread")


FLOATS = st.sampled_from([torch.float32, torch.bfloat16])


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def as_read(x: Tensor, weight: Tensor, level: str) -> Tensor:
    """x as the level multiplies it: levels of bfloat16 pairs round it."""
    return x.bfloat16() if level in PAIR_LEVELS and weight.dtype == torch.bfloat16 else x


def tolerance(inputs: int) -> dict[str, float]:
    """Sums of float32, term by term."""
    return {"rtol": 0.0, "atol": 1e-6 * inputs}


@pytest.mark.parametrize("level", LEVELS)
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 200),
    dtypes=st.sampled_from(
        [(a, b) for a in (torch.float32, torch.bfloat16) for b in (torch.float32, torch.bfloat16)]
    ),
    kind=st.sampled_from(["plain", "bias", "gated", "add"]),
    apart=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    level: str,
    rows: int,
    inputs: int,
    outputs: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    kind: str,
    apart: int,
    seed: int,
) -> None:
    _core.set_cpu_isa(level)
    generator = torch.Generator().manual_seed(seed)
    if dtypes[1] == torch.bfloat16:
        inputs += inputs % 2
    storage = torch.full((rows, inputs + apart), torch.nan, dtype=dtypes[0])  # what lies between is not read
    x = storage[:, :inputs]
    x.copy_(random(generator, rows, inputs))
    weight = random(generator, outputs, inputs).to(dtypes[1])
    near = tolerance(inputs)
    seen = as_read(x, weight, level)
    if kind == "gated":
        up = random(generator, outputs, inputs).to(dtypes[1])
        out = packed_linear(x, PackedWeight.pack_gated(weight, up))
        expected = reference.packed_linear(seen, weight, up=up)
        near["rtol"] = 4 * near["atol"]
        near["atol"] *= 4 * inputs**0.5
    elif kind == "bias":
        bias = random(generator, outputs).to(dtypes[1])
        out = packed_linear(x, PackedWeight.pack(weight, bias))
        expected = reference.packed_linear(seen, weight, bias)
    elif kind == "add" and outputs % 16 == 0:
        out = random(generator, rows, outputs)
        expected = out.double() + reference.packed_linear(seen, weight)
        assert packed_linear(x, PackedWeight.pack(weight), add_to=out) is out
    else:
        out = packed_linear(x, PackedWeight.pack(weight))
        expected = reference.packed_linear(seen, weight)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, **near)


@pytest.mark.parametrize("outputs", [32, 37])
def test_out_gets_the_same_bits(outputs: int) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = random(generator, 5, 24), PackedWeight.pack(random(generator, outputs, 24))
    memory = torch.full((5, 60), torch.nan)
    out = packed_linear(x, weight, out=memory[:, : weight.columns])
    assert out.data_ptr() == memory.data_ptr()
    assert torch.equal(out, packed_linear(x, weight))
    assert memory[:, weight.columns :].isnan().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_the_others_nor_on_threads(level: str, dtype: torch.dtype) -> None:
    _core.set_cpu_isa(level)
    generator = torch.Generator().manual_seed(3)
    x, weight = random(generator, 130, 402), PackedWeight.pack(random(generator, 112, 402).to(dtype))
    whole = packed_linear(x, weight)
    torch.set_num_threads(2)
    assert torch.equal(packed_linear(x, weight), whole)
    torch.set_num_threads(1)
    for begin, end in [(0, 1), (5, 7), (13, 60), (20, 120), (129, 130)]:
        assert torch.equal(packed_linear(x[begin:end], weight), whole[begin:end])


@pytest.mark.parametrize("offset", [0, 1])
def test_weights_of_bfloat16_anywhere_in_memory_are_packed(offset: int) -> None:
    """Pairs are moved as one number, which memory at an odd place is not."""
    storage = torch.arange(offset + 2 * 17 * 6).bfloat16()
    weight, up = storage[offset:].view(2, 17, 6).unbind()
    panels = PackedWeight.pack(weight).panels
    gated = PackedWeight.pack_gated(weight, up).panels
    assert (panels.shape, gated.shape) == ((2, 3, 16, 2), (4, 3, 16, 2))
    for lane in range(32):
        for k in range(6):
            place = lane // 16, k // 2, lane % 16, k % 2
            expected = weight[lane, k] if lane < 17 else 0
            assert panels[place] == expected
            assert gated[(2 * place[0], *place[1:])] == expected
            assert gated[(2 * place[0] + 1, *place[1:])] == (up[lane, k] if lane < 17 else 0)


def test_opcheck() -> None:
    x, weight = torch.randn(3, 32), PackedWeight.pack(torch.randn(48, 32), torch.randn(48))
    arguments = x, weight.panels, weight.bias, torch.zeros(3, 48), 0
    torch.library.opcheck(torch.ops.tts_kernels.packed_linear.default, arguments)


WEIGHT = PackedWeight.pack(torch.zeros(16, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: packed_linear(torch.zeros(2, 5), WEIGHT), ValueError, r"x: got shape \[2, 5\].*= \[2, 4\]"),
        (lambda: packed_linear(torch.zeros(4, 2).T, WEIGHT), ValueError, "x: got .* contiguous channels"),
        (lambda: packed_linear(torch.zeros(2, 4).double(), WEIGHT), TypeError, "x: got torch.float64"),
        (
            lambda: packed_linear(torch.zeros(2, 4), WEIGHT, add_to=torch.zeros(2, 15)),
            ValueError,
            r"add_to: got shape \[2, 15\].*= \[2, 16\]",
        ),
        (
            lambda: packed_linear(torch.zeros(2, 4), WEIGHT, out=torch.zeros(3, 16)),
            ValueError,
            r"out: got shape \[3, 16\].*= \[2, 16\]",
        ),
        (
            lambda: packed_linear(
                torch.zeros(2, 4), WEIGHT, out=torch.zeros(2, 16), add_to=torch.zeros(2, 16)
            ),
            ValueError,
            "out: got a tensor beside add_to",
        ),
        (
            lambda: packed_linear(
                torch.zeros(2, 4), PackedWeight.pack(torch.zeros(5, 4)), add_to=torch.zeros(2, 5)
            ),
            ValueError,
            "add_to: got a tensor, expected None: .* 5 outputs",
        ),
        (
            lambda: packed_linear(torch.zeros(2, 4), PackedWeight(WEIGHT.panels, torch.zeros(15), 16)),
            ValueError,
            r"bias: got shape \[15\], expected .* = \[16\]",
        ),
        (
            lambda: packed_linear(torch.zeros(2, 4), PackedWeight(WEIGHT.panels.half(), None, 16)),
            TypeError,
            "panels: got torch.float16",
        ),
        (
            lambda: packed_linear(torch.zeros(2, 4), PackedWeight(WEIGHT.panels[0], None, 16)),
            ValueError,
            r"panels: got shape \[4, 16\]",
        ),
        (
            lambda: PackedWeight.pack(torch.zeros(4, 3).bfloat16()),
            ValueError,
            "weight: got outputs = 4, inputs = 3",
        ),
        (lambda: PackedWeight.pack(torch.zeros(4).half()), TypeError, "weight: got torch.float16"),
        (lambda: PackedWeight.pack(torch.zeros(4)), ValueError, r"weight: got shape \[4\]"),
        (lambda: PackedWeight.pack(torch.zeros(4, 2), torch.zeros(3)), ValueError, r"bias: got shape \[3\]"),
        (
            lambda: PackedWeight.pack_gated(torch.zeros(4, 2), torch.zeros(4, 4)),
            ValueError,
            "up: got shape",
        ),
    ],
)
def test_bad_arguments(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    outputs=st.integers(1, 700),
    inputs=st.integers(1, 90),
    shift=st.integers(0, 1),
    seed=st.integers(0, 2**31),
)
def test_weights_are_packed_in_their_memory_and_come_back(
    dtype: torch.dtype, outputs: int, inputs: int, shift: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs *= 2
    weight = random(generator, outputs, inputs).to(dtype)
    room = torch.full(((outputs + shift) * inputs,), torch.nan, dtype=dtype)
    taken = room[shift * inputs :].view(outputs, inputs)
    taken.copy_(weight)
    bias = random(generator, outputs)
    packed, expected = PackedWeight.pack_in_place(taken, bias), PackedWeight.pack(weight, bias)
    assert torch.equal(packed.panels, expected.panels)
    assert torch.equal(packed.bias, expected.bias)
    fits = outputs % 16 == 0 and taken.data_ptr() % 64 == 0
    assert (packed.panels.data_ptr() == taken.data_ptr()) is fits
    assert fits or torch.equal(taken, weight)
    assert torch.equal(packed.unpacked(), weight)
    wide = packed.widened()
    assert torch.equal(wide.panels, PackedWeight.pack(weight.float()).panels)
    assert (wide is packed) is (dtype == torch.float32)
    chosen = torch.randint(outputs, (7,), generator=generator)
    assert torch.equal(packed.rows(chosen), weight[chosen])


def test_what_rows_and_unpacked_refuse() -> None:
    weight = torch.randn(20, 6)
    packed, gated = PackedWeight.pack(weight), PackedWeight.pack_gated(weight, weight)
    assert packed.rows(torch.zeros(0, dtype=torch.long)).shape == (0, 6)
    for wrong in (20, -1):
        with pytest.raises(IndexError, match="from 0 to below 20"):
            packed.rows(torch.tensor([0, wrong]))
    with pytest.raises(TypeError, match="indices"):
        packed.rows(torch.tensor([0.0]))
    for call in (gated.unpacked, lambda: gated.rows(torch.tensor([0]))):
        with pytest.raises(ValueError, match="got a gated weight"):
            call()
