"""The journal holds the results of a caller's functions: a resumed search takes them from there."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from journaled import sealed
from primitives import make
from scripted import scripted_decoder
from search_options import small_options
from tts_decode import Budget, SamplingParams
from tts_decode.errors import JournalError
from tts_decode.search import Journal, SearchResult, SearchRun, get_strategy

SAMPLING = SamplingParams(stop=(".", "e", "\n"), max_tokens=24, max_step_tokens=8, seed=3)


def coder(prefix: str, k: int) -> tuple[str, str]:
    """A scripted model: a block of code behind a hint, an answer elsewhere."""
    if prefix.endswith("```"):
        return f"code {len(prefix)}```", "stop_string"
    return f"So, but {len(prefix) % 10}.", "eos"


class Changing:
    """A function that returns something else each time, and tells what it was asked."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self._answer = answer
        self.asked: list[Any] = []
        self._lock = threading.Lock()

    def __call__(self, asked: Any, *more: Any) -> Any:
        with self._lock:
            self.asked.append((asked, *more))
            return self._answer(len(self.asked))

    async def awaited(self, asked: Any, *more: Any) -> Any:
        return self(asked, *more)


def in_words(count: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in str(count * 7919))


# Strategy, options beside the small ones given the function, what that answers.
CASES: dict[str, tuple[str, Callable[[Any], dict[str, Any]], Callable[[int], Any]]] = {
    "atlas": ("atlas", lambda f: {"retrieve": f}, in_words),
    "atlas, trigger": (
        "atlas",
        lambda f: {"trigger": f.awaited},
        lambda count: in_words(count) if count % 3 else None,
    ),
    "hint_infer": (
        "hint_infer",
        lambda f: {"tool": f, "hints": ("```",), "num_forks": 0, "num_hints": 2},
        in_words,
    ),
    "t1_verify": ("t1_verify", lambda f: {"tool": f}, lambda count: str(count % 2 == 0)),
    "s_star": ("s_star", lambda f: {"tool": f}, lambda count: str(count % 3)),
    "b4": ("b4", lambda f: {"run_tests": f}, lambda count: [count % 2 == 0, count % 3 == 0]),
    "ab_mcts": (
        "ab_mcts",
        lambda f: {
            "feedback": f,
            "refine_prompt": "{question}{answer}{feedback}",
            "max_samples": 12,
            "parallel": 1,
        },
        in_words,
    ),
    "r2_retrieval": ("r2_retrieval", lambda f: {"retrieve": f}, in_words),
    "ets": (
        "ets",
        lambda f: {"embed": lambda steps: np.array([[*f("")] for _ in steps])},
        lambda count: np.random.default_rng(count).normal(size=3),
    ),
    "fetch": (
        "fetch",
        lambda f: {"embed": lambda steps: np.array([[*f("")] for _ in steps])},
        lambda count: np.random.default_rng(count).normal(size=3),
    ),
}


def run_search(
    model: Any, name: str, options: dict[str, Any], path: Path | None
) -> tuple[SearchResult, Budget]:
    decoder = scripted_decoder(coder) if name == "hint_infer" else make(model)
    budget = Budget()

    async def search() -> SearchResult:
        root = await decoder.root("A prompt of more than a page of tokens. ", SAMPLING, budget)
        journal = None if path is None else Journal(path, resume=True)
        return await get_strategy(name)(SearchRun(root, journal=journal), **small_options(name) | options)

    return decoder.run(search()), budget


def same(a: SearchResult, b: SearchResult) -> None:
    """Forced text has no log-probabilities on the scripted model: NaN, which is equal in a repr alone."""
    assert repr((a.best, a.candidates, a.votes, a.stopped)) == repr(
        (b.best, b.candidates, b.votes, b.stopped)
    )
    for x, y in zip(a.tree, b.tree, strict=True):
        assert repr((x.parent, x.text, x.tokens, x.logprobs, x.score, x.status)) == repr(
            (y.parent, y.text, y.tokens, y.logprobs, y.score, y.status)
        )


@pytest.mark.parametrize("case", CASES)
def test_a_finished_search_asks_nothing_again(tmp_path: Path, model: Any, case: str) -> None:
    name, options, answer = CASES[case]
    path = tmp_path / "journal"
    first = Changing(answer)
    result, budget = run_search(model, name, options(first), path)
    assert len(first.asked) > 1
    again = Changing(lambda count: answer(1000 + count))
    resumed, spent = run_search(model, name, options(again), path)
    assert again.asked == []
    same(resumed, result)
    assert spent.tokens_used == budget.tokens_used
    assert spent.cost_used == pytest.approx(budget.cost_used, rel=1e-12)


