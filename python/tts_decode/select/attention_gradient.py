"""ATLAS: whether a token was written for lack of information, and which earlier tokens name what is missing.

Sagar Srinivas et al., arXiv 2504.01281, section 2.2. Attention is float [layers, heads, tokens, tokens], from
the row's token to the column's, and causal; the token in question is the last one. In a causal model a token
gets no attention from earlier tokens, though equations 14 and 15 sum over it: the sums here run over the
attention that it gives them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tts_kernels.checks import number

Floats = npt.NDArray[np.floating]


def attention_gradient(attention: Floats, probability: float, *, epsilon: float = 1e-10) -> float:
    """Returns the MLAG of the last token, equations 12 to 19, without the factors for load and kind of word.

    It multiplies the shift of attention from layer to layer, with more weight on higher layers, the model's
    doubt, and the attention that the last layer's heads give to the past, with heads weighted by their
    entropy.

    Args:
        probability: of the token, by the model itself.
    """
    a = _checked(attention)
    number("probability", probability, low=0, high=1)
    layers, _, count, _ = a.shape
    if count < 2 or layers < 2:
        return 0.0
    past = np.tril(a, -1).sum(axis=(1, 3))  # [layers, tokens]
    largest = past.max(axis=1)
    shares = past[:, -1] / np.where(largest > 0, largest, 1.0)
    weights = np.arange(1, layers) / (layers - 1)
    gradient = float((weights * np.abs(np.diff(shares))).sum())
    last = a[-1]
    entropies = -(last * np.log(last + epsilon)).sum(axis=(1, 2))
    total = entropies.sum()
    heads = entropies / total if total > 0 else np.full(len(entropies), 1 / len(entropies))
    density = (1 - probability) * float((heads * last[:, -1, :-1].mean(axis=1)).sum())
    return gradient * density


def attended_tokens(
    attention: Floats, states: Floats, k: int = 7, *, beta: float = 0.7, temperature: float = 2.0
) -> list[int]:
    """Returns the `k` tokens before the last one that matter most to it, ascending (LRP, equations 21 to 25).

    Args:
        states: float [layers, tokens, hidden], the output of each layer.
        beta: weight of attention, against similarity of states.
        temperature: of the layers' weights in the states, which favour the higher layers.
    """
    a, h = _checked(attention), np.asarray(states, np.float64)
    layers, _, count, _ = a.shape
    if h.ndim != 3 or h.shape[:2] != (layers, count):
        raise ValueError(f"states: got shape {h.shape}, expected [{layers}, {count}, hidden]")
    number("beta", beta, low=0, high=1)
    number("temperature", temperature, above=0)
    level, third = np.arange(1, layers + 1), layers / 3
    middle, high = 0.5 * (level - third) / third, 0.3 * (layers - level) / third
    scale = np.where(level < third, 0.2 * level / third, np.where(level < 2 * third, middle, high))
    attended = (scale[:, None] * a[:, :, -1, :-1].mean(axis=1)).sum(axis=0)
    weights = np.exp((level - layers) / temperature)
    pooled = np.tensordot(weights / weights.sum(), h, axes=1)  # [tokens, hidden]
    norms = np.linalg.norm(pooled, axis=1)
    norms[norms == 0] = 1.0
    alike = pooled[:-1] @ pooled[-1] / (norms[:-1] * norms[-1])
    relevance = beta * attended + (1 - beta) * alike
    return sorted(np.argsort(-relevance, kind="stable")[:k].tolist())


def _checked(attention: Floats) -> npt.NDArray[np.float64]:
    a = np.asarray(attention, np.float64)
    if a.ndim != 4 or a.shape[2] != a.shape[3] or 0 in a.shape:
        raise ValueError(f"attention: got shape {a.shape}, expected [layers, heads, tokens, tokens]")
    return a
