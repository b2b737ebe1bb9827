"""Rates the default model and scorers on the default problems: python -m benches.default_problems

Samples several answers to each problem and judges them: how often the default model is right, by family, and
how often a scorer ranks a right answer above a wrong one of the same problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import typer
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.rewards import Scorer, mean_probability, self_evaluation
from tts_decode.rewards.self_evaluation import chat_question
from tts_decode.tasks import Task, default_tasks

from benches.strategies.verifier import ranked
from benches.tables import Table, percent

Record = dict[str, Any]


def measure(
    *, n: int, problems: int, temperature: float, seed: int, max_tokens: int, model: str, dtype: str
) -> Record:
    """Of each problem: name, prompt, which of its answers are right, and the score of each by each scorer."""
    decoder = TreeDecoder(*load_model(model, dtype))
    sampling = SamplingParams(temperature, seed=seed, max_tokens=max_tokens, max_step_tokens=max_tokens)
    scorers = {
        "`mean_probability`": mean_probability(),
        "`self_evaluation`, its own wording": self_evaluation(),
        "`self_evaluation`, asked in the next turn": self_evaluation(chat_question(decoder.tokenizer)),
    }
    tasks = default_tasks(problems)
    found = decoder.run_all([judged(decoder, task, n, sampling, scorers) for task in tasks])
    return {"n": n, "problems": found}


async def judged(
    decoder: TreeDecoder, task: Task, n: int, sampling: SamplingParams, scorers: dict[str, Scorer]
) -> Record:
    root = await decoder.root([{"role": "user", "content": task.prompt}], sampling)
    branches = root.fork(n)
    try:
        await gather(branch.step() for branch in branches)
        scores = {
            name: [round(score, 6) for score in await scorer(branches)] for name, scorer in scorers.items()
        }
        assert task.verify is not None
        right = [int(task.verify(branch.text) == 1) for branch in branches]
    finally:
        for branch in (root, *branches):
            branch.release()
    return {"name": task.name, "prompt": task.prompt, "right": right, "scores": scores}


def families(figures: Record) -> Table:
    """Of each family an example, and how many of its problems one sample solves, and any of them."""
    named: dict[str, list[Record]] = {}
    for problem in figures["problems"]:
        named.setdefault(problem["name"].partition("/")[0], []).append(problem)
    heads = ["family", "a problem", "solved by one sample", f"solved by any of {figures['n']}"]
    rows = [
        [f"`{name}`", f"`{members[0]['prompt'].splitlines()[0]}`", *_solved(members)]
        for name, members in named.items()
    ]
    return Table(heads, [*rows, ["all", "", *_solved(figures["problems"])]])


def scorers(figures: Record) -> Table:
    """Pairs of a right and a wrong answer to the same problem that a scorer puts in order, ties half; and
    problems whose answer of the best score is right, the first of several."""
    heads = ["scorer", "right above wrong", f"best of {figures['n']} right"]
    rows = []
    for name in figures["problems"][0]["scores"]:
        in_order, pairs, best = 0.0, 0, 0
        for right, scores in _judged(figures, name):
            count = sum(right) * (len(right) - sum(right))
            if count:
                in_order += count * ranked(torch.tensor(scores), torch.tensor(right))
            pairs += count
            best += right[scores.index(max(scores))]
        order = percent(in_order / pairs) if pairs else ""
        rows.append([name, order, f"{best} of {len(figures['problems'])}"])
    return Table(heads, rows)


def _solved(problems: list[Record]) -> tuple[str, str]:
    samples = [right for problem in problems for right in problem["right"]]
    some = sum(any(problem["right"]) for problem in problems)
    return percent(sum(samples) / len(samples)), f"{some} of {len(problems)}"


def _judged(figures: Record, scorer: str) -> Iterator[tuple[list[int], list[float]]]:
    return ((problem["right"], problem["scores"][scorer]) for problem in figures["problems"])


def main(
    n: int = 8,
    problems: int = 24,
    temperature: float = 0.8,
    seed: int = 0,
    max_tokens: int = 96,
    model: str = DEFAULT_MODEL,
    dtype: str = "auto",
) -> None:
    figures = measure(
        n=n,
        problems=problems,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        model=model,
        dtype=dtype,
    )
    families(figures).show(f"{n} samples of up to {max_tokens} tokens")
    scorers(figures).show("scorers on these samples")


if __name__ == "__main__":
    typer.run(main)
