"""Results as files: what is written is read again, and what cannot be read says why."""

import errno
import json
import math
import os
import random
from dataclasses import replace

import pytest
from scripted import run_scripted, scorer, scripted_decoder
from tts_decode.errors import ResultFileError
from tts_decode.records.strict_json import seal
from tts_decode.search import best_of_n, read_json, rebase, self_consistency, write_json, write_parquet


def script(prefix, k):
    steps = prefix.count("\n")
    return (f"step {steps} {'abcdefgh'[k]}\n", "stop_string") if steps < 2 else ("The answer is 4.", "eos")


@pytest.fixture(scope="module")
def results():
    score = scorer(lambda text: len(text) % 7 / 7)
    return [
        run_scripted(scripted_decoder(script), rebase, "Q é: ", n=5, scorer=score),
        run_scripted(scripted_decoder(script), self_consistency, "Q: ", n=3),
        run_scripted(scripted_decoder(script), best_of_n, "Q: ", n=1, scorer=score),
    ]


def test_json_gives_back_every_field(results, tmp_path):
    for result in results:
        write_json(result, tmp_path / "r.json")
        again = read_json(tmp_path / "r.json")
        assert again == result
        assert [(n.began, n.ended) for n in again.tree] == [(n.began, n.ended) for n in result.tree]
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_what_an_engine_did_not_tell_is_null_in_json(tmp_path):
    def untold(prefix, k):
        return "two words", "eos", [math.nan, -1.0], [math.nan, math.nan]

    result = run_scripted(scripted_decoder(untold), self_consistency, "Q: ", n=1)
    write_json(result, tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert data["tree"][1]["logprobs"] == [None, -1.0, 0.0]
    assert data["best"]["logprob"] is None
    again = read_json(tmp_path / "r.json")
    assert math.isnan(again.best.logprob)
    assert math.isnan(again.tree[1].logprobs[0])
    assert again.tree[1].logprobs[1:] == (-1.0, 0.0)


def test_parquet_holds_the_same_numbers(results, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(results, tmp_path)
    tables = {file.stem: parquet.read_table(file) for file in tmp_path.iterdir()}
    assert set(tables) == {"searches", "nodes", "candidates", "memory"}
    assert tables["searches"].schema.metadata[b"version"] == b"2"
    for name, parts in (
        ("nodes", [result.tree for result in results]),
        ("candidates", [result.candidates for result in results]),
        ("memory", [result.stats.memory for result in results]),
    ):
        rows = tables[name].to_pylist()
        expected = [(search, item) for search, items in enumerate(parts) for item in items]
        assert len(rows) == len(expected)
        for row, (search, item) in zip(rows, expected, strict=True):
            assert row.pop("search") == search
            for field, value in row.items():
                wanted = getattr(item, field)
                assert value == (pytest.approx(list(wanted)) if isinstance(wanted, tuple) else wanted)
    searches = tables["searches"].to_pylist()
    assert [row["answer"] for row in searches] == [result.answer for result in results]
    assert json.loads(searches[1]["votes"]) == results[1].votes


def test_no_results_give_empty_tables_of_the_same_columns(results, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(results, tmp_path / "some")
    write_parquet([], tmp_path / "none")
    for name in ("searches", "nodes", "candidates", "memory"):
        some, none = (parquet.read_table(tmp_path / kind / f"{name}.parquet") for kind in ("some", "none"))
        assert none.num_rows == 0
        assert none.schema == some.schema


def changed(data, path, value):
    """A copy of the data with the value at the path, whose last name is given up where the value is LACKS."""
    copy = json.loads(json.dumps(data))
    inside = copy
    for name in path[:-1]:
        inside = inside[name]
    if value is LACKS:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return copy


LACKS = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["version"], 1, "is of version 1, this package reads 2: read it with the package that wrote it"),
        (["version"], "2", "is of version '2'"),
        (["schema"], "other", "is not a search result"),
        (["schema"], LACKS, "is not a search result"),
        (["tree"], LACKS, "result: lacks field 'tree'"),
        (["best"], {"colour": 1}, "result.best: lacks field"),
        (["best", "colour"], 1, "result.best: has an unknown field 'colour'"),
        (["stats"], [], "result.stats: got \\[\\], expected an object"),
        (["stats"], None, "result.stats: got None, expected an object"),
        (["stats", "seconds"], None, "result.stats.seconds: got None, expected a finite number"),
        (["stats", "memory", 1, "branches"], "2", r"result.stats.memory\[1\].branches: got '2'"),
        (["stats", "memory"], {"0": 1}, "result.stats.memory: got {'0': 1}, expected a list"),
        (["tree", 0], [1], r"result.tree\[0\]: got \[1\], expected an object"),
        (["tree", 1, "tokens", 0], 10**30, r"result.tree\[1\].tokens\[0\]: got 10+, expected an integer"),
        (["tree", 1, "tokens", 0], True, r"tokens\[0\]: got True, expected an integer"),
        (["tree", 1, "tokens", 0], 1.0, r"tokens\[0\]: got 1.0, expected an integer"),
        (["tree", 1, "status"], "lost", r"status: got 'lost', expected one of prompt, kept"),
        (["tree", 1, "forced"], 0, "forced: got 0, expected true or false"),
        (["tree", 1, "parent"], 1, r"result.tree\[1\]: got node 1 below 1"),
        (["tree", 1, "id"], 5, r"result.tree\[1\]: got node 5"),
        (["tree", 1, "at"], 10**6, r"result.tree\[1\]: got node 1 below 0 at 1000000"),
        (["best", "node"], 10**6, "result: got node 1000000"),
        (["candidates", 0, "text"], 4, r"result.candidates\[0\].text: got 4, expected a text"),
        (["candidates", 0, "scores"], "12", "scores: got '12', expected a list"),
        (["votes"], [], "result.votes: got \\[\\], expected an object"),
        (["stopped"], 3, "result.stopped: got 3, expected a text"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(results, tmp_path, path, value, message):
    """Checksums agree: what is refused is what they vouch for."""
    file = tmp_path / "r.json"
    file.write_text(seal(changed(results[0].to_dict(), path, value))[0])
    with pytest.raises(ResultFileError, match=message):
        read_json(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "is not a search result"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"schema": 1e400}', "out of range"),
        (b'{"schema": ' + b"7" * 5000 + b"}", "out of range, of 5000 digits"),
        (b'{"schema": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_what_is_no_result_says_so(tmp_path, content, message):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(ResultFileError, match=message):
        read_json(tmp_path / "r.json")


def test_every_change_is_found(results, tmp_path):
    file, rng = tmp_path / "r.json", random.Random(0)
    write_json(results[0], file)
    whole = file.read_bytes()
    refused = 0
    for _ in range(200):
        place = rng.randrange(len(whole))
        length = rng.choice([0, 1, 1, 1, 40])
        file.write_bytes(whole[:place] + rng.randbytes(rng.randrange(3)) + whole[place + length :])
        try:
            assert read_json(file) == results[0]
        except ResultFileError:
            refused += 1
    assert refused > 150


def test_another_layout_is_read(results, tmp_path):
    file = tmp_path / "r.json"
    write_json(results[0], file)
    file.write_text("\ufeff" + json.dumps(json.loads(file.read_text()), indent=2, ensure_ascii=False))
    assert read_json(file) == results[0]


def test_a_cut_off_file_says_so(results, tmp_path):
    file = tmp_path / "r.json"
    write_json(results[0], file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ResultFileError, match="is not JSON"):
        read_json(file)


def test_folders_and_what_is_not_there(results, tmp_path):
    with pytest.raises(ResultFileError, match="cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ResultFileError, match="cannot be read: Is a directory"):
        read_json(tmp_path)
    for path, reason in ((tmp_path / "none" / "r.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ResultFileError, match=f"cannot be written: {reason}"):
            write_json(results[0], path)
    (tmp_path / "file").touch()
    with pytest.raises(ResultFileError, match="file: cannot be made: File exists"):
        write_parquet(results, tmp_path / "file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(results, tmp_path):
    file = tmp_path / "r.json"
    write_json(results[0], file)
    with pytest.raises(TypeError):
        write_json(replace(results[1], votes={"4": object()}), file)
    assert read_json(file) == results[0]


def test_a_full_disk_leaves_the_old_file(results, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "r.json"
    write_json(results[0], file)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultFileError, match=r"r\.json: cannot be written: No space left on device"):
        write_json(results[1], file)
    assert read_json(file) == results[0]
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_numbers_that_json_lacks_are_null(results, tmp_path):
    first, *others = results[0].candidates
    odd = replace(first, score=-math.inf, scores=(math.nan, 1.0), logprob=-math.inf)
    write_json(replace(results[0], candidates=(odd, *others), votes={"4.5": math.inf}), tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    candidate = data["candidates"][0]
    assert (candidate["score"], candidate["scores"], candidate["logprob"]) == (None, [None, 1.0], None)
    assert data["votes"] == {"4.5": None}
    assert math.isnan(read_json(tmp_path / "r.json").votes["4.5"])
    assert math.isnan(read_json(tmp_path / "r.json").candidates[0].scores[0])
