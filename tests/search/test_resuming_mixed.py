"""Resumed searches in which not everything is computed on one decoder, or whose journal is not their own.

A text engine samples and a reward model scores, a scorer takes its time, entries are missing: none hangs.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from journaled import sealed, unregistered
from primitives import make
from search_options import vowels
from tiny_models import byte_tokenizer, tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from tts_decode import Budget, Completion, SamplingParams, TextDecoder, TreeDecoder, gather
from tts_decode.errors import JournalError
from tts_decode.rewards import ClassHead, Reader, Reading, RewardModel, verifier
from tts_decode.search import Journal, SearchResult, SearchRun, get_strategy
from tts_decode.search.ask_tell import AskTell, LogprobRequest

SAMPLING = SamplingParams(stop=(".", "e", "\n"), max_tokens=24, max_step_tokens=8, seed=3)

Outcome = tuple[SearchResult, int]  # and the tokens that the budget counted


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tts_decode.search.resuming.PATIENCE", 0.05)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def check_same(resumed: Outcome, whole: Outcome, kept: int) -> None:
    """Scores of a reward model may differ in their last bits: it reads in other portions."""
    (result, used), (plain, spent) = resumed, whole
    assert [replace(node, score=None) for node in result.tree] == [
        replace(node, score=None) for node in plain.tree
    ], kept
    scores, expected = (
        {node.id: node.score for node in outcome.tree if node.score is not None}
        for outcome in (result, plain)
    )
    assert scores == pytest.approx(expected, rel=1e-5), kept
    ends, plain_ends = (
        [(c.node, c.text, c.tokens, c.complete) for c in (outcome.best, *outcome.candidates)]
        for outcome in (result, plain)
    )
    assert ends == plain_ends, kept
    assert (result.stopped, used) == (plain.stopped, spent), kept


# -- a text engine and a reward model


def by_score_and_text(tokenizer: Any, question: str, steps: Sequence[str]) -> Reading:
    """Every step is read at its last token."""
    ids, positions = list(f"{question}|".encode()), []
    for step in steps:
        ids += step.encode() or b" "
        positions.append((len(ids) - 1,))
    return Reading(ids, tuple(positions))


async def engine(request: Any) -> Completion:
    """Texts depend on prefix and seed alone; answers come in mixed order."""
    key = zlib.crc32(f"{request.seed} {request.prompt}".encode())
    for _ in range(key % 23):
        await asyncio.sleep(0)
    if request.prompt.count("\n") < 3:
        return Completion(f"step {key % 97}\n", "stop_string", (key % 97, 1), (-0.5, -0.25), (1.0, 2.0))
    return Completion(f"is {key % 10}.", "eos", (2, 3, 0), (-0.1, -0.2, 0.0), (1.0, 1.0, 0.0))


@pytest.fixture(scope="module")
def reward() -> PreTrainedModel:
    return tiny_model("qwen2", auto=AutoModelForSequenceClassification, num_labels=2)


@pytest.fixture(scope="module")
def mixed(reward: PreTrainedModel) -> Callable[..., Outcome]:
    def search(path: Path | None, name: str, **options: Any) -> Outcome:
        policy = TextDecoder(engine)
        with make_reward(reward) as scorer:

            async def run() -> Outcome:
                budget = Budget(max_tokens=1000)
                root = await policy.root("Q: ", budget=budget)
                journal = None if path is None else Journal(path, resume=True)
                body = get_strategy(name)(SearchRun(root, journal=journal), scorer=scorer, **options)
                return await body, budget.tokens_used

            return policy.run(run())

    return search


def make_reward(model: PreTrainedModel) -> RewardModel:
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=4 << 20)
    return RewardModel(decoder, Reader("last token", by_score_and_text, ClassHead(1)))


@pytest.mark.parametrize(
    ("name", "options"),
    [("rebase", {"n": 5}), ("beam_search", {"n": 4, "beam_width": 2}), ("best_of_n", {"n": 5})],
)
def test_a_text_engine_whose_scorer_is_a_reward_model(
    tmp_path: Path, mixed: Callable[..., Outcome], name: str, options: dict[str, Any]
) -> None:
    plain = mixed(None, name, **options)
    path = tmp_path / "journal"
    check_same(mixed(path, name, **options), plain, -1)
    lines = lines_of(path)
    for kept in range(2, len(lines) + 1, 3):
        path.write_bytes(b"".join(lines[:kept]))
        check_same(mixed(path, name, **options), plain, kept)


@pytest.mark.parametrize("answered", [1, 2, 3])
def test_a_reward_model_in_a_search_that_is_told(
    tmp_path: Path, reward: PreTrainedModel, answered: int
) -> None:
    """Its calls come one by one, so the last that is recorded makes it live, and the next is the caller's."""

    async def chain(run: SearchRun, scorer: Any) -> SearchResult:
        (branch,) = run.fork(run.root)
        await run.step([branch])
        await run.score([branch], scorer)
        await run.complete(branch)
        return await run.result()

    made = unregistered(chain)

    def run(journal: Journal | None, limit: int | None = None) -> tuple[list[Any], SearchResult | None]:
        asked = []
        with make_reward(reward) as scorer, AskTell(made, "Q: ", scorer=scorer, journal=journal) as search:
            while not search.done:
                for request in search.ask()[:1]:
                    if len(asked) == limit:
                        return asked, None
                    asked.append((request.prompt, request.seed))
                    search.tell(request.id, asyncio.run(engine(request)))
            return asked, search.result

    whole, plain = run(None)
    path = tmp_path / "journal"
    run(Journal(path), answered)
    rest, result = run(Journal(path, resume=True))
    assert plain is not None
    assert result is not None
    assert rest == whole[answered:]
    check_same((result, 0), (plain, 0), answered)