@pytest.mark.parametrize("case", ["atlas", "s_star", "hint_infer", "t1_verify"])
def test_a_search_cut_anywhere_asks_only_for_what_is_missing(tmp_path: Path, model: Any, case: str) -> None:
    """Answers are told by what is asked, so that the whole search is known; and by who asks, so that a call
    made twice would show."""
    name, options, answer = CASES[case]

    def by_text(asked: str) -> Any:
        return answer(len(asked) % 5 + 1)

    class Told(Changing):
        def __call__(self, asked: Any, *more: Any) -> Any:
            super().__call__(asked)
            return by_text(asked)

    path = tmp_path / "journal"
    whole = Told(lambda count: None)
    plain, _ = run_search(model, name, options(whole), path)
    lines = path.read_bytes().splitlines(keepends=True)
    rng = random.Random(case)
    for _ in range(3):
        kept = lines[: rng.randrange(2, len(lines))]
        recorded = sum("value" in json.loads(line) for line in kept)
        path.write_bytes(b"".join(kept))
        again = Told(lambda count: None)
        resumed, _ = run_search(model, name, options(again), path)
        same(resumed, plain)
        assert len(again.asked) == len(whole.asked) - recorded
        assert not Counter(again.asked) - Counter(whole.asked)


def test_what_was_recorded_stays_and_only_the_rest_is_new(tmp_path: Path, model: Any) -> None:
    """A journal from which another tool went on holds answers of both, each call's once."""
    path = tmp_path / "journal"
    first = Changing(in_words)
    run_search(model, "atlas", {"retrieve": first.awaited}, path)
    lines = path.read_bytes().splitlines(keepends=True)
    values = [i for i, line in enumerate(lines) if "value" in json.loads(line)]
    path.write_bytes(b"".join(lines[: values[1] + 1]))
    second = Changing(lambda count: f"<{count}>")
    mixed, budget = run_search(model, "atlas", {"retrieve": second.awaited}, path)
    prompts = [node.text for node in mixed.tree if node.status == "prompt"]
    assert sum(in_words(1) in text or in_words(2) in text for text in prompts) == 2
    assert sum("<1>" in text for text in prompts) == 1
    assert second.asked
    silent = Changing(in_words)
    resumed, spent = run_search(model, "atlas", {"retrieve": silent.awaited}, path)
    same(resumed, mixed)
    assert (silent.asked, spent.tokens_used) == ([], budget.tokens_used)
    assert spent.cost_used == pytest.approx(budget.cost_used, rel=1e-12)


def test_the_search_of_threads_that_take_their_time(tmp_path: Path, model: Any) -> None:
    """Which answer's text comes first is drawn anew each time; what was recorded has its order."""
    wait = threading.Event()

    def slow(query: str) -> str:
        wait.wait(0.001 * random.Random(query).randrange(30))
        return query[:2]

    path = tmp_path / "journal"
    plain, budget = run_search(model, "atlas", {"retrieve": slow}, path)
    silent = Changing(in_words)
    silent.__name__ = slow.__name__  # type: ignore[attr-defined]

    resumed, spent = run_search(model, "atlas", {"retrieve": silent}, path)
    same(resumed, plain)
    assert silent.asked == []
    assert spent.cost_used == pytest.approx(budget.cost_used, rel=1e-12)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("retrieve", 7, "retrieve: got an int of it, expected a text"),
        ("trigger", 7, "trigger: got an int of it, expected a text"),
    ],
)
def test_what_is_no_text_is_refused(model: Any, option: str, value: Any, message: str) -> None:
    async def wrong(*asked: Any) -> Any:
        return value

    with pytest.raises(TypeError, match=message):
        run_search(model, "atlas", {option: wrong}, None)


def test_tests_that_are_no_list_are_refused(model: Any) -> None:
    with pytest.raises(TypeError, match="run_tests: got a bool of it, expected a list of true and false"):
        run_search(model, "b4", {"run_tests": lambda text: True}, None)


def test_an_entry_that_is_no_text_is_refused(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "journal"
    run_search(model, "atlas", {"retrieve": str}, path)
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"value"' in line)
    lines[at] = json.dumps(json.loads(lines[at]) | {"value": [1]}).encode()
    path.write_bytes(b"".join(sealed(lines)))
    with pytest.raises(JournalError, match=r"the entry 'retrieve .*' cannot be used: retrieve: got a list"):
        run_search(model, "atlas", {"retrieve": str}, path)


def test_broken_characters_of_a_tool_are_replaced_with_a_journal_or_not(tmp_path: Path, model: Any) -> None:
    options = {"tool": lambda code: "x\ud800", "hints": ("```",), "num_forks": 0}
    plain, _ = run_search(model, "hint_infer", options, None)
    kept, _ = run_search(model, "hint_infer", options, tmp_path / "journal")
    assert any("x?" in node.text for node in plain.tree)
    same(kept, plain)


def test_a_tool_waits_for_an_async_function(model: Any) -> None:
    """Of a class too, whose call returns an awaitable."""

    class Tool:
        def __call__(self, query: str) -> Any:
            async def answer() -> str:
                await asyncio.sleep(0)
                return query[:3]

            return answer()

    async def plainly(query: str) -> str:
        return query[:3]

    one, _ = run_search(model, "atlas", {"retrieve": Tool(), "n": 1}, None)
    two, _ = run_search(model, "atlas", {"retrieve": plainly, "n": 1}, None)
    same(one, two)
