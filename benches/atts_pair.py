"""ATTS with two models: python -m benches.atts_pair

By default the draft model is SmolLM2-135M-Instruct, and the target is Gemma 3 270M (Q4_K_M; Google's terms of
Gemma apply). ATTS with both rules is compared with self-consistency of each model alone, on the same default
problems: problems solved, and tokens that each model generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import SearchResult, Strategy, atts, self_consistency
from tts_decode.tasks import Task, default_tasks

from benches.quantised.gemma import gemma_file
from benches.tables import Table, percent, tracked

Record = dict[str, Any]

MODELS = Path(__file__).parents[1] / "build/peers/models"  # where the target's file is, or is put
ROWS: dict[str, tuple[Strategy[...], dict[str, Any]]] = {
    "self-consistency, draft alone": (self_consistency, {}),
    "self-consistency, target alone": (self_consistency, {}),
    "percentile rule": (atts, {}),
    "percentile rule, rejected steps kept": (atts, {"keep_rejected": True}),
    "p-values": (atts, {"rule": "p_value"}),
}


def solve(
    first: TreeDecoder, strategy: Strategy[...], tasks: list[Task], sampling: SamplingParams, options: Any
) -> list[SearchResult]:
    """Both models read the problem as plain text, as the target has no chat template."""

    async def one(task: Task) -> SearchResult:
        root = await first.root(f"Question: {task.prompt}\nAnswer:", sampling)
        try:
            return await strategy(root, **options)
        finally:
            root.release()

    async def all_of_them() -> list[SearchResult]:
        return await gather(one(task) for task in tasks)

    return first.run(all_of_them())


def measure(
    *,
    draft: str,
    target: str | None,
    dtype: str,
    problems: int,
    n: int,
    num_calibration: int,
    temperature: float,
    seed: int,
    max_tokens: int,
    max_step_tokens: int,
) -> Record:
    """Of each row: problems solved, and tokens of a problem that each model generated."""
    MODELS.mkdir(parents=True, exist_ok=True)
    drafter = TreeDecoder(*load_model(draft, dtype))
    judge = TreeDecoder(*load_model(str(gemma_file(MODELS)) if target is None else target, dtype))
    tasks = default_tasks(problems)
    sampling = SamplingParams(
        temperature, seed=seed, stop=("\n",), max_tokens=max_tokens, max_step_tokens=max_step_tokens
    )
    figures: Record = {}
    for name, (strategy, options) in tracked(list(ROWS.items()), "atts_pair"):
        first = judge if name.endswith("target alone") else drafter
        if strategy is atts:
            options = options | {"target_decoder": judge, "num_calibration": num_calibration}
        before = drafter.stats(), judge.stats()
        results = solve(first, strategy, tasks, sampling, options | {"n": n})
        after = drafter.stats(), judge.stats()
        solved = sum(
            task.verify is not None and task.verify(result.best.text) >= 1
            for task, result in zip(tasks, results, strict=True)
        )
        by_draft, by_target = (
            (late.generated_tokens - early.generated_tokens) / problems
            for early, late in zip(before, after, strict=True)
        )
        figures[name] = {"solved": solved, "draft_tokens": by_draft, "target_tokens": by_target}
    return {"problems": problems, "rows": figures}


def table(figures: Record) -> Table:
    heads = ["", "solved", "tokens by the draft", "by the target", "target's share"]
    rows = []
    for name, row in figures["rows"].items():
        spent = row["draft_tokens"], row["target_tokens"]
        solved = f"{row['solved']}/{figures['problems']}"
        rows.append([name, solved, *(f"{tokens:,.0f}" for tokens in spent), percent(spent[1] / sum(spent))])
    return Table(heads, rows)


def main(
    draft: str = DEFAULT_MODEL,
    target: Annotated[str | None, typer.Option(help="a model; default: Gemma 3 270M")] = None,
    dtype: str = "auto",
    problems: int = 12,
    n: int = 8,
    num_calibration: int = 16,
    temperature: float = 0.8,
    seed: int = 0,
    max_tokens: int = 64,
    max_step_tokens: int = 16,
) -> None:
    figures = measure(
        draft=draft,
        target=target,
        dtype=dtype,
        problems=problems,
        n=n,
        num_calibration=num_calibration,
        temperature=temperature,
        seed=seed,
        max_tokens=max_tokens,
        max_step_tokens=max_step_tokens,
    )
    table(figures).show(f"{problems} problems, n={n}; tokens of a problem")


if __name__ == "__main__":
    typer.run(main)
