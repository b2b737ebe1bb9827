"""The content of the page, read without a browser."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import HOSTILE, Elements, search
from tts_decode.search import SearchResult
from tts_decode.view import Problem, Shown, make_page


def test_the_json_of_the_page_is_the_result(sheep: SearchResult) -> None:
    page = make_page([Shown("ets", sheep)], title="sheep")
    assert json.loads(Elements(page.html).scripts["search-0"]) == sheep.to_dict()
    assert (page.searches, page.left_out) == (1, 0)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_a_model_add_nothing_to_the_page(text: str) -> None:
    hostile = Problem(0, text, text, text, False, text)
    page = make_page([Shown(text, search(text, text), hostile, {text: text})], title=text).html
    plain = make_page([Shown("a", search("a", "a"), Problem(0, "a", "a", "a", False, "a"))], title="a").html
    ours, theirs = Elements(plain), Elements(page)
    ours.tags.remove(policy(ours))
    theirs.tags.remove(policy(theirs))
    assert theirs.tags == ours.tags
    assert json.loads(theirs.scripts["search-0"])["tree"][1]["text"] == text
    listed = json.loads(theirs.scripts["index"])
    assert [listed["title"], listed["searches"][0]["prompt"], *listed["settings"][text]] == [text] * 3


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    page = make_page([Shown("s", search(text))], title="t").html
    found = Elements(page)
    assert json.loads(found.scripts["search-0"])["tree"][1]["text"] == text
    assert not set(found.scripts["search-0"]) & set("<>&\u2028\u2029")


def policy(found: Elements) -> tuple[str, dict[str, str | None]]:
    (meta,) = (item for item in found.tags if "http-equiv" in item[1])
    return meta


def test_nothing_is_loaded_from_anywhere(sheep: SearchResult) -> None:
    found = Elements(make_page([Shown("ets", sheep)], title="sheep").html)
    content = policy(found)[1]["content"]
    assert content is not None
    assert content.startswith("default-src 'none'; script-src 'sha256-")
    assert not any(word in content for word in ("unsafe", "http", "*"))
    for tag, attributes in found.tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "data:,") == "data:,", tag
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag


def test_a_page_is_no_larger_than_asked_and_says_what_is_left_out(sheep: SearchResult) -> None:
    searches = [Shown("ets", sheep, Problem(index)) for index in range(5)]
    size = len(json.dumps(sheep.to_dict(), separators=(",", ":")))
    page = make_page(searches, title="sheep", most_bytes=3 * size)
    blocks = {name: text for name, text in Elements(page.html).scripts.items() if name != "index"}
    assert sum(map(len, blocks.values())) <= 3 * size
    listed = json.loads(Elements(page.html).scripts["index"])["searches"]
    assert [item["block"] for item in listed] == [*range(len(blocks)), *[None] * (5 - len(blocks))]
    assert (page.searches, page.left_out) == (len(blocks), 5 - len(blocks))
    assert len(blocks) in (2, 3)  # "<" and others take five bytes more there


def test_one_search_is_shown_whatever_its_size(sheep: SearchResult) -> None:
    page = make_page([Shown("ets", sheep)], title="sheep", most_bytes=1)
    assert (page.searches, page.left_out) == (1, 0)


def test_a_search_that_failed_is_listed(sheep: SearchResult) -> None:
    failed = Shown("ets", None, Problem(1, "b", "Why?", error="ValueError: no"))
    page = make_page([Shown("ets", sheep), failed], title="sheep")
    listed: list[dict[str, Any]] = json.loads(Elements(page.html).scripts["index"])["searches"]
    assert (listed[1]["block"], listed[1]["error"], listed[1]["prompt"]) == (None, "ValueError: no", "Why?")
    assert page.left_out == 0


def test_texts_in_the_list_of_searches_are_short(sheep: SearchResult) -> None:
    """A run of 500 problems with long prompts would be a large list."""
    long = "x" * 100_000
    page = make_page([Shown("ets", sheep, Problem(0, long, long, long, False, long))], title="sheep")
    scripts = Elements(page.html).scripts
    assert len(scripts["index"]) < 6_000
    assert json.loads(scripts["search-0"]) == sheep.to_dict()
