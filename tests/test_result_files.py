"""Results as files: what is written is read again, and what cannot be read says why."""

import json
import math
from dataclasses import replace

import pytest
from scripted import run_scripted, scorer, scripted_decoder
from tts_decode.errors import ResultFileError
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
    assert tables["searches"].schema.metadata[b"version"] == b"1"
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"version": 99}, "is of version 99, this package reads 1"),
        (lambda data: data | {"schema": "other"}, "is not a search result"),
        (lambda data: {k: v for k, v in data.items() if k != "tree"}, "lacks a field"),
        (lambda data: data | {"best": {"colour": 1}}, "lacks a field or has one of another kind"),
        (lambda data: data | {"stats": []}, "lacks a field or has one of another kind"),
        (lambda data: data | {"tree": [[1]]}, "lacks a field or has one of another kind"),
        (lambda data: [data], "is not a search result"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(results, tmp_path, change, message):
    file = tmp_path / "r.json"
    file.write_text(json.dumps(change(results[0].to_dict())))
    with pytest.raises(ResultFileError, match=message):
        read_json(file)


def test_a_cut_off_file_says_so(results, tmp_path):
    file = tmp_path / "r.json"
    write_json(results[0], file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ResultFileError, match="cut off"):
        read_json(file)


def test_a_failed_write_leaves_the_old_file(results, tmp_path):
    file = tmp_path / "r.json"
    write_json(results[0], file)
    with pytest.raises(TypeError):
        write_json(replace(results[1], votes={"4": object()}), file)
    assert read_json(file) == results[0]


def test_numbers_that_json_lacks_are_null(results, tmp_path):
    first, *others = results[0].candidates
    odd = replace(first, score=-math.inf, scores=(math.nan, 1.0), logprob=-math.inf)
    write_json(replace(results[0], candidates=(odd, *others), votes={"4": math.inf}), tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    candidate = data["candidates"][0]
    assert (candidate["score"], candidate["scores"], candidate["logprob"]) == (None, [None, 1.0], None)
    assert data["votes"] == {"4": None}
    assert math.isnan(read_json(tmp_path / "r.json").candidates[0].scores[0])
