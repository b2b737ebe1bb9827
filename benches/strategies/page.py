"""The tables of docs/strategies.md that `benches.all_strategies` fills."""

from __future__ import annotations

import re
from typing import Any

from benches.strategies.setups import NOT_RUN, Part

Record = dict[str, Any]

HEADS = ("measured with", "solved", "tokens", "KV MiB")
_KEPT = 4  # columns of a table that are not measured
_SETTINGS = re.compile(r"^Measured .*$", re.MULTILINE)


def cells(kept: Record) -> tuple[str, str, str]:
    """As the last `HEADS`: problems solved of all, tokens generated for a problem, KV of a search."""
    tokens, kv = f"{kept['generated_tokens']:,.0f}", f"{kept['mean_kv_bytes'] / 2**20:.1f}"
    return f"{kept['solved']}/{kept['problems']}", tokens, kv


def setup_note(setup: Record) -> str:
    """What a row was measured with, beside the settings of all rows."""
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


def fill(page: str, record: Record) -> str:
    """The page with the measured columns of its tables of strategies replaced, or added, and the line that
    says when they were measured and how."""
    rows = {
        f"[`{name}`]": (setup_note(kept["setup"]), *cells(kept))
        for name, kept in record["strategies"].items()
    }
    rows |= {f"[`{name}`]": (f"not run: {reason}", "", "", "") for name, reason in NOT_RUN.items()}

    def columns(line: str) -> str:
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if row[0] == "strategy":
            return _line([*row[:_KEPT], *HEADS])
        if name := re.match(r"\[`\w+`\]", row[0]):
            return _line([*row[:_KEPT], *rows.get(name[0], ("",) * len(HEADS))])
        return line

    lines = page.split("\n")
    for i, line in enumerate(lines):
        if line.startswith("|---") and lines[i - 1].startswith("| strategy |"):
            lines[i] = "|---" * (_KEPT + 1) + "|---:" * (len(HEADS) - 1) + "|"
    filled = "\n".join(columns(line) if line.startswith("| ") else line for line in lines)
    return _SETTINGS.sub(lambda _: settings(record), filled, count=1)


def settings(record: Record) -> str:
    """When the rows were measured, and what holds for all of them, in a line."""
    dates = sorted({kept["date"] for kept in record["strategies"].values()}) or ["never"]
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"Measured {when} ({versions}): {record['model']} in {record['dtype']}, {record['problems']} "
        f"problems, temperature {record['temperature']}, answers of up to {record['max_tokens']} tokens in "
        f"steps of up to {record['max_step_tokens']}."
    )


def _line(row: list[str]) -> str:
    return f"| {' | '.join(row)} |"
