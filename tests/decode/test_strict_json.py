"""What is JSON to one reader, and not or something else to another, is refused; checksums find changes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tts_decode.records.strict_json import dumps, finite, loads, seal, unseal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_reads_what_the_standard_library_writes(value: object) -> None:
    assert loads(json.dumps(value).encode()) == value
    assert loads(json.dumps(value, ensure_ascii=False).encode()) == value
    assert loads(b"\xef\xbb\xbf" + dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON"),
        (b"[1,]", "is not JSON"),
        (b"\x00\x01", "is not JSON"),
        (b'"\xff"', r"is not UTF-8 text \(byte 2\)"),
        (b'"\xed\xa0\x80"', "is not UTF-8"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"[NaN]", "has NaN, which is no number of JSON"),
        (b"[-Infinity]", "has -Infinity"),
        (b"[1e400]", "out of range, 1e400"),
        (b"-1" + b"0" * 400, "out of range, of 401 digits"),
        (b"1" * 5000, "out of range, of 5000 digits"),
        (b"9" * 309, "out of range"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    ],
)
def test_says_what_is_wrong(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loads(text)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert loads(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


def test_numbers_that_json_lacks() -> None:
    odd = {"a": [math.nan, math.inf, -math.inf, 0.5], "b": (1, "nan")}
    written = loads(dumps(odd).encode())
    assert written == {"a": ["nan", "inf", "-inf", 0.5], "b": [1, "nan"]}
    assert [str(float(number)) for number in written["a"]] == ["nan", "inf", "-inf", "0.5"]
    assert finite(odd) == {"a": [None, None, None, 0.5], "b": [1, "nan"]}
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        dumps({"a": "\ud800"})


RECORDS = st.dictionaries(st.text().filter(lambda name: name != "crc32"), VALUES, max_size=4)


@given(RECORDS, st.integers(0, (1 << 32) - 1))
def test_a_sealed_record_opens_in_any_layout(record: dict[str, object], before: int) -> None:
    text, checksum = seal(record, before)
    for data in (text, json.dumps(json.loads(text), indent=3, ensure_ascii=False)):
        assert unseal(loads(data.encode()), before) == (record, checksum)


@given(RECORDS, st.data())
def test_a_changed_byte_is_found_or_changes_nothing(record: dict[str, object], data: st.DataObject) -> None:
    text = seal(record)[0].encode()
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + bytes([data.draw(st.integers(0, 255))]) + text[place + 1 :]
    try:
        value = loads(changed)
        assert not isinstance(value, dict) or unseal(value)[0] == record
    except ValueError:
        pass
