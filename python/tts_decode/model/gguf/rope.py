"""Converts the rotary positions of a GGUF file into `rope_parameters` of a transformers config.

llama.cpp rotates pair i of a head of n rotated dimensions at position p by p * theta_i and multiplies cosine
and sine by a magnitude (`rope_yarn` in ggml/src/ggml-cpu/ops.cpp, and src/llama-context.cpp):

    theta_i   = base^(-2i/n) / factor_i * (scale * (1 - ramp_i) + ramp_i)
    magnitude = attn_factor, with YaRN times max(1, 1 + 0.1 ln(1 / scale))

factor_i comes from the file's tensor of rotary factors, or is 1. scale is 1 / rope.scaling.factor. ramp_i is
0 except with YaRN, where it falls from 1 to 0 between the pairs that turn beta_fast and beta_slow times in
the original context. Every kind of scaling is thus one divisor per pair and one magnitude, as `longrope`
takes them. If the lists for short and long texts are equal, the length of the text does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .header import Header

_KINDS = ("none", "linear", "yarn", "longrope")
_LARGEST_MAGNITUDE = 1000
_LARGEST_DIVISOR = 1e31  # files have 1e30 for a pair that must not turn
_SHORT, _LONG, _ALL = "rope_factors_short.weight", "rope_factors_long.weight", "rope_freqs.weight"


def rope_parameters(header: Header, pairs: int, factors: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Returns the config's `rope_parameters`.

    pairs: half the rotated dimensions of a head. factors: the file's rotary tensors by name, all above 0.
    Raises ModelLoadError for a scaling that is not supported.
    """
    base = header.number("rope.freq_base", 10000.0)
    if base <= 1:
        raise header.refuse(header.path("rope.freq_base"), "a number above 1")
    scaling = _scaling(header, base, pairs)
    magnitude = header.number("rope.scaling.attn_factor", 1.0) * _yarn_magnitude(header)
    if magnitude > _LARGEST_MAGNITUDE:
        raise header.refuse(header.path("rope.scaling.attn_factor"), f"at most {_LARGEST_MAGNITUDE}")
    context = header.integer("context_length")
    kind = _kind(header)
    if _ALL in factors:
        short = long = factors[_ALL]
    elif _SHORT in factors and _LONG in factors:
        short, long = factors[_SHORT], factors[_LONG]
        context = header.integer("rope.scaling.original_context_length", context)
    elif factors or kind == "longrope":
        raise header.refuse(
            header.path("rope.scaling.type"), f"both tensors {_SHORT} and {_LONG} in the file"
        )
    else:
        short = long = [1.0] * pairs
    divisors = [
        [factor / scale for factor, scale in zip(side, scaling, strict=True)] for side in (short, long)
    ]
    if not all(1 / _LARGEST_DIVISOR < divisor < _LARGEST_DIVISOR for side in divisors for divisor in side):
        raise header.refuse(header.path("rope.scaling.factor"), "with the file's factors a float32")
    if magnitude == 1 and all(divisor == 1 for side in divisors for divisor in side):
        return {"rope_type": "default", "rope_theta": base}
    return {
        "rope_type": "longrope",
        "rope_theta": base,
        "short_factor": divisors[0],
        "long_factor": divisors[1],
        "factor": 1.0,
        "attention_factor": magnitude,
        "original_max_position_embeddings": context,
    }


def _kind(header: Header) -> str:
    kind = header.text("rope.scaling.type", "linear")  # llama.cpp's default
    if kind not in _KINDS:
        raise header.refuse(header.path("rope.scaling.type"), f"one of {', '.join(_KINDS)}")
    return kind


def _factor(header: Header) -> float:
    old = header.number("rope.scale_linear", 1.0)
    factor = header.number("rope.scaling.factor", old)
    return 1.0 if _kind(header) == "none" else factor


def _scaling(header: Header, base: float, pairs: int) -> list[float]:
    """Returns scale * (1 - ramp_i) + ramp_i for each pair."""
    scale = 1 / _factor(header)
    if _kind(header) != "yarn":
        _only(header, "rope.scaling.yarn_ext_factor", 0.0)
        return [scale] * pairs
    _only(header, "rope.scaling.yarn_ext_factor", 1.0)
    original = header.integer("rope.scaling.original_context_length", header.integer("context_length"))
    fast = header.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = header.number("rope.scaling.yarn_beta_slow", 1.0)
    low = max(0, math.floor(_dimension(fast, original, base, pairs)))
    high = min(2 * pairs - 1, math.ceil(_dimension(slow, original, base, pairs)))
    ramps = [1 - min(1.0, max(0.0, (pair - low) / max(0.001, high - low))) for pair in range(pairs)]
    return [scale * (1 - ramp) + ramp for ramp in ramps]


def _dimension(turns: float, original: int, base: float, pairs: int) -> float:
    """Returns the pair, as a fraction, that turns `turns` times in the original context."""
    return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(base)


def _yarn_magnitude(header: Header) -> float:
    if _kind(header) != "yarn":
        return 1.0
    magnitude = max(1.0, 1 + 0.1 * math.log(_factor(header)))
    # Files hold the whole magnitude here, which llama.cpp no longer reads, or 1, which it once multiplied by.
    _only(header, "rope.scaling.yarn_attn_factor", 1.0, magnitude)
    return magnitude


def _only(header: Header, key: str, *allowed: float) -> None:
    value = header.number(key, allowed[0], zero=True)
    if not any(math.isclose(value, one, rel_tol=1e-4) for one in allowed):
        raise header.refuse(header.path(key), " or ".join(f"{one:.6g}" for one in dict.fromkeys(allowed)))
