"""Why a text ended, as a client is told."""

import pytest
from tts_decode.serve.stops import finish_reason


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
