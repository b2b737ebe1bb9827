"""Text of steps and stop strings, with tokens that are single bytes."""

from __future__ import annotations

import pytest
from tiny_models import byte_tokenizer
from tts_decode.text import StopFinder, continuation


def bytes_of(text: str) -> list[int]:
    return list(text.encode())


def stop_index(stop: list[str], text: str, context: str = "") -> int | None:
    finder = StopFinder(byte_tokenizer(), stop, bytes_of(context))
    for index, token in enumerate(bytes_of(text)):
        if finder.push(token):
            return index
    return None


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (["\n\n"], "one\ntwo\n\nthree", 8),
        (["\n\n"], "\n\n", 1),
        (["\n\n"], "one\ntwo\n", None),
        (["abab", "c"], "aababab", 4),
        (["\N{SNOWMAN}!"], "a\N{SNOWMAN}\N{SNOWMAN}!", 7),  # three bytes each
        (["\N{LATIN SMALL LETTER E WITH ACUTE}"], "caf\N{LATIN SMALL LETTER E WITH ACUTE}s", 4),
        (["x" * 40], "y" * 30 + "x" * 41, 69),  # longer than the token window
        (["."], "no stop at all", None),
    ],
)
def test_the_step_ends_with_the_completing_token(stop: list[str], text: str, expected: int | None) -> None:
    assert stop_index(stop, text) == expected


def test_text_before_the_step_does_not_count() -> None:
    assert stop_index(["\n\n"], "\nb", context="a\n") is None
    assert stop_index(["e\N{SNOWMAN}"], "\N{SNOWMAN}e\N{SNOWMAN}", context="e") == 6


def test_invalid_bytes_do_not_hide_a_stop() -> None:
    finder = StopFinder(byte_tokenizer(), ["END"], [])
    found = [finder.push(token) for token in [0xFF, 0xE2, 0x98, *b"END"]]
    assert found == [False] * 5 + [True]


@pytest.mark.parametrize("split", range(1, 9))
def test_pieces_of_text_join_up(split: int) -> None:
    tokenizer = byte_tokenizer()
    tokens = bytes_of("a\N{SNOWMAN}b\N{LATIN SMALL LETTER E WITH ACUTE}c")
    text = continuation(tokenizer, tokens, split)
    assert tokenizer.decode(tokens).endswith(text)
    assert len(text.encode()) >= len(tokens) - split  # a character cut in two belongs to the later piece


def test_special_tokens_are_left_out_of_text() -> None:
    tokenizer = byte_tokenizer()
    assert continuation(tokenizer, [*b"ab", *b"cd", 256], 2) == "cd"
