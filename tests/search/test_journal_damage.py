"""Journals that are damaged, in use, or of another search or another way of it are refused."""

import pytest
from journaled import Engine, by_arrival, sealed, search
from tts_decode.completions.decoder import TextDecoder
from tts_decode.errors import JournalError
from tts_decode.search import Journal, SearchRun, best_of_n, rebase


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


MOMENT = b'"spent":[0,0.0,0.0],"together":false,"under_way":[],"cancelled":[]'
STEP = b'{"key":"0.1-9 1","text":"a","tokens":[1],"logprobs":[-1.0],"entropies":[0.5],"reason":"eos",'
STEP += MOMENT + b"}"
NUMBERS = b'{"key":"0 x1 1","numbers":[1.0],' + MOMENT + b"}"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [b'{"schema":"other"}\n', *lines[1:]], "is of 'other', version None; expected"),
        (
            lambda lines: [lines[0].replace(b'"version":5', b'"version":1'), *lines[1:]],
            "is of 'tts-decode/journal', version 1; expected 'tts-decode/journal', version 5: go on with the",
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
    search(path, body=by_arrival)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(sealed([*lines[:2], UNASKED, *lines[2:]])))
    monkeypatch.setattr("tts_decode.search.resuming.PATIENCE", 0.05)
    with pytest.raises(JournalError, match="takes another way than the recorded one"):
        search(path, body=by_arrival, resume=True)


def test_a_search_whose_next_calls_are_all_new_is_found_out(tmp_path, monkeypatch):
    """None of them has a turn of its own to wait for."""
    path = tmp_path / "search.jsonl"
    search(path)
    header, *_ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(sealed([header, UNASKED])))
    monkeypatch.setattr("tts_decode.search.resuming.PATIENCE", 0.05)
    with pytest.raises(JournalError, match="takes another way than the recorded one, which had line 2 next"):
        search(path, resume=True)


def test_two_searches_never_write_one_journal(tmp_path):
    path = tmp_path / "search.jsonl"
    first = Journal(path)
    with pytest.raises(JournalError, match="is in use by another search"):
        Journal(path, resume=True)
    first.close()
    Journal(path, resume=True).close()


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
