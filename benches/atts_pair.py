"""ATTS with two models: python -m benches.atts_pair

The draft model is SmolLM2-135M-Instruct, the target Gemma 3 270M (Q4_K_M; Google's terms of Gemma apply)
unless others are named. ATTS with both rules stands beside self-consistency of each model alone, on the same
default problems: what they solved, and the tokens that each model generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from tts_decode import SamplingParams, TreeDecoder, gather
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.model.loading import load_model
from tts_decode.search import SearchResult, Strategy, atts, self_consistency
from tts_decode.tasks import Task, default_tasks

from benches.quantised.gemma import gemma_file

ROWS: dict[str, tuple[Strategy[...], dict[str, Any]]] = {
    "self-consistency, draft": (self_consistency, {}),
    "self-consistency, target": (self_consistency, {}),
    "atts, percentile": (atts, {}),
    "atts, percentile, rejected steps kept": (atts, {"keep_rejected": True}),
    "atts, p-value": (atts, {"rule": "p_value"}),
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


def main(
    draft: str = DEFAULT_MODEL,
    target: Annotated[str | None, typer.Option(help="a model; default: Gemma 3 270M")] = None,
    problems: int = 12,
    n: int = 8,
    num_calibration: int = 16,
    temperature: float = 0.8,
    max_tokens: int = 64,
    max_step_tokens: int = 16,
) -> None:
    folder = Path("build/peers/models")
    folder.mkdir(parents=True, exist_ok=True)
    drafter = TreeDecoder(*load_model(draft))
    judge = TreeDecoder(*load_model(str(gemma_file(folder)) if target is None else target))
    tasks = default_tasks(problems)
    sampling = SamplingParams(
        temperature, stop=("\n",), max_tokens=max_tokens, max_step_tokens=max_step_tokens
    )
    heads = ("", "solved", "tokens by the draft", "by the target", "target's share")
    table = Table(*heads, title=f"{problems} problems, n={n}; tokens of a problem")
    for name, (strategy, options) in ROWS.items():
        first = judge if name.endswith("target") else drafter
        if strategy is atts:
            options = options | {"target_decoder": judge, "num_calibration": num_calibration}
        before = drafter.stats(), judge.stats()
        results = solve(first, strategy, tasks, sampling, options | {"n": n})
        after = drafter.stats(), judge.stats()
        solved = sum(
            task.verify is not None and task.verify(result.best.text) >= 1
            for task, result in zip(tasks, results, strict=True)
        )
        spent = [
            (late.generated_tokens - early.generated_tokens) / problems
            for early, late in zip(before, after, strict=True)
        ]
        share = f"{spent[1] / sum(spent):.0%}"
        table.add_row(name, f"{solved}/{problems}", *(f"{tokens:,.0f}" for tokens in spent), share)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
