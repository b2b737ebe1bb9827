"""Where a text ends at a stop string."""

import pytest
from tts_decode.serve.stops import cut_at_stop, finish_reason


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


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("eos", "stop"),
        ("complete", "stop"),
        ("stop_token", "stop"),
        ("dead_end", "length"),
        ("budget", "length"),
        (None, "length"),
    ],
)
def test_reasons_are_told_as_at_openai(reason, told):
    assert finish_reason(reason) == told
