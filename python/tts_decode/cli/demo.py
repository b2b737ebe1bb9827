"""`tts-decode demo`: shows what a shared tree gains: a search, its tree, memory and speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from tts_kernels.machine_memory import memory_bytes

from ..bench.replicated import Replicated, replicated_decoding
from ..core.params import SamplingParams
from ..default_model import DEFAULT_MODEL
from ..model.loading import load_model
from ..rewards import verifier
from ..search import SearchResult, best_of_n, render_tree
from ..view import Problem, Shown, make_page
from . import options as opt
from .demo_puzzle import NUMBERS, SOLVED, TARGET, puzzle, solves
from .display import Display, Screen, mib, print_json
from .errors import CommandError, UsageError, usage_errors
from .filled import filled
from .session import Session, open_session

_REPLICATED_STEPS = 3  # each takes 1.5 s on 2 cores; the fastest one counts
_TREE_LINES = 10
_MOST_BRANCHES = 256  # their caches take 5 GB in float32


@dataclass(frozen=True)
class _Shown:
    prompt_tokens: int
    greedy: str
    result: SearchResult
    right: int  # branches that reach the target

    @property
    def tokens_per_second(self) -> float:
        return self.result.stats.generated_tokens / self.result.stats.seconds


@filled
def demo(
    n: Annotated[int, typer.Option("-n", help="Number of branches.")] = 64,
    out: Annotated[Path, typer.Option(metavar="FILE.html", help="File for the tree's page.")] = Path(
        "demo.html"
    ),
    json_output: opt.Json = False,
) -> None:
    """Show what a shared tree gains: one search, its tree, memory and speed.

    The default model solves a puzzle: reach a number with three others. Its most likely answer is wrong, but
    some of 64 answers sampled from the same prompt are right, and a checker finds them. The tree stores the
    prompt's KV once and reads it once per step for all branches. For comparison, transformers decodes the
    same number of branches from a cache that holds a copy of the prompt for each.

    Examples:

      tts-decode demo

      tts-decode demo -n 16 --out tree.html
    """
    if not 1 <= n <= _MOST_BRANCHES:
        raise UsageError(f"-n: got {n}, expected 1 to {_MOST_BRANCHES} branches")
    with open_session(DEFAULT_MODEL, "auto", "cpu", None, "auto") as session:
        session.display.stage(f"decoding {n} branches over one prompt")
        shown = _search(session, n)
        _check_memory(shown, n)
        dtype = str(session.model.dtype).removeprefix("torch.")
    page = make_page([_page_of(shown)], title="tts-decode demo")
    try:
        out.write_text(page.html, encoding="utf-8")
    except OSError as cause:
        raise CommandError(f"--out: {out} cannot be written: {cause.strerror}; give another file") from cause
    screen = Screen()
    if not json_output:  # the answer is there before the comparison, which takes seconds
        _print_answers(screen, shown, n)
        _print_tree(screen, shown.result, out)
    with Display() as display:
        display.stage(f"transformers decodes {n} branches, each with a cache of its own")
        replicated = _replicated(dtype, n)
    if json_output:
        print_json(_described(shown, replicated, n, out))
    else:
        screen.print(_gain(shown, replicated, n))
        screen.print(f"The tree in a browser: {out}", soft_wrap=True)


def _search(session: Session, n: int) -> _Shown:
    """Runs greedy decoding, then best-of-n with the puzzle's own checker."""
    decoder = session.decoder()
    prompt = puzzle(NUMBERS, TARGET)
    sampling = SamplingParams(0.8, top_p=0.95, seed=0, stop_when=_ends, max_tokens=24)

    async def run() -> tuple[int, str, SearchResult]:
        greedy = await decoder.root(prompt, replace(sampling, temperature=0.0))
        await greedy.step()
        text = greedy.text.strip()
        greedy.release()
        root = await decoder.root(prompt, sampling)
        score = verifier(lambda text: float(solves(text, NUMBERS, TARGET)))
        return root.length, text, await best_of_n(root, n=n, scorer=score)

    length, greedy, result = decoder.run(run())
    right = sum(solves(candidate.text, NUMBERS, TARGET) for candidate in result.candidates)
    return _Shown(length, greedy, result, right)


