"""Requests that the KV pages do not hold: those that never fit, and those that fit when others have ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import Served, make_chatty, until
from transformers import PreTrainedModel

PAGE_BYTES = 24576  # of the tiny model: 16 tokens
PAGES = 8
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def small(serve: Callable[..., Served], model: PreTrainedModel) -> Served:
    """A server whose pages hold 128 tokens."""
    return serve(make_chatty(model, kv_bytes=PAGES * PAGE_BYTES), least_kv_tokens=1)


def refused(answer: Any, status: int, param: str | None, *texts: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), answer.text
    for text in texts:
        assert text in error["message"]


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        # A prompt of one token; each choice holds ceil((1 + 100) / 16) = 7 pages of 16 tokens.
        ({"prompt": "x", "n": 4, "max_tokens": 100}, 4 * 7 * 16),
        ({"prompt": "x", "max_tokens": 300}, 19 * 16),
        # Two pages that are shared, and one for each choice.
        ({"prompt": "x" * 32, "n": 7, "max_tokens": 5}, (2 + 7) * 16),
    ],
)
def test_choices_that_never_fit_are_the_clients_matter(small: Served, body: Any, asked: int) -> None:
    answer = small.post("/v1/completions", body)
    refused(answer, 400, "max_tokens", f"got prompts and choices of {asked} tokens", "at most 128")


def test_a_stream_says_so_in_its_last_event(small: Served) -> None:
    body = {"prompt": "x", "n": 4, "max_tokens": 100, "stream": True}
    *_, error, done, _ = small.post("/v1/completions", body).text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a" * 129, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [1] * 129, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 129}]}),
    ],
)
def test_a_prompt_that_never_fits_is_refused_with_the_numbers(small: Served, path: str, body: Any) -> None:
    param = "messages" if "messages" in body else "prompt"
    refused(small.post(path, body), 400, param, "expected at most 128, which the KV pages hold")


def test_prompts_that_fit_one_after_the_other_are_served(small: Served) -> None:
    answer = small.complete(["x" * 80, "y" * 80], max_tokens=20)
    assert answer["usage"]["completion_tokens"] == 40


def test_a_prompt_that_fills_all_pages_is_served(small: Served) -> None:
    assert small.complete("a" * 128, max_tokens=1)["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("n", [1, 2])
def test_a_chat_that_names_no_length_gets_what_the_pages_hold(small: Served, n: int) -> None:
    answer = small.chat([{"role": "user", "content": "a" * 20}], n=n)
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * n
    prompt = len("<user>" + "a" * 20 + "\n<assistant>")  # 38 bytes: two full pages, 6 tokens of the third
    assert answer["usage"]["prompt_tokens"] == prompt
    assert answer["usage"]["completion_tokens"] == {1: 6 * 16 - 6, 2: 2 * (3 * 16 - 6)}[n]


def test_what_fits_when_others_have_ended_is_told_to_come_again(
    serve: Callable[..., Served], model: PreTrainedModel
) -> None:
    served = serve(make_chatty(model, kv_bytes=PAGES * PAGE_BYTES), least_kv_tokens=1)
    body = {"prompt": "x", "max_tokens": 110}  # 7 of the 8 pages
    others = [served.server.desk.engine.submit(served.decoder.root([7] * 48)).result(10)]  # 3 pages
    answer = served.post("/v1/completions", body)
    refused(answer, 503, None)
    assert "retry-after" in answer.headers
    served.on_engine(others.pop().release)
    until(served.idle)
    assert served.complete(**body)["usage"]["completion_tokens"] == 110


@pytest.fixture
def crowded(small: Served) -> Iterator[Served]:
    """Others are admitted, and hold 3 of the 8 pages."""
    ticket = small.server.admission.admit(1, "others")
    branch = small.server.desk.engine.submit(small.decoder.root([7] * 48)).result(10)
    yield small
    small.on_engine(branch.release)
    ticket.release()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "x", "n": 4, "max_tokens": 100}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "n": 9, "max_tokens": 2}, "max_tokens"),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 4, "max_tokens": 100}, "max_tokens"),
        ("/v1/chat/completions", {"messages": HI, "max_completion_tokens": 200}, "max_completion_tokens"),
    ],
)
def test_what_never_fits_is_the_clients_matter_beside_others_too(
    crowded: Served, path: str, body: Any, param: str
) -> None:
    refused(crowded.post(path, body), 400, param, "tokens in KV pages, expected at most 128")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "x" * 127, "max_tokens": 2},  # whose last token needs no page
        {"prompt": "x" * 128, "max_tokens": 1},
        {"prompt": ["x" * 80, "y" * 80], "max_tokens": 20},  # one at a time
    ],
)
def test_what_fits_alone_is_never_refused_for_good(crowded: Served, body: Any) -> None:
    refused(crowded.post("/v1/completions", body), 503, None)
