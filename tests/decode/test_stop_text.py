"""Texts end at a stop string."""

import pytest
from tts_decode.decoding.stop_text import cut_at_stop


@pytest.mark.parametrize(
    ("text", "last", "stops", "cut", "included", "stop"),
    [
        ("one two", 1, ["x"], "one two", "one two", None),
        ("one.two", 1, ["two"], "one.", "one.two", "two"),
        ("one.two rest", 8, ["two"], "one.", "one.two", "two"),  # the last token holds more
        ("a.b.", 1, ["."], "a.b", "a.b.", "."),  # an earlier one is none: it did not end the step
        ("xabc", 3, ["abc", "b"], "xa", "xab", "b"),  # the one that ends first
        ("xab", 1, ["b", "ab"], "x", "xab", "ab"),  # of two with one end the longest
        ("", 0, ["a"], "", "", None),
    ],
)
def test_the_text_ends_at_its_stop_string(text, last, stops, cut, included, stop):
    assert cut_at_stop(text, last, stops, include=False) == (cut, stop)
    assert cut_at_stop(text, last, stops, include=True) == (included, stop)
