"""The rows of strategies in docs/strategies.md, from the measurements of `benches.all_strategies`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from benches.strategies.setups import NOT_RUN, Part
from benches.tables import line as line_of

Record = dict[str, Any]

HEADS = ("measured with", "solved", "tokens", "KV MiB")
_OURS = ("strategy", "paper", "needs", "departures")  # columns that are written by hand
_KEPT = len(_OURS)


def cells(kept: Record) -> tuple[str, str, str]:
    """Returns the last `HEADS`: problems solved, tokens generated per problem, KV of a search."""
    tokens, kv = f"{kept['generated_tokens']:,.0f}", f"{kept['mean_kv_bytes'] / 2**20:.1f}"
    return f"{kept['solved']}/{kept['problems']}", tokens, kv


def setup_note(setup: Record) -> str:
    """Returns a row's own settings, in addition to those of all rows."""
    told = [] if setup["problems"] == "default" else [f"own problems ({setup['problems']})"]
    told += [setup["scorer"]] if setup["scorer"] else []
    sizes = []
    for name, value in (setup["options"] | setup["sampling"]).items():
        values = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) and item in Part.__members__ for item in values):
            told += [Part[item].value for item in values if Part[item].value]
        else:
            sizes.append(f"`{name}={value}`")
    return ", ".join([*dict.fromkeys(told), *sizes])


def fill_rows(page: str, record: Record) -> str:
    """Returns the page with the measured columns of its tables of strategies replaced or added.

    Other tables may have a column `strategy` too; they are left as they are.
    """
    rows = {
        f"[`{name}`]": (setup_note(kept["setup"]), *cells(kept))
        for name, kept in record["strategies"].items()
    }
    rows |= {f"[`{name}`]": (f"not run: {reason}", "", "", "") for name, reason in NOT_RUN.items()}

    def columns(line: str) -> str:
        row = _row(line)
        if _is_head(row):
            return line_of([*row[:_KEPT], *HEADS])
        if name := re.match(r"\[`\w+`\]", row[0]):
            return line_of([*row[:_KEPT], *rows.get(name[0], ("",) * len(HEADS))])
        return line

    lines = page.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("|---") and _is_head(_row(lines[i - 1])):
            lines[i] = "|---" * (_KEPT + 1) + "|---:" * (len(HEADS) - 1) + "|"
    return "\n".join(columns(line) if line.startswith("| ") else line for line in lines)


def _row(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _is_head(row: list[str]) -> bool:
    return tuple(row[:_KEPT]) == _OURS


def settings(record: Record) -> str:
    """Returns the date of the measurements and the common settings, in one sentence."""
    when = period(kept["date"] for kept in record["strategies"].values())
    return (
        f"Measured {when} ({named(record['versions'])}): {record['model']} in {record['dtype']}, "
        f"{record['problems']} problems, temperature {record['temperature']}, answers of up to "
        f"{record['max_tokens']} tokens in steps of up to {record['max_step_tokens']}."
    )


def period(dates: Iterable[str]) -> str:
    """Returns the first and the last of ISO dates."""
    ordered = sorted(set(dates)) or ["never"]
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
