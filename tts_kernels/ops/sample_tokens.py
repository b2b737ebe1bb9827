"""Draws the next token of each branch from its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..checks import Array, Result, Rule, Signature
from ..checks.pages import FLOAT32, INT32
from .operator import register

_TAKES = Signature(
    Array("logits", "rows, vocab", FLOAT32, packed=1),
    Rule("logits", "vocab >= 1"),
    Array("params", "rows, 6", (torch.float64,)),
    Array("seen", "num_seen, 2", INT32, optional=True),
    Array("suppressed", "num_suppressed, 2", INT32, optional=True),
    Array("given", "rows", (torch.int64,), optional=True),
    Array("changed", "num_changed, 2", INT32, optional=True),
    Array("values", "num_changed", FLOAT32, optional=True),
    Array("forbidden", "rows, vocab", (torch.bool,), optional=True),
    home="logits",
    results=(Result("tokens", "rows", torch.int64), Result("numbers", "3, rows", torch.float64)),
)


def sample_tokens(
    logits: Tensor,
    params: Tensor,
    seen: Tensor | None = None,
    suppressed: Tensor | None = None,
    *,
    given: Tensor | None = None,
    changed: Tensor | None = None,
    values: Tensor | None = None,
    forbidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draws a token per row, with its log-probability and the row's entropy, in one pass over the logits.

    Runs on the CPU only. The filters are those of `transformers`, in its order: repetition penalty,
    suppressed tokens, temperature, top-k, top-p, min-p. Tokens tied at the cut of top-k or min-p are all
    kept, and count for top-p; among tokens tied at the cut of top-p, the lowest ids are dropped first.

    Args:
        logits: float32 [R, V], contiguous rows at any stride; left unchanged.
        params: float64 [R, 6], per row: temperature (0: the most probable token, the first among equals),
            top_k (0: all), top_p, min_p, repetition_penalty, and the uniform number in [0, 1) that chooses
            the token by the inverse CDF in vocabulary order.
        seen: int32 [S, 2] of (row, token), ascending rows, each pair once: tokens that the penalty applies
            to.
        suppressed: int32 [U, 2] in the same form: tokens that are never drawn. Each row must keep one.
        given: int64 [R], tokens already chosen: nothing is drawn, and the numbers describe these tokens.
        changed: int32 [C, 2] of (row, token), ascending rows, each pair once: tokens drawn with logits other
            than the model's.
        values: float32 [C], those logits, finite or -inf; repetition penalty and filters apply to them.
        forbidden: bool [R, V]: tokens that are never drawn; like `suppressed`, for many tokens.

    Returns:
        tokens: int64 [R].
        numbers: float64 [3, R]: log-probability of the token, entropy, log-sum-exp; in nats, of the logits
            before penalty and filters. If the log-sum-exp is not finite, the row held NaN, +inf or nothing
            finite, and its token and other numbers are meaningless.

    Raises:
        TypeError, ValueError: a dtype, device, shape, stride, index or parameter does not fit, or `changed`
            comes without `values`.
    """
    results: tuple[Tensor, Tensor] = _sample_tokens(
        logits, params, seen, suppressed, given, changed, values, forbidden
    )
    return results


def _sample(a: Any) -> None:
    if a.changed is not None and a.values is None:
        raise ValueError("values: got None, expected a tensor, as there is one of what is changed")
    rows, vocab = a.logits.shape
    _core.sample_tokens(
        a.logits.data_ptr(),
        (rows, vocab, a.logits.stride(0)),
        a.params.data_ptr(),
        (0, 0) if a.seen is None else (a.seen.data_ptr(), a.seen.shape[0]),
        (0, 0) if a.suppressed is None else (a.suppressed.data_ptr(), a.suppressed.shape[0]),
        0 if a.given is None else a.given.data_ptr(),
        (0, 0) if a.changed is None else (a.changed.data_ptr(), a.changed.shape[0]),
        0 if a.values is None else a.values.data_ptr(),
        0 if a.forbidden is None else a.forbidden.data_ptr(),
        a.tokens.data_ptr(),
        a.numbers.data_ptr(),
        torch.get_num_threads(),
    )


_sample_tokens = register(
    "sample_tokens",
    "logits params seen suppressed given changed values forbidden",
    lambda _: _TAKES,
    _TAKES,
    cpu=_sample,
)