def _ends(text: str) -> bool:
    return "\n" in text


def _check_memory(shown: _Shown, n: int) -> None:
    """Raises UsageError if a cache per branch would leave less than half of the memory free."""
    stats = shown.result.stats
    needed = n * shown.prompt_tokens * stats.page_bytes // stats.page_size
    if needed > (total := memory_bytes()) // 2:
        raise UsageError(
            f"-n: got {n}; a cache for each takes {mib(needed)} MiB of the machine's {mib(total)}: lower it"
        )


def _replicated(dtype: str, n: int) -> Replicated:
    """Measures transformers' decode steps of n branches, in the same dtype as the search."""
    with usage_errors():
        model, tokenizer = load_model(DEFAULT_MODEL, dtype, weights=dtype)
    prompt = tokenizer(puzzle(NUMBERS, TARGET))["input_ids"]
    return replicated_decoding(model, prompt, n, _REPLICATED_STEPS)


def _page_of(shown: _Shown) -> Shown:
    problem = Problem(prompt=puzzle(NUMBERS, TARGET), expected=str(TARGET), solved=shown.right > 0)
    return Shown("best_of_n", shown.result, problem)


def _described(shown: _Shown, replicated: Replicated, n: int, out: Path) -> dict[str, Any]:
    return {
        "numbers": NUMBERS,
        "target": TARGET,
        "prompt_tokens": shown.prompt_tokens,
        "branches": n,
        "greedy": {"text": shown.greedy, "right": solves(shown.greedy, NUMBERS, TARGET)},
        "search": {"text": shown.result.answer.strip(), "right": shown.right},
        "shared": {
            "kv_bytes": shown.result.stats.peak_bytes,
            "tokens_per_second": shown.tokens_per_second,
        },
        "replicated": asdict(replicated),
        "page": str(out),
    }


def _print_answers(screen: Screen, shown: _Shown, n: int) -> None:
    listed = ", ".join(map(str, sorted(NUMBERS, reverse=True)))
    screen.print(
        f"Reach {TARGET} with {listed}, after {len(SOLVED)} solved puzzles: {shown.prompt_tokens} tokens"
    )
    answers = Table(box=None, show_header=False, padding=(0, 2))
    verdict = "right" if solves(shown.greedy, NUMBERS, TARGET) else "wrong"
    answers.add_row("the most likely answer", shown.greedy, verdict)
    found = f"right, as {shown.right} of {n} are" if shown.right else "none of them is right"
    answers.add_row(f"the best of {n} branches", shown.result.answer.strip(), found)
    screen.print(answers)
    screen.print()


def _print_tree(screen: Screen, result: SearchResult, out: Path) -> None:
    ascii_only = "utf" not in (screen.encoding or "").lower()
    tree = render_tree(result.tree, best=result.best.node, width=screen.width, ascii_only=ascii_only)
    lines = tree.splitlines()
    screen.print("\n".join(lines[:_TREE_LINES]), soft_wrap=True)
    if len(lines) > _TREE_LINES:
        screen.print(f"... and {len(lines) - _TREE_LINES} more: see {out}", soft_wrap=True)


def _gain(shown: _Shown, replicated: Replicated, n: int) -> Table:
    held, speed = shown.result.stats.peak_bytes, shown.tokens_per_second
    table = Table(box=SIMPLE_HEAD)
    table.add_column(f"{n} branches on one prompt")
    table.add_column("KV MiB", justify="right")
    table.add_column("tokens/s", justify="right")
    table.add_row("a shared tree", mib(held), f"{speed:,.0f}")
    table.add_row(
        "transformers, a cache for each", mib(replicated.kv_bytes), f"{replicated.tokens_per_second:,.0f}"
    )
    less, faster = replicated.kv_bytes / held, speed / replicated.tokens_per_second
    table.add_row("gain", f"{less:.1f}x less", f"{faster:.1f}x", style="bold")
    return table
