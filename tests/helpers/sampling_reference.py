"""The distribution of the next token, by other libraries and in float64."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers.generation import logits_process as hf
from tts_decode import SamplingParams


def reference_probs(
    logits: torch.Tensor,
    params: SamplingParams,
    history: Sequence[int],
    prompt_length: int = 0,
    allowed: Collection[int] | None = None,
) -> torch.Tensor:
    """The distribution of the next token, float64 [vocab]: transformers' processors in `generate`'s order,
    and what OpenAI's documentation says of biases, frequency and presence penalties, where vLLM has them.

    history: the branch's tokens. allowed: ids that a constraint allows; None: all.
    """
    ids, scores = torch.tensor([[token for token in history if token >= 0]]), logits[None].clone()
    for token, bias in params.bias_pairs:
        scores[0, token] += bias
    if params.repetition_penalty != 1.0:
        scores = hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    generated = list(history[prompt_length:])
    for token in set(generated) - {-1}:
        scores[0, token] -= generated.count(token) * params.frequency_penalty + params.presence_penalty
    if allowed is not None:
        forbidden = sorted(set(range(len(logits))) - set(allowed))
        scores = hf.SuppressTokensLogitsProcessor(forbidden)(ids, scores)
    if params.suppress_token_ids:
        scores = hf.SuppressTokensLogitsProcessor(params.suppress_token_ids)(ids, scores)
    if params.temperature == 0.0:
        return torch.nn.functional.one_hot(scores[0].argmax(), len(logits)).double()
    scores = hf.TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k:
        scores = hf.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = hf.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0.0:
        scores = hf.MinPLogitsWarper(params.min_p)(ids, scores)
    return scores[0].double().softmax(-1)


def reference_token(
    logits: torch.Tensor,
    params: SamplingParams,
    u: float,
    history: Sequence[int],
    prompt_length: int = 0,
    allowed: Collection[int] | None = None,
) -> int:
    """The inverse CDF in vocabulary order, float64."""
    cumulative = reference_probs(logits, params, history, prompt_length, allowed).cumsum(-1)
    return int((cumulative > u * cumulative[-1]).nonzero()[0])
