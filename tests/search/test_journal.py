"""Journals: a search that was interrupted at any point goes on to the same end, and asks nothing again."""

import asyncio
import json
import math
import zlib

import numpy as np
import pytest
from tts_decode import gather
from tts_decode.completions.completion import Completion
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import JournalError
from tts_decode.records.strict_json import seal
from tts_decode.search import STRATEGIES, Journal, SearchRun, beam_search, best_of_n, rebase, strategy


class Crash(BaseException):
    """The process dies."""


class Engine:
    """Texts that depend on prefix and seed alone, as those of a model do; answers come in mixed order."""

    def __init__(self, crash_after=None):
        self.asked = []
        self.crash_after = crash_after

    async def __call__(self, request):
        key = zlib.crc32(f"{request.seed} {request.prompt}".encode())
        for _ in range(key % 13):
            await asyncio.sleep(0)
        if self.crash_after is not None and len(self.asked) >= self.crash_after:
            raise Crash
        self.asked.append((request.prompt, request.seed))
        if request.prompt.count("\n") < 3:
            return Completion(f"step {key % 97}\n", "stop_string", (key % 97, 1), (-0.5, -0.25), (1.0, 2.0))
        return Completion(f"is {key % 10}.", "eos", (2, 3, 0), (-0.1, -0.2, 0.0), (1.0, 1.0, 0.0))


def search(path, *, body=rebase, resume=False, engine=None, prompt="Q: ", seen=None, **options):
    """One search with a journal (no path: without one), its result and its engine."""
    engine = engine or Engine()
    decoder = TextDecoder(engine)

    async def scorer(branches):
        if seen is not None:
            seen.extend(branch.text for branch in branches)
        return [len(branch.text) * 7 % 5 / 5 for branch in branches]

    async def run():
        root = await decoder.root(prompt)
        journal = None if path is None else Journal(path, resume=resume)
        try:
            return await body(SearchRun(root, journal=journal), **({"n": 5, "scorer": scorer} | options))
        finally:
            root.release()

    return decoder.run(run()), engine


def content(candidate):
    return candidate.text, candidate.tokens, candidate.scores, candidate.finish_reason


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
    expected, _ = search(None, body=_by_arrival)
    with pytest.raises(Crash):
        search(path, body=_by_arrival, engine=Engine(crash_after))
    order = [json.loads(line)["text"] for line in path.read_text().splitlines()[1:]]
    result, _ = search(path, body=_by_arrival, resume=True)
    assert list(result.votes)[: len(order)] == order
    assert set(result.votes) == set(expected.votes)


@strategy("for this test: votes are the texts of first steps in the order of their arrival")
async def _by_arrival(run, *, n=5, scorer=None):
    arrived = {}

    async def first(branch):
        (step,) = await run.step([branch])
        arrived[step.text] = float(len(arrived))

    await gather(first(branch) for branch in run.fork(run.root, 12))
    return run.result(votes=arrived)


del STRATEGIES["_by_arrival"]


def test_a_cancelled_call_does_not_hold_up_a_replay(tmp_path):
    async def first_of(run, *, n=5, scorer=None):
        tasks = [asyncio.ensure_future(run.complete(branch)) for branch in run.fork(run.root, n)]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return run.result()

    made = strategy("for this test")(first_of)
    del STRATEGIES["first_of"]
    path = tmp_path / "search.jsonl"
    expected, _ = search(path, body=made)
    result, engine = search(path, body=made, resume=True)
    assert result.best == expected.best
    assert engine.asked == []


def test_numbers_are_those_of_the_first_time(tmp_path):
    """What an engine says of a text may differ in its last bits; decisions must not."""
    path = tmp_path / "search.jsonl"
    asked = []

    async def judged(run, *, n=3, scorer=None):
        branches = run.fork(run.root, n)
        for branch in branches:
            await run.extend(branch, "Step by step.\n")
            branch.scores.append(sum(await run.logprobs_of(branch, "Yes")))
        return run.result()

    made = strategy("for this test")(judged)
    del STRATEGIES["judged"]

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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "Other: "}, "belongs to another search: its prompt is"),
        ({"n": 6}, "belongs to another search: its options is"),
        ({"body": best_of_n}, "belongs to another search: its strategy is 'rebase'"),
    ],
)
def test_a_journal_of_another_search_is_refused(tmp_path, changes, message):
    path = tmp_path / "search.jsonl"
    search(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=message):
        search(path, resume=True, **changes)
    assert path.read_bytes() == before


