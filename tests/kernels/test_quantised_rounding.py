"""Float weights rounded to 8 and 4 bits: as near as their forms allow, group by group."""

from __future__ import annotations

import pytest
import torch
from quantised_cases import normal
from torch import Tensor

from tts_kernels import QuantisedWeight


def rounded(weight: Tensor, bits: int) -> Tensor:
    return QuantisedWeight.quantise(weight, bits).dequantised().double()


def errors(weight: Tensor, made: Tensor) -> Tensor:
    """Squared, of each group: [outputs, groups]."""
    return (made - weight.double()).square().unflatten(1, (-1, 32)).sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eight_bits_are_off_by_half_a_step(dtype: torch.dtype) -> None:
    weight = (0.05 * normal(0, 50, 256)).to(dtype)
    largest = weight.double().abs().unflatten(1, (-1, 32)).amax(-1)
    steps = (largest / 127).half().double().repeat_interleave(32, 1)
    made = rounded(weight, 8)
    # 127 steps of a scale that float16 rounded down end below the largest weight, by 127 * 2^-11 of a step.
    assert ((made - weight.double()).abs() <= 0.5001 * steps).all()
    assert torch.equal(made / steps, (made / steps).round())
    assert (
        QuantisedWeight.quantise(weight, 8).form
        == QuantisedWeight.from_gguf("Q8_0", torch.zeros(16, 34, dtype=torch.uint8)).form
    )


def test_four_bits_are_nearer_than_steps_from_end_to_end() -> None:
    weight = 0.05 * normal(1, 300, 512)
    groups = weight.double().unflatten(1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).half().double()
    least = low.half().double()
    plain = ((groups - least) / step).round().clamp(0, 15) * step + least
    made = errors(weight, rounded(weight, 4))
    expected = errors(weight, plain.flatten(1))
    assert (made <= expected * 1.0001 + 1e-12).all()
    assert made.sum() < 0.9 * expected.sum()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_the_form_has_are_exact(bits: int) -> None:
    """Integers times a power of two, with the ends of the range in each group."""
    ends = (0, 15) if bits == 4 else (-127, 127)
    weight = torch.randint(*ends, (40, 128), generator=torch.Generator().manual_seed(2)).float()
    weight[:, ::32], weight[:, 1::32] = ends[0], ends[1]
    weight = weight / 64 - (0.25 if bits == 4 else 0.0)
    assert torch.equal(rounded(weight, bits), weight.double())


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_one_value_and_tiny_ones(bits: int) -> None:
    weight = torch.full((16, 64), 0.375)
    weight[1], weight[2], weight[3] = 0.0, -1e-9, 1e-30
    weight[4, :32] = 0.0
    made = rounded(weight, bits)
    assert ((made - weight.double()).abs() <= 2e-3 * weight.abs() + 1e-7).all()
    assert (made[1] == 0).all()


def test_many_outputs_are_rounded_by_themselves() -> None:
    weight = normal(3, 1100, 96)
    for bits in (4, 8):
        assert torch.equal(rounded(weight, bits)[1050:], rounded(weight[1050:].clone(), bits))


def test_a_bias_stays() -> None:
    weight = QuantisedWeight.quantise(normal(4, 20, 32), 8, torch.arange(20.0).bfloat16())
    assert torch.equal(weight.bias[:20], torch.arange(20.0))


@pytest.mark.parametrize(
    ("weight", "bits", "error", "message"),
    [
        (torch.zeros(4, 32), 5, ValueError, "bits: got 5, expected 4 or 8"),
        (torch.zeros(4, 32), "8", TypeError, "bits: got '8'"),
        (torch.zeros(4, 48), 8, ValueError, "weight: got .*inputs = 48"),
        (torch.zeros(32), 8, ValueError, r"weight: got shape \[32\]"),
        (torch.zeros(4, 32, dtype=torch.int8), 8, TypeError, "weight: got torch.int8"),
        *(
            (torch.full((4, 32), value), bits, ValueError, "weight: got NaN, infinity or more than")
            for value in (float("nan"), float("inf"), 1e7)
            for bits in (4, 8)
        ),
    ],
)
def test_bad_arguments(weight: Tensor, bits: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        QuantisedWeight.quantise(weight, bits)
