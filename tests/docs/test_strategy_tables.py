"""`benches.strategy_tables`: parts of a page, records that are gone on from, the page that is committed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benches import strategy_tables
from benches.markers import PageError, fill
from benches.strategies.measured import MEASURED, Grown, Measured
from benches.strategies.records import RecordsError, load, save
from benches.tables import Table

A = "<!-- measured: a -->\n\nold\n\n<!-- end -->\n"
B = "<!-- measured: b -->\n<!-- end -->\n"


# -- the page that is committed


def test_the_page_is_what_the_records_give() -> None:
    records = load(strategy_tables.RECORDS, MEASURED)
    page = strategy_tables.PAGE.read_text(encoding="utf-8")
    assert records.keys() == MEASURED.keys()
    assert strategy_tables.page_of(page, records) == page


def test_records_are_of_the_settings_that_would_be_measured() -> None:
    records = load(strategy_tables.RECORDS, MEASURED)
    assert [name for name, table in MEASURED.items() if not table.fits(records[name])] == []


@pytest.mark.parametrize(
    ("name", "change", "before", "after"),
    [
        ("coverage_curve", lambda f: f["right"].__setitem__(slice(None), [32] * 12), None, "100.0 %"),
        ("atts_pair", lambda f: f["rows"]["p-values"].update(solved=11), None, "| p-values | 11/12 |"),
        ("search_cost", lambda f: f["outside"].update(ets=0.125), "| `ets` | 2.4 % |", "12.5 %"),
    ],
)
def test_a_figure_that_changes_is_changed_in_the_page(
    name: str, change: object, before: str | None, after: str
) -> None:
    records = load(strategy_tables.RECORDS, MEASURED)
    page = strategy_tables.PAGE.read_text(encoding="utf-8")
    change(records[name]["figures"])
    changed = strategy_tables.page_of(page, records)
    assert after not in _part(page, name)
    assert after in _part(changed, name)
    assert before is None or before not in _part(changed, name)
    assert changed.replace(_part(changed, name), _part(page, name)) == page


def test_the_sentence_below_a_table_follows_its_figures() -> None:
    """With each REBASE at a constant KV that is twice as much where shares are exact."""
    table = strategy_tables.TABLES["search_comparison"]
    record = table.read()
    heavy = 4 * max(search["ets_kv_tokens"] for search in record["searches"])
    for search in record["searches"]:
        if search["variant"] == "exact rebase":
            search["ets_kv_tokens"] = heavy
        elif search["variant"] == "published rebase":
            search["ets_kv_tokens"] = heavy // 2
    text = " ".join(table.text(record).split())
    assert "REBASE with exact shares takes 2.00x the KV of the published REBASE" in text
    assert "by its own count none of the 2 intervals include no saving" in text


def _part(page: str, name: str) -> str:
    return page.partition(f"<!-- measured: {name} -->")[2].partition("<!-- end -->")[0]


# -- markers


def test_parts_are_replaced_and_the_rest_is_left() -> None:
    page = f"# Title\n{A}between\n{B}end\n"
    filled = fill(page, {"b": "two \\1", "a": "one"})
    assert filled == (
        "# Title\n<!-- measured: a -->\n\none\n\n<!-- end -->\nbetween\n"
        "<!-- measured: b -->\n\ntwo \\1\n\n<!-- end -->\nend\n"
    )
    assert fill(filled, {"a": "one", "b": "two \\1"}) == filled


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (A, "measured: b -->: is not in the page"),
        (A + B + "<!-- measured: c -->\n<!-- end -->\n", "measured: c -->: expected one of a, b"),
        (A + B + A, "measured: a -->: got 2 in the page"),
        (A + "<!-- measured: b -->\n", "without its other"),
        ("<!-- measured: b -->\n" + A, "without its other"),
        (A + B + "<!-- end -->\n", "without its other"),
    ],
)
def test_markers_that_do_not_fit_are_refused(page: str, message: str) -> None:
    with pytest.raises(PageError, match=re.escape(message)):
        fill(page, {"a": "one", "b": "two"})


# -- records


class Bench:
    """Counts its measurements."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def measure(self, *, n: int) -> dict[str, int]:
        self.calls.append(n)
        return {"solved": n + len(self.calls)}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Two tables, of which `second` has a file of its own."""
    bench = Bench()
    own = tmp_path / "own.json"

    def grow() -> dict[str, int]:
        found = json.loads(own.read_text()) if own.exists() else {"second": 10 + bench.measure(n=0)["solved"]}
        own.write_text(json.dumps(found))
        return found

    tables = {
        "a": Measured({"n": 4}, bench.measure, lambda record: f"{record['figures']['solved']} solved"),
        "b": Grown(own, grow, lambda: json.loads(own.read_text()), lambda record: f"{record['second']}"),
    }
    monkeypatch.setattr(strategy_tables, "TABLES", tables)
    monkeypatch.setattr(strategy_tables, "MEASURED", {"a": tables["a"]})
    monkeypatch.setattr(strategy_tables, "GROWN", {"b": tables["b"]})
    monkeypatch.setattr(strategy_tables, "RECORDS", tmp_path / "records.json")
    monkeypatch.setattr(strategy_tables, "PAGE", tmp_path / "page.md")
    strategy_tables.PAGE.write_text(A + B)
    return bench


def ran(*arguments: str, code: int = 0) -> str:
    app = strategy_tables.typer.Typer()
    app.command()(strategy_tables.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def test_what_was_measured_is_gone_on_from(bench: Bench) -> None:
    ran()
    page = strategy_tables.PAGE.read_text()
    assert "5 solved" in page
    assert "12" in page
    assert "measured before" in ran()
    assert bench.calls == [4, 0]
    assert strategy_tables.PAGE.read_text() == page


def test_names_and_again_measure_anew(bench: Bench) -> None:
    ran()
    ran("a", "b")  # a table with its own file continues with it
    assert bench.calls == [4, 0, 4]
    assert "7 solved" in strategy_tables.PAGE.read_text()
    ran("--again")
    assert bench.calls == [4, 0, 4, 4, 0]


def test_other_settings_are_measured_again(bench: Bench) -> None:
    ran()
    records = load(strategy_tables.RECORDS, ["a"])
    records["a"]["settings"] = {"n": 3}
    save(strategy_tables.RECORDS, records)
    ran()
    assert bench.calls == [4, 0, 4]


def test_the_page_alone_is_written_from_the_records(bench: Bench) -> None:
    ran("a")
    strategy_tables.PAGE.write_text(A + B)
    ran("--page-only")
    assert "5 solved" in strategy_tables.PAGE.read_text()
    assert "Not measured yet: `python -m benches.strategy_tables b`" in strategy_tables.PAGE.read_text()
    assert bench.calls == [4]


def test_an_unknown_name_measures_nothing(bench: Bench) -> None:
    output = ran("a", "c", code=2)
    assert "got c, expected one of a, b" in output
    assert bench.calls == []


def test_the_list_names_tables_and_dates(bench: Bench) -> None:
    assert re.search(r"^a +not measured$", ran("--list"), re.MULTILINE)
    ran("a")
    assert re.search(r"^a +\d{4}-\d\d-\d\d$", ran("--list"), re.MULTILINE)
    assert re.search(r"^b +in own.json$", ran("--list"), re.MULTILINE)


@pytest.mark.parametrize(
    "text", ["{", "[]", '"text"', '{"other": {}}', '{"a": 1}', '{"a": {"date": "2026-01-02"}}']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(RecordsError, match=re.escape(str(path))):
        load(path, ["a"])
    assert path.read_text() == text


# -- tables


def test_columns_of_numbers_are_aligned_to_the_right() -> None:
    table = Table(["k", "share", "note"], [["1", "31.2 %", "none"], ["2", "", "2 left"]])
    assert (
        table.markdown() == "| k | share | note |\n|---|---:|---|\n| 1 | 31.2 % | none |\n| 2 |  | 2 left |"
    )
