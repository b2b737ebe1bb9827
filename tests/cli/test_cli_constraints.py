"""The command holds answers to a regular expression, a JSON schema or a grammar."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_commands import search

pytestmark = pytest.mark.usefixtures("cache")


def test_answers_match_what_they_are_held_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llguidance")
    common = ["hi", "-s", "best_of_n", "-o", "n=2", "--json"]
    assert search(folder, *common, "--regex", "[a-c]{3}!", "--presence-penalty", "1") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    texts = [candidate["text"] for candidate in result["search"]["candidates"]]
    assert all(re.fullmatch("[a-c]{3}!", text) for text in texts)
    (folder / "answer.json").write_text('{"enum": ["left", "right"]}')
    assert search(folder, *common, "--json-schema", str(folder / "answer.json")) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {c["text"] for c in result["search"]["candidates"]} <= {'"left"', '"right"'}
    (folder / "answer.gbnf").write_text('root ::= "no" | "yes"')
    assert search(folder, *common, "--grammar", str(folder / "answer.gbnf")) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert {c["text"] for c in result["search"]["candidates"]} <= {"no", "yes"}
    assert search(folder, *common, "--regex", "(") == 2
    assert "--regex: got what llguidance refuses" in capsys.readouterr().err
