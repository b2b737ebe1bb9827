"""A trained verifier for the default model: python -m benches.strategies.verifier

It is a linear head on the model's last hidden states, fitted to outcomes like the verifier of Cobbe et al.
2021 (arXiv 2110.14168, section 4): after each step of a sampled answer, it estimates the probability that the
answer will be right. It is fitted on problems that no table measures, by logistic regression with a ridge,
and stored next to this file. As a reward model it uses the template of Skywork-o1: question and steps one by
one, scored at the line break after each step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.cli.problems import Settings, run_problems
from tts_decode.cli.scorers import ScorerOf
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import READERS, Reader, RewardModel
from tts_decode.search import self_consistency
from tts_decode.search.tree import Node
from tts_decode.tasks import default_tasks

FILE = Path(__file__).with_name("verifier.json")
READER = Reader("outcome_head", READERS["skywork_o1"].template, READERS["skywork_o1"].readout, __doc__ or "")
_MEASURED = 24  # the first default problems, which tables may measure


def trained_verifier(decoder: TreeDecoder) -> RewardModel:
    """Scorer: probabilities in [0, 1]. decoder: of the default model, for the verifier's own KV."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    head = torch.nn.Linear(len(kept["weight"]), 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([kept["weight"]]))
        head.bias.fill_(kept["bias"])
    return RewardModel(decoder, READER, head=head)


def fit(states: Tensor, right: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Weight and bias of a logistic regression. states: float64 [n, hidden]. right: float64 [n], 0 or 1.
    ridge: weight of the squared norm, per row, of the weight over standardised states."""
    mean, scale = states.mean(0), states.std(0).clamp_min(1e-6)
    inputs = (states - mean) / scale
    weight = torch.zeros(states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        wrong = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ weight + bias, right)
        total = wrong + ridge * weight.square().sum()
        total.backward()
        return total

    optimiser.step(loss)
    folded = weight.detach() / scale
    return folded, float(bias.detach() - folded @ mean)


def ranked(scores: Tensor, right: Tensor) -> float:
    """Share of the pairs of a right and a wrong answer that the scores put in order, ties half."""
    pairs = scores[right > 0][:, None] - scores[right == 0][None, :]
    return float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)


def main(
    problems: int = 100, n: int = 6, held_out: int = 32, ridge: float = 0.02, max_tokens: int = 64
) -> None:
    """held_out: problems, the last ones, that only measure."""
    torch.manual_seed(0)
    model, tokenizer = load_model(DEFAULT_MODEL, "bfloat16", weights="file")
    tasks = default_tasks(_MEASURED + problems)[_MEASURED:]
    sampling = SamplingParams(0.8, seed=1, stop=("\n",), max_tokens=max_tokens, max_step_tokens=32)
    decoder = TreeDecoder(model, tokenizer)
    outcomes, _ = run_problems(
        decoder, tasks, self_consistency, {"n": n}, Settings(sampling), ScorerOf(None), parallel=12
    )
    reader, _ = load_model(DEFAULT_MODEL, "bfloat16", weights="bfloat16")
    rows: list[tuple[int, Tensor, float, bool]] = []  # problem, state, right, last step
    for index, outcome in enumerate(outcomes):
        if outcome.result is None or outcome.scores is None:
            raise RuntimeError(f"{outcome.task.name}: {outcome.error!r}")
        for candidate, score in zip(outcome.result.candidates, outcome.scores, strict=True):
            steps = _steps(outcome.result.tree, candidate.node)
            ids, positions = READER.template(tokenizer, outcome.task.prompt, steps)
            with torch.no_grad():
                states = reader.model(torch.tensor([ids])).last_hidden_state[0].double()
            for place in positions:
                rows.append((index, states[place[-1]], float(score >= 0.99), place is positions[-1]))
    states = torch.stack([row[1] for row in rows])
    right = torch.tensor([row[2] for row in rows], dtype=torch.float64)
    trained = torch.tensor([row[0] < problems - held_out for row in rows])
    weight, bias = fit(states[trained], right[trained], ridge)
    ends = ~trained & torch.tensor([row[3] for row in rows])
    order = ranked(states[ends] @ weight + bias, right[ends])
    print(f"{len(rows)} steps, {right.mean():.0%} of right answers; held out, {order:.0%} of pairs in order")
    kept: dict[str, Any] = {
        "about": f"outcomes of {problems - held_out} problems, {n} answers each; held out {held_out}",
        "pairs_in_order": round(order, 3),
        "bias": round(bias, 5),
        "weight": [round(value, 6) for value in weight.tolist()],
    }
    FILE.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def _steps(nodes: Sequence[Node], last: int) -> list[str]:
    """Texts of the nodes from below the prompt down to the last one, empty ones left out."""
    steps: list[str] = []
    while nodes[last].parent >= 0:
        steps += [nodes[last].text] if nodes[last].text.strip() else []
        last = nodes[last].parent
    return steps[::-1]


if __name__ == "__main__":
    typer.run(main)
