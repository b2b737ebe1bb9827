"""Bodies that are large to check: one error is described, and the fields and messages read are limited."""

import pytest
from pydantic import ValidationError
from tts_decode.records.strict_json import loads
from tts_decode.serve.errors import APIError
from tts_decode.serve.protocol import ChatBody, CompletionBody, read_body


def test_one_error_of_many_messages_is_described():
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"messages": [1] * 4000})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        (ChatBody, {"messages": [{"role": "user", "content": "Hi"}] * 5000}, "messages: .* at most 4096"),
        (CompletionBody, {f"field{i}": 0 for i in range(300)}, "the body: got 300 fields, expected 200"),
        (ChatBody, {"messages": [{f"field{i}": 0 for i in range(300)}]}, r"messages\[0\]: got 300 fields"),
    ],
)
def test_what_is_too_much_is_refused_by_its_name(kind, body, message):
    with pytest.raises(APIError, match=message) as caught:
        read_body(kind, body)
    assert caught.value.status == 400


def test_a_repeated_key_is_found_among_many():
    """A comparison of all pairs of keys would not end."""
    keys = ",".join(f'"k{i}":0' for i in range(200_000))
    with pytest.raises(ValueError, match="has the key 'k199999' twice"):
        loads(f'{{{keys},"k199999":1}}'.encode())