def sealed(lines):
    """The lines with checksums that agree, as of somebody who means it."""
    made, checksum = [], 0
    for line in lines:
        record = json.loads(line)
        record.pop("crc32", None)
        text, checksum = seal(record, checksum)
        made.append(text.encode() + b"\n")
    return made


MOMENT = b'"spent":[0,0.0,0.0],"together":false,"under_way":[],"cancelled":[]'
STEP = b'{"key":"0.1-9 1","text":"a","tokens":[1],"logprobs":[-1.0],"entropies":[0.5],"reason":"eos",'
STEP += MOMENT + b"}"
NUMBERS = b'{"key":"0 x1 1","numbers":[1.0],' + MOMENT + b"}"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [b'{"schema":"other"}\n', *lines[1:]], "is of 'other', version None; expected"),
        (
            lambda lines: [lines[0].replace(b'"version":3', b'"version":1'), *lines[1:]],
            "is of 'tts-decode/journal', version 1; expected 'tts-decode/journal', version 3: go on with the",
        ),
        (lambda lines: [*lines[:3], b"\x00\x01\n", *lines[3:]], "line 4 is damaged"),
        (lambda lines: [*lines[:3], b"[1]\n", *lines[3:]], "line 4 is damaged"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4 is damaged"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4 is damaged"),
        (
            lambda lines: [*lines[:3], STEP + b"\n", *lines[3:]],
            "line 4 is damaged: it does not agree with its",
        ),
        (lambda lines: sealed([*lines[:3], lines[2], *lines[3:]]), "line 4 is damaged"),  # the same key twice
        *(
            (
                lambda lines, line=line: sealed([*lines[:3], line, *lines[3:]]),
                "line 4 is damaged: it is no entry",
            )
            for line in (
                b'{"key":"0.1-9 1"}',
                b'{"key":5,"numbers":[]}',
                b'{"numbers":[1.0]}',
                NUMBERS.replace(b"[1.0]", b'["a"]'),
                NUMBERS.replace(b"[1.0]", b"[true]"),
                NUMBERS.replace(b"[1.0]", b'{"0":1.0}'),
                b'{"key":"0 x1 1","numbers":[1.0]}',
                NUMBERS.replace(b"[0,0.0,0.0]", b"[0,0.0]"),
                NUMBERS.replace(b"[0,0.0,0.0]", b"[1.5,0.0,0.0]"),
                NUMBERS.replace(b"false", b"0"),
                NUMBERS.replace(b'"under_way":[]', b'"under_way":[["0.1-0 1","1",8,7]]'),
                NUMBERS.replace(b'"under_way":[]', b'"under_way":[["0.1-0 1","1",8,-7,0]]'),
                NUMBERS.replace(b'"under_way":[]', b'"under_way":[[1,"1",8,7,0]]'),
                NUMBERS.replace(b'"cancelled":[]', b'"cancelled":[["0.1-0 1","1",8.5,7,0]]'),
                NUMBERS.replace(b'"numbers":[1.0]', b'"refused":5'),
                STEP.replace(b'"a"', b"[]"),
                STEP.replace(b"[1]", b"[1.5]"),
                STEP.replace(b"[1]", b"[true]"),
                STEP.replace(b"[1]", b"null"),
                STEP.replace(b"[-1.0]", b"[-1.0,-1.0]"),
                STEP.replace(b"[0.5]", b"[[0.5]]"),
                STEP.replace(b'"eos"', b"3"),
                STEP.replace(b'"eos"', b'"eos","hidden":"abc"'),
                STEP.replace(b'"eos"', b'"eos","hidden":7'),
            )
        ),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, damage, message):
    path = tmp_path / "search.jsonl"
    search(path)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    with pytest.raises(JournalError, match=message):
        search(path, resume=True)
    assert path.read_bytes() == before