def test_forced_text_is_asked_for_again_in_a_search_that_is_told(tmp_path: Path) -> None:
    async def forced(run: SearchRun) -> SearchResult:
        (branch,) = run.fork(run.root)
        await run.step([branch])
        await run.extend(branch, "So: ")
        await run.step([branch])
        return await run.result()

    made = unregistered(forced)

    def run(journal: Journal, limit: int) -> tuple[list[str], SearchResult | None]:
        asked = []
        with AskTell(made, "Q: ", logprobs_of=True, journal=journal) as search:
            while not search.done:
                (request,) = search.ask()
                if len(asked) == limit:
                    return asked, None
                asked.append(type(request).__name__)
                forced = isinstance(request, LogprobRequest)
                search.tell(request.id, [-1.0] if forced else asyncio.run(engine(request)))
            return asked, search.result

    path = tmp_path / "journal"
    assert run(Journal(path), 2) == (["CompletionRequest", "LogprobRequest"], None)
    asked, result = run(Journal(path, resume=True), 9)
    assert asked == ["LogprobRequest", "CompletionRequest"]
    assert result is not None
    assert "So: " in result.best.text


# -- scorers on the search's own decoder


def on_tree(model: PreTrainedModel, path: Path | None, body: Any, **options: Any) -> Outcome:
    """On a decoder of its own, as in another process. The search has a minute."""
    decoder = make(model)
    budget = Budget()

    async def search() -> SearchResult:
        root = await decoder.root("A prompt of more than a page of tokens. ", SAMPLING, budget)
        journal = None if path is None else Journal(path, resume=True)
        return await asyncio.wait_for(body(SearchRun(root, journal=journal), **options), 60)

    return decoder.run(search()), budget.tokens_used


def check_cuts(path: Path, model: PreTrainedModel, body: Any) -> None:
    plain = on_tree(model, path, body)
    lines = lines_of(path)
    for kept in range(2, len(lines) + 1):
        path.write_bytes(b"".join(lines[:kept]))
        check_same(on_tree(model, path, body), plain, kept)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "wait", [asyncio.sleep, partial(asyncio.to_thread, time.sleep)], ids=["loop", "thread"]
)
def test_a_scorer_that_takes_longer_than_the_patience(
    tmp_path: Path, model: PreTrainedModel, wait: Any
) -> None:
    """It was asking the model when the search was interrupted, and comes to that late."""

    async def scorer(branches: Any) -> list[float]:
        copy = branches[0].copy()
        await copy.extend(" Is that right? ")
        await wait(0.15)
        logprobs = await copy.next_logprobs([89])
        copy.release()
        return [float(logprobs[0])]

    async def slow(run: SearchRun) -> SearchResult:
        async def one(branch: Any, steps: int) -> None:
            for _ in range(steps):
                await run.step([branch])
            await run.score([branch], scorer)
            await run.step([branch])

        await gather(one(branch, i) for i, branch in enumerate(run.fork(run.root, 3)))
        return await run.result()

    check_cuts(tmp_path / "journal", model, unregistered(slow))


