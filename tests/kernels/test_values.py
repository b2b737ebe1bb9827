"""Checks of single Python values: what counts as an integer or a number, ranges, and what an error says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tts_kernels.checks import any_integer, instance, integer, is_integer, is_real, number


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_integers_of_numpy_count_and_become_ints(value: Any) -> None:
    for found in (integer("n", value, 1, 3), any_integer("n", value)):
        assert found == 3
        assert type(found) is int
    assert is_integer(value)
    assert is_real(value)


def test_any_integer_has_no_range() -> None:
    assert any_integer("seed", 10**30) == 10**30
    with pytest.raises(ValueError, match="expected -9223372036854775808 <= seed <= 9223372036854775807"):
        integer("seed", 10**30)


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, "3", None, torch.tensor(3)])
def test_what_is_no_integer_is_refused_by_its_name(value: Any) -> None:
    for check in (integer, any_integer):
        with pytest.raises(TypeError, match=r"^n: got .*, expected an int$"):
            check("n", value)
    assert not is_integer(value)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_count_and_become_floats(value: Any) -> None:
    found = number("p", value, above=0, high=1)
    assert found == 0.5
    assert type(found) is float


def test_integers_are_numbers_too() -> None:
    assert [number("p", value) for value in (2, np.int32(2), torch.tensor(2))] == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("value", [True, np.bool_(False), torch.tensor(True), "0.5", None, 1j, torch.ones(2)])
def test_what_is_no_number_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^p: got .*, expected a finite number$"):
        number("p", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, torch.tensor(math.nan), 10**400])
def test_numbers_are_finite(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^p: got .*, expected a finite number$"):
        number("p", value)


@pytest.mark.parametrize(
    ("limits", "fits", "beyond", "expected"),
    [
        ({"low": 0}, 0, -0.1, "a finite number >= 0"),
        ({"above": 0}, 0.1, 0, "a finite number > 0"),
        ({"low": 0, "high": 1}, 1, 1.1, "a finite number, 0 <= p <= 1"),
        ({"above": 0, "below": 1}, 0.9, 1, "a finite number, 0 < p < 1"),
        ({"above": 0, "what": "a number of seconds"}, 3, -3, "a number of seconds > 0"),
        ({"high": 1}, -7, 2, "a finite number <= 1"),
    ],
)
def test_ranges_are_named(limits: dict[str, Any], fits: float, beyond: float, expected: str) -> None:
    assert number("p", fits, **limits) == fits
    with pytest.raises(ValueError, match=f"^p: got {beyond}, expected {expected}$"):
        number("p", beyond, **limits)


def test_an_instance_is_asked_for_with_a_remedy_or_without() -> None:
    with pytest.raises(TypeError, match=r"^q: got int, expected a str$"):
        instance("q", 3, str)
    with pytest.raises(TypeError, match=r"^q: got int, expected a str; write it$"):
        instance("q", 3, str, "write it")