UNASKED = b'{"key":"0.9-9 1","numbers":[],' + MOMENT + b"}"


def test_a_strategy_that_takes_another_way_is_found_out(tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    search(path, body=_by_arrival)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(sealed([*lines[:2], UNASKED, *lines[2:]])))
    monkeypatch.setattr("tts_decode.search.resuming.PATIENCE", 0.05)
    with pytest.raises(JournalError, match="takes another way than the recorded one"):
        search(path, body=_by_arrival, resume=True)


def test_a_search_whose_next_calls_are_all_new_is_found_out(tmp_path, monkeypatch):
    """None of them has a turn of its own to wait for."""
    path = tmp_path / "search.jsonl"
    search(path)
    header, *_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(sealed([header, UNASKED])))
    monkeypatch.setattr("tts_decode.search.resuming.PATIENCE", 0.05)
    with pytest.raises(JournalError, match="takes another way than the recorded one, which had line 2 next"):
        search(path, resume=True)


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
        return run.result()

    made = strategy("for this test")(first_of)
    del STRATEGIES["first_of"]

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
    """Of an engine that does not tell log-probabilities."""

    class Untold(Engine):
        async def __call__(self, request):
            self.asked.append(request.seed)
            return Completion("is 4.", "eos", (2, 0), (math.nan, -math.inf), (math.nan, math.inf))

    async def judged(run, *, n=2, scorer=None):
        branches = run.fork(run.root, n)
        await run.step(branches)
        return run.result()

    made = strategy("for this test")(judged)
    del STRATEGIES["judged"]
    path = tmp_path / "search.jsonl"
    expected, _ = search(path, body=made, engine=Untold(), n=2)
    before = path.read_bytes()
    result, engine = search(path, body=made, engine=Untold(), n=2, resume=True)
    assert engine.asked == []
    assert repr(result.candidates) == repr(expected.candidates)
    assert path.read_bytes() == before
    assert b"NaN" not in before


def test_two_searches_never_write_one_journal(tmp_path):
    path = tmp_path / "search.jsonl"
    first = Journal(path)
    with pytest.raises(JournalError, match="is in use by another search"):
        Journal(path, resume=True)
    first.close()
    Journal(path, resume=True).close()


def test_a_journal_without_an_entry_is_begun_anew(tmp_path):
    """Such as of a search that refused its options."""
    path = tmp_path / "search.jsonl"
    with pytest.raises(ValueError, match="n: got 0"):
        search(path, n=0)
    result, _ = search(path, resume=True, n=4)
    assert len(result.candidates) == 4
    assert json.loads(path.read_text().splitlines()[0])["options"]["n"] == 4


def test_a_journal_of_a_root_with_another_seed_is_refused(tmp_path):
    path = tmp_path / "search.jsonl"

    async def run(decoder, seed, **options):
        (root,) = (await decoder.root("Q: ")).fork(1, seeds=[seed])
        return await rebase(SearchRun(root, journal=Journal(path, **options)), n=2, scorer=some_scores)

    decoder = TextDecoder(Engine())
    decoder.run(run(decoder, 1))
    with pytest.raises(JournalError, match="its seed is 1, here it is 2"):
        decoder.run(run(decoder, 2, resume=True))


async def some_scores(branches):
    return [0.5] * len(branches)


def test_an_option_of_numpy_is_the_number_that_it_is(tmp_path):
    path = tmp_path / "search.jsonl"
    result, _ = search(path, n=np.int64(5), softmax_temperature=np.float32(0.25))
    resumed, engine = search(path, resume=True, n=5, softmax_temperature=0.25)
    assert content(resumed.best) == content(result.best)
    assert engine.asked == []
    with pytest.raises(JournalError, match="its options"):
        search(path, resume=True, n=np.int64(6), softmax_temperature=0.25)
