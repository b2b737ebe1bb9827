"""The arguments of `DecoderLayers` calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..checks import Array, Choice, Guard, Number, Signature
from ..checks.pages import FLOAT32, INT32, PLAN, page_arrays, scale_arrays, summary_arrays
from .packed_weight import FLOAT_DTYPES


def _angles(values: Mapping[str, Any]) -> tuple[Array | Number, ...]:
    """Describes cos and sin."""
    shape = "T, rotary_dim" if values["num_tables"] == 1 else "num_tables, T, rotary_dim"
    return (
        Number("num_tables", "num_tables >= 1"),
        Number("rotary_dim", "rotary_dim >= 2"),
        Array("cos", shape, FLOAT32),
        Array("sin", shape, FLOAT32),
    )


def _step_of(values: Mapping[str, Any]) -> Signature:
    if values["logits"] is not None and not values["head_columns"]:
        raise ValueError("logits: got a tensor, expected None: there is no head")
    if values["experts"] is not None and values["top_k"] < 1:
        raise ValueError("experts: got a tensor, expected None: no layer has any, or they differ in top_k")
    dtype = values["k_pages"].dtype
    return Signature(
        Number("num_layers", "num_layers >= 1"),
        Number("hidden", "hidden >= 1"),
        Number("num_kv_heads", "num_kv_heads >= 1"),
        Number("head_dim", "head_dim >= 1"),
        Number("head_columns", "head_columns >= 0"),
        Choice("dtype", FLOAT_DTYPES),
        Array("slots", "T", INT32),
        Array("x", "T, hidden", FLOAT32, written=True),
        *_angles(values),
        PLAN,
        *page_arrays(dtype, plain=False, layers=True, written=True),
        *summary_arrays(dtype, layers=True),
        *scale_arrays(dtype, layers=True, written=True),
        *_wanted(),
        Number("top_k", "top_k >= -1"),
        Array("experts", "T, top_k", (torch.int64,), optional=True),
        home="k_pages",
    )


def _wanted() -> tuple[Array, Array]:
    return (
        Array("rows", "R", (torch.int64,), optional=True),
        Array("logits", "R, head_columns", FLOAT32, packed=1, written=True, optional=True),
    )


STEP = Guard(
    "DecoderLayers",
    (
        *("x", "cos", "sin", "slots", "plan", "k_pages", "v_pages", "summaries", "scales", "rows", "logits"),
        *(
            "experts",
            "dtype",
            "num_layers",
            "hidden",
            "num_kv_heads",
            "head_dim",
            "head_columns",
            "num_tables",
        ),
        *("rotary_dim", "top_k"),
    ),
    _step_of,
)
BEFORE = Guard(
    "DecoderLayers",
    ("x", "cos", "sin", "dtype", "hidden", "num_tables", "rotary_dim"),
    lambda values: Signature(
        Number("hidden", "hidden >= 1"),
        Choice("dtype", FLOAT_DTYPES),
        Array("x", "T, hidden", FLOAT32),
        *_angles(values),
        home="x",
    ),
)
AFTER = Guard(
    "DecoderLayers",
    ("x", "attended", "hidden", "num_q_heads", "head_dim"),
    lambda _: Signature(
        Number("hidden", "hidden >= 1"),
        Number("num_q_heads", "num_q_heads >= 1"),
        Number("head_dim", "head_dim >= 1"),
        Array("x", "T, hidden", FLOAT32, written=True),
        Array("attended", "T, num_q_heads, head_dim", FLOAT_DTYPES),
        home="x",
    ),
)
OUTPUT = Guard(
    "DecoderLayers",
    ("x", "states", "rows", "logits", "hidden", "head_columns"),
    lambda _: Signature(
        Number("hidden", "hidden >= 1"),
        Number("head_columns", "head_columns >= 0"),
        Array("x", "T, hidden", FLOAT32),
        Array("states", "T, hidden", FLOAT32, written=True, optional=True),
        *_wanted(),
        home="x",
    ),
)
