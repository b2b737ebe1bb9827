"""Prose below tables, on terminals of different widths."""

from __future__ import annotations

import io
import itertools

import pytest
from tts_decode.cli.display import Screen
from tts_decode.cli.sweep_tables import Report, print_report
from tts_decode.sweeps import Search, budgets_at, estimates


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_note_breaks_where_a_line_is_full(columns: int) -> None:
    """At 80 columns at most, and nowhere else: each line is as long as the words allow."""
    out = io.StringIO()
    text = " ".join(f"word{number}" for number in range(60))
    Screen(out, width=columns).note(text)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert " ".join(lines) == text
    limit = min(columns, 80)
    for line, following in itertools.pairwise(lines):
        assert len(line) <= limit < len(f"{line} {following.split()[0]}")


@pytest.mark.parametrize("columns", [72, 80, 120])
def test_no_line_below_a_sweeps_table_is_a_word_alone(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    searches = [Search("s-width2-seed0", "s", 2, 0, False, 0, "sum", solved=True)]
    print_report("1 problem", Report(searches, estimates(searches), budgets_at(searches, 1.0), {}))
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    begin = next(number for number, line in enumerate(printed) if line.startswith("solved: by"))
    for line in printed[begin : begin + 3]:
        assert 40 < len(line) <= columns
