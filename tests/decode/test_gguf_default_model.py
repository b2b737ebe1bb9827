"""The default model's file gives the tokens that llama.cpp makes of it, recorded for texts of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
from tts_decode.default_model import default_model_file
from tts_decode.errors import ModelLoadError
from tts_decode.model.gguf.header import Header
from tts_decode.model.gguf.tokenizer import read_tokenizer
from tts_decode.model.gguf.vocabulary import Vocabulary

pytestmark = pytest.mark.model

# llama_tokenize(text, add_special=true, parse_special=true); behind them, where they differ, with both false.
RECORDED: list[tuple[str, list[int], list[int] | None]] = [
    (" Hello World!", [38699, 2260, 17], None),
    ("\t\n", [197, 198], None),
    ("333333", [35] * 6, None),
    ("a\u00a0b\u3000c\u2003d", [81, 15442, 82, 12109, 218, 83, 321, 221, 84], None),
    (
        "Hello, y'all! How are you \U0001f601 ?\u6211\u60f3\u5728apple\u5de5\u4f5c1314151\u5929\uff5e",
        [
            *(19556, 28, 329, 23, 449, 17, 1073, 359, 346, 40303, 219, 9148, 19805, 235),
            *(177, 221, 128, 32632, 21949, 36149, 115, 40994, 33, 35, 33, 36, 33, 37),
            *(33, 18614, 119, 186, 138, 248),
        ],
        None,
    ),
    (
        "def f(x):\n    return x ** 2  # na\u00efve\n\n\n\tif x:\n\t\tpass\r\n",
        [
            *(1604, 275, 24, 104, 727, 472, 1003, 1792, 1903, 216, 34, 216, 907, 15486),
            *(46494, 16506, 197, 342, 1792, 42, 3354, 197, 5467, 2738),
        ],
        None,
    ),
    (
        "e\u0301 \u0915\u094d\u0937\u093f \ufb01 \u216b \u00bd \u0663",
        [85, 151, 219, 42034, 16525, 4300, 132, 27011, 40367, 216, 173, 223, 121, 216, 16738, 216, 164, 113],
        None,
    ),
    (
        "<|im_start|>user\nhi<|im_end|>\n",
        [1, 4093, 198, 6004, 2, 198],
        [44, 108, 306, 79, 3738, 108, 46, 4093, 198, 6004, 44, 108, 306, 79, 486, 108, 46, 198],
    ),
]


@pytest.fixture(scope="module")
def header() -> Header:
    try:
        return Header.read(default_model_file())
    except ModelLoadError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def tokenizer(header: Header) -> Any:
    return read_tokenizer(header)


@pytest.mark.parametrize(("text", "ids", "plain"), RECORDED)
def test_recorded_tokens(tokenizer: Any, text: str, ids: list[int], plain: list[int] | None) -> None:
    assert tokenizer(text).input_ids == ids
    left = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert left == (plain or ids)
    assert tokenizer.decode(ids) == text


def test_recorded_ends(header: Header) -> None:
    """<|endoftext|>, <|im_end|> and <reponame>."""
    assert set(Vocabulary.read(header).ends) == {0, 2, 4}