def test_a_scorer_that_the_search_did_not_wait_for(tmp_path: Path, model: PreTrainedModel) -> None:
    """It asked the model, then waited for something that never came, until it was cancelled."""

    async def scorer(branches: Any) -> list[float]:
        copy = branches[0].copy()
        await copy.extend(" Is that right? ")
        copy.release()
        await asyncio.Event().wait()
        return [0.0]

    async def tired(run: SearchRun) -> SearchResult:
        first, second = run.fork(run.root, 2)
        score = asyncio.ensure_future(run.score([first], scorer))
        for _ in range(3):
            await run.step([second])
        score.cancel()
        await asyncio.gather(score, return_exceptions=True)
        await run.step([second])
        return await run.result()

    check_cuts(tmp_path / "journal", model, unregistered(tired))


# -- journals that are not the search's own


def text_search(path: Path) -> SearchResult:
    decoder = TextDecoder(engine)

    async def search() -> SearchResult:
        root = await decoder.root("Q: ")
        run = SearchRun(root, journal=Journal(path, resume=True))
        return await asyncio.wait_for(get_strategy("rebase")(run, n=4, scorer=verifier(vowels)), 60)

    return decoder.run(search())


def tree_search(path: Path, model: PreTrainedModel) -> SearchResult:
    return on_tree(model, path, get_strategy("rebase"), n=4, scorer=verifier(vowels))[0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("engine", ["text", "tree"])
def test_entries_that_are_missing_or_swapped(tmp_path: Path, model: PreTrainedModel, engine: str) -> None:
    """The first step is missing on which a score depends; others may happen to be of no consequence."""
    path = tmp_path / "journal"

    def search() -> SearchResult:
        return text_search(path) if engine == "text" else tree_search(path, model)

    plain = search()
    lines = lines_of(path)
    rng = random.Random(5)
    first, last = 1, len(lines) - 1
    cuts = [first, *rng.sample(range(first, last), 3)]
    swaps = [(first, last), *(sorted(rng.sample(range(first, last + 1), 2)) for _ in range(3))]
    altered = [[*lines[:cut], *lines[cut + 1 :]] for cut in cuts]
    altered += [[*lines[:a], lines[b], *lines[a + 1 : b], lines[a], *lines[b + 1 :]] for a, b in swaps]
    given_up = []
    for other in altered:
        path.write_bytes(b"".join(sealed(other)))
        try:
            assert search().candidates == plain.candidates
        except JournalError:
            given_up.append(other)
    assert altered[0] in given_up
    assert altered[len(cuts)] in given_up


def edited(line: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(line) | fields).encode()


@pytest.mark.usefixtures("impatient")
def test_an_entry_that_is_never_asked_for_while_the_only_call_is_held(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    """Nobody waits for a turn, and the call that is held waits for the journal's end."""

    async def lonely(run: SearchRun) -> SearchResult:
        (branch,) = run.fork(run.root)
        await run.step([branch])
        return await run.result()

    made, path = unregistered(lonely), tmp_path / "journal"
    on_tree(model, path, made)
    header, entry = lines_of(path)
    under_way = [[json.loads(entry)["key"], "1", 1, 1, 0]]
    path.write_bytes(b"".join(sealed([header, edited(entry, key="0.9-9 1", under_way=under_way)])))
    with pytest.raises(JournalError, match="had line 2 next"):
        on_tree(model, path, made)


def test_places_that_a_request_never_comes_to(tmp_path: Path, model: PreTrainedModel) -> None:
    """Its tokens end before, or it may not compute what it needs to sample them: it is held there."""
    body, path = get_strategy("best_of_n"), tmp_path / "journal"
    options = {"n": 3, "scorer": verifier(vowels)}
    plain = on_tree(model, path, body, **options)
    lines = lines_of(path)
    kept = next(i for i, line in enumerate(lines) if i > 3 and json.loads(line).get("under_way"))
    rows = json.loads(lines[kept])["under_way"]
    for tokens, resident in ((5000, 5000), (5000, 3), (0, 5000), (1, 0)):
        other = [[call, path, tokens, resident, shared] for call, path, _, _, shared in rows]
        path.write_bytes(b"".join(sealed([*lines[:kept], edited(lines[kept], under_way=other)])))
        result, _ = on_tree(model, path, body, **options)
        assert result.candidates == plain[0].candidates, (tokens, resident)
