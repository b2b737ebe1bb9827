"""Journals: a search interrupted at any point continues to the same end, and repeats no request."""

import asyncio
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from journaled import Crash, Engine, by_arrival, search, unregistered
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import JournalError
from tts_decode.search import Journal, SearchRun, beam_search, best_of_n, rebase


@pytest.mark.parametrize("crash_after", [0, 1, 4, 7, 11])
@pytest.mark.parametrize("body", [rebase, best_of_n, beam_search], ids=lambda s: s.name)
def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path, body, crash_after):
    options = {"n": 4, "beam_width": 2} if body is beam_search else {}
    expected, undisturbed = search(None, body=body, **options)
    path = tmp_path / "search.jsonl"
    crashed = Engine(crash_after)
    with pytest.raises(Crash):
        search(path, body=body, engine=crashed, **options)
    seen = []
    result, engine = search(path, body=body, resume=True, seen=seen, **options)
    assert result.best.score == expected.best.score
    assert result.candidates == expected.candidates
    assert result.tree == expected.tree
    recorded = sum("tokens" in json.loads(line) for line in path.read_text().splitlines())
    assert recorded == len(undisturbed.asked)  # each step is in the file once
    # Answers that came, but were not taken in before the crash, are asked for again; no others.
    assert len(crashed.asked) + len(engine.asked) - len(undisturbed.asked) in (0, 1)
    assert len(set(seen)) == len(seen) or body is not rebase


def test_a_finished_search_is_replayed_without_asking(tmp_path):
    path = tmp_path / "search.jsonl"
    expected, _ = search(path)
    before = path.read_bytes()
    seen = []
    result, engine = search(path, resume=True, seen=seen)
    assert result.tree == expected.tree
    assert engine.asked == []
    assert seen == []
    assert path.read_bytes() == before


def test_without_resume_a_journal_begins_anew(tmp_path):
    path = tmp_path / "search.jsonl"
    search(path)
    _, engine = search(path, prompt="Another: ")
    assert engine.asked
    assert json.loads(path.read_text().splitlines()[0])["strategy"] == "rebase"


@pytest.mark.parametrize("lost", [1, 5, 60])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path, lost):
    path = tmp_path / "search.jsonl"
    expected, _ = search(path)
    path.write_bytes(path.read_bytes()[:-lost])
    result, _ = search(path, resume=True)
    assert result.tree == expected.tree
    assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize("crash_after", [2, 3, 5, 8])
def test_what_came_first_comes_first_again(tmp_path, crash_after):
    """A strategy that goes by the order of arrival finds the same order in a replay."""
    path = tmp_path / "search.jsonl"
    expected, _ = search(None, body=by_arrival)
    with pytest.raises(Crash):
        search(path, body=by_arrival, engine=Engine(crash_after))
    order = [json.loads(line)["text"] for line in path.read_text().splitlines()[1:]]
    result, _ = search(path, body=by_arrival, resume=True)
    assert list(result.votes)[: len(order)] == order
    assert set(result.votes) == set(expected.votes)


