"""The server's page names each field that a body may have, and the endpoint that takes it."""

import re
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
from tts_decode.serve.protocol import ChatBody, CompletionBody

PAGE = Path(__file__).parents[2] / "docs/integrations/server.md"
ROW = re.compile(r"^\| (`.+?) \| (completions|chats|both) \| .+ \|$", re.MULTILINE)
ENDPOINTS = {"completions": {"completions"}, "chats": {"chats"}, "both": {"completions", "chats"}}


def test_the_table_of_fields_is_that_of_the_bodies():
    told = {
        name.partition(".")[0]: ENDPOINTS[where]
        for names, where in ROW.findall(PAGE.read_text(encoding="utf-8"))
        for name in re.findall(r"`([^`]+)`", names)
    }
    told.pop("extra_body")  # is taken apart before a body is read
    served: dict[str, set[str]] = {}
    for endpoint, body in (("completions", CompletionBody), ("chats", ChatBody)):
        for name in body.model_fields:
            served.setdefault(name, set()).add(endpoint)
    assert told == served
