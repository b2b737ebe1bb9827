"""`tts-decode doctor`: says what works here, what is missing, and the command that installs it."""

from __future__ import annotations

from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from . import packages, surroundings
from .display import Screen, print_json
from .filled import filled
from .findings import Finding, Section, examine
from .options import Json

SECTIONS = (
    Section("Versions", packages.versions, base=True),
    Section("Kernels", surroundings.kernels, base=True),
    Section("Smoke test", surroundings.smoke, base=True),
    Section("Threads", surroundings.threads),
    Section("Memory", surroundings.memory),
    Section("GPU", surroundings.gpu),
    Section("Model", surroundings.model_and_cache),
    Section("Extras", packages.extras),
    Section("Integrations", packages.integrations),
)
_MARKS = {
    "ok": ("ok", "green"),
    "absent": ("-", "dim"),
    "warning": ("!", "yellow"),
    "broken": ("X", "bold red"),
}


@filled
def doctor(json_output: Json = False) -> None:
    """Check this installation: what works, what is missing, and the command for it.

    Marks: ok; - an optional part that is missing; ! something to check; X broken. The exit code is 1 only if
    something is broken that the base installation needs: its packages, the compiled kernels and their
    results.

    Examples:

      tts-decode doctor

      tts-decode doctor --json > report.json
    """
    report = {section.title: examine(section) for section in SECTIONS}
    found = [finding for findings in report.values() for finding in findings]
    broken = [finding for finding in found if finding.state == "broken"]
    if json_output:
        print_json(_as_json(report, broken))
    else:
        _print(report, verdict(found))
    if broken:
        raise typer.Exit(1)


def verdict(found: list[Finding]) -> str:
    """Returns all findings summed up in one line."""
    broken = [finding.name for finding in found if finding.state == "broken"]
    warned = [finding.name for finding in found if finding.state == "warning"]
    look = f" Look at: {', '.join(warned)}." if warned else ""
    if broken:
        return f"Broken: {', '.join(broken)}.{look}"
    return f"The base installation works.{look}"


def _as_json(report: dict[str, list[Finding]], broken: list[Finding]) -> dict[str, Any]:
    sections = {
        title.lower().replace(" ", "_"): [finding.to_dict() for finding in findings]
        for title, findings in report.items()
    }
    found = [finding for findings in report.values() for finding in findings]
    return {"works": not broken, "verdict": verdict(found), **sections}


def _print(report: dict[str, list[Finding]], told: str) -> None:
    screen = Screen()
    width = max(len(finding.name) for findings in report.values() for finding in findings)
    for title, findings in report.items():
        screen.print(Text(title, "bold"))
        table = Table.grid(padding=(0, 1))
        table.add_column(width=2, justify="right")
        table.add_column(min_width=width)
        table.add_column(overflow="fold")
        for finding in findings:
            table.add_row(Text(*_MARKS[finding.state]), finding.name, finding.found)
            if finding.remedy is not None:
                table.add_row("", "", Text(f"-> {finding.remedy}", "cyan"))
        screen.print(table)
    screen.print(f"\n{told}")