def test_a_cancelled_call_does_not_hold_up_a_replay(tmp_path):
    async def first_of(run, *, n=5, scorer=None):
        tasks = [asyncio.ensure_future(run.complete(branch)) for branch in run.fork(run.root, n)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await run.result()

    made = unregistered(first_of)
    path = tmp_path / "search.jsonl"
    expected, _ = search(path, body=made)
    result, engine = search(path, body=made, resume=True)
    assert result.best == expected.best
    assert engine.asked == []


def test_numbers_are_those_of_the_first_time(tmp_path):
    """An engine's numbers for a text may differ in their last bits; decisions must not."""
    path = tmp_path / "search.jsonl"
    asked = []

    async def judged(run, *, n=3, scorer=None):
        branches = run.fork(run.root, n)
        for branch in branches:
            await run.extend(branch, "Step by step.\n")
            branch.scores.append(sum(await run.logprobs_of(branch, "Yes")))
        return await run.result()

    made = unregistered(judged)

    def decide(journal, values):
        async def score(prompt, continuations):
            asked.append(continuations)
            return [[next(values)] for _ in continuations]

        decoder = TextDecoder(Engine(), score=score)

        async def run():
            root = await decoder.root("Q: ")
            return await made(SearchRun(root, journal=journal))

        return decoder.run(run())

    expected = decide(Journal(path), iter([-0.1, -2.0, -0.1, -1.0, -0.1, -3.0]))
    assert [c.score for c in expected.candidates] == [-2.0, -1.0, -3.0]
    asked.clear()
    result = decide(Journal(path, resume=True), iter([-0.5] * 6))
    assert [c.score for c in result.candidates] == [-2.0, -1.0, -3.0]
    assert asked == [["Step by step.\n"]] * 3  # forced text is fed again, questions are not asked again


def test_a_call_cancelled_during_its_replay_does_not_hold_up_the_others(tmp_path):
    """In the replay the second branch still takes its tokens in when the first one's end cancels it."""
    path = tmp_path / "search.jsonl"
    slow = asyncio.Event()

    async def first_of(run, *, n=2, scorer=None):
        one, two = run.fork(run.root, 2)
        tasks = [asyncio.ensure_future(run.step([branch])) for branch in (one, two)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        slow.set()
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await run.complete(one)
        return await run.result()

    made = unregistered(first_of)

    def decide(journal, replay=None):
        decoder = TextDecoder(Engine())

        async def run():
            root = await decoder.root("Q: ")
            if replay is not None:
                for branch in (children := root.fork(2)):
                    branch.release()
                kind = type(children[1])
                original = kind.replay

                async def replayed(branch, step):
                    if branch.length == root.length and branch.seed == children[1].seed:
                        await asyncio.Event().wait()
                    await original(branch, step)

                replay.setattr(kind, "replay", replayed)
            root = await decoder.root("Q: ")
            return await made(SearchRun(root, journal=journal))

        return decoder.run(run())

    expected = decide(Journal(path))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("tts_decode.search.resuming.PATIENCE", 5.0)
        result = decide(Journal(path, resume=True), patch)
    assert result.best.text == expected.best.text


def test_numbers_that_json_lacks_are_handed_out_again(tmp_path):
    """The engine returns no log-probabilities."""

    class Untold(Engine):
        async def __call__(self, request):
            self.asked.append(request.seed)
            return Completion("is 4.", "eos", (2, 0), (math.nan, -math.inf), (math.nan, math.inf))

    async def judged(run, *, n=2, scorer=None):
        branches = run.fork(run.root, n)
        await run.step(branches)
        return await run.result()

    made = unregistered(judged)
    path = tmp_path / "search.jsonl"
    expected, _ = search(path, body=made, engine=Untold(), n=2)
    before = path.read_bytes()
    result, engine = search(path, body=made, engine=Untold(), n=2, resume=True)
    assert engine.asked == []
    assert repr(result.candidates) == repr(expected.candidates)
    assert path.read_bytes() == before
    assert b"NaN" not in before


def test_a_journal_without_an_entry_is_begun_anew(tmp_path):
    """Such as of a search that refused its options."""
    path = tmp_path / "search.jsonl"
    with pytest.raises(ValueError, match="n: got 0"):
        search(path, n=0)
    result, _ = search(path, resume=True, n=4)
    assert len(result.candidates) == 4
    assert json.loads(path.read_text().splitlines()[0])["options"]["n"] == 4


def test_an_option_of_numpy_is_the_number_that_it_is(tmp_path):
    path = tmp_path / "search.jsonl"
    result, _ = search(path, n=np.int64(5), softmax_temperature=np.float32(0.25))
    resumed, engine = search(path, resume=True, n=5, softmax_temperature=0.25)
    assert resumed.best == result.best
    assert engine.asked == []
    with pytest.raises(JournalError, match="its options"):
        search(path, resume=True, n=np.int64(6), softmax_temperature=0.25)


@dataclass(frozen=True)
class Weights:
    by_name: dict[str, float]


@pytest.mark.parametrize(
    ("first", "again", "other"),
    [
        (["a", 1, 2.5], ["a", np.int64(1), 2.5], ["a", 2, 2.5]),
        ({"a": [1], "b": 2}, {"b": 2, "a": [1]}, {"a": [1], "b": 3}),
        (Weights({"x": 1.0}), Weights({"x": 1.0}), Weights({"x": 2.0})),
        ([Weights({"x": 1.0})], [Weights({"x": 1.0})], [Weights({"y": 1.0})]),
    ],
    ids=["list", "mapping", "dataclass", "nested"],
)
def test_an_option_with_parts_is_told_by_its_content(tmp_path, first, again, other):
    async def listed(run, *, chosen, n, scorer):
        return await rebase.body(run, n=n, scorer=scorer)

    path = tmp_path / "search.jsonl"
    body = unregistered(listed)
    search(path, body=body, chosen=first)
    search(path, resume=True, body=body, chosen=again)
    with pytest.raises(JournalError, match="its options"):
        search(path, resume=True, body=body, chosen=other)
