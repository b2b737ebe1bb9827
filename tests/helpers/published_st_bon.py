"""ST-BoN's choice of a sample as in its authors' code (Alsace08/ST-BoN at b075471).

It uses float32 torch over the hidden states that transformers returns.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def window(samples: Sequence[Sequence[int]], eos: int, tau_coeff: float) -> tuple[int, int]:
    """c, the length at which the samples differ or one has ended, and c + tau."""
    c = next(
        t
        for t in range(1, max(map(len, samples)) + 1)
        if len({tuple(s[:t]) for s in samples}) == len(samples) or any(s[t - 1 : t] == [eos] for s in samples)
    )
    return c, c + max(1, int(tau_coeff * c))


def winner(
    model: PreTrainedModel,
    prompt: Sequence[int],
    samples: Sequence[Sequence[int]],
    eos: int,
    tau_coeff: float,
) -> tuple[int, list[int]]:
    """Returns the index of the sample that continues, and the votes; no sample ends before the window.

    Position t of a sample, from 0, is the state that token t was drawn from: position 0 is of the prompt's
    last token.
    """
    c, end = window(samples, eos, tau_coeff)
    states = _states(model, prompt, [sample[:end] for sample in samples])
    votes = []
    for t in range(c + 1, end + 1):
        features = torch.stack([_feature(mean) for mean in states[:, :t].mean(1)])
        spread = (features[:, None] - features[None]).square().sum(1) / (len(samples) - 1)
        votes.append(int(spread.argmin()))
    counts = Counter(votes)
    most = max(counts.values())
    return min(sample for sample, count in counts.items() if count == most), votes


def _states(model: PreTrainedModel, prompt: Sequence[int], samples: Sequence[Sequence[int]]) -> Tensor:
    """float32 [samples, tokens of each, layers + 1, hidden]."""
    texts = torch.tensor([[*prompt, *sample] for sample in samples])
    with torch.no_grad():
        output = model.base_model(texts, output_hidden_states=True)
    return torch.stack([layer[:, len(prompt) - 1 : -1] for layer in output.hidden_states], 2).float()


def _feature(h: Tensor) -> Tensor:
    """Of [layers + 1, hidden]: the mean of relative lengths less relative angles."""
    whole = (h[0] - h[-1]).norm()
    turned = _angle(h[0], h[-1])
    moves = [(a - b).norm() / whole - _angle(a, b) / turned for a, b in itertools.pairwise(h)]
    return torch.stack(moves).mean()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a, b, dim=0).clamp(-1 + 1e-7, 1 - 1e-7).acos()
