"""Answers are valid JSON of finite numbers, and hold what choices share only once."""

import json
import math

import pytest
from tts_decode.serve.answers import ChatForm, CompletionForm, event
from tts_decode.serve.job import Piece, Token, Usage

USAGE = Usage(3, 1, 2)


class Counted(tuple):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


def test_an_echo_is_written_once_for_all_choices():
    top = Counted([(5, "e", -0.5)])
    echoed = [Token(1, "On", None), Token(2, "ce", -1.0, top)]
    pieces = [Piece(i, "Once!", [Token(3, "!", -2.0)], "stop", echoed=echoed) for i in range(4)]
    answer = json.loads(CompletionForm("m", logprobs=True, token_ids=True).whole(pieces, USAGE))
    assert top.times == 1
    assert len(answer["choices"]) == 4
    for choice in answer["choices"]:
        assert choice["token_ids"] == [3]
        assert choice["logprobs"] == {
            "tokens": ["On", "ce", "!"],
            "token_logprobs": [None, -1.0, -2.0],
            "top_logprobs": [None, {"e": -0.5, "ce": -1.0}, {"!": -2.0}],
            "text_offset": [0, 2, 4],
        }


@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
@pytest.mark.parametrize("form", [CompletionForm, ChatForm])
def test_a_log_probability_that_json_lacks_is_the_lowest(form, logprob):
    token = Token(1, "a", logprob, [(2, "b", logprob)])
    options = {"token_bytes": [b"", b"a", b"b"]} if form is ChatForm else {}
    body = form("m", logprobs=True, **options).whole([Piece(0, "a", [token], "stop")], USAGE)
    assert body.count(b"-9999.0") >= 2
    json.loads(body, parse_constant=pytest.fail)


def test_what_json_lacks_is_never_written():
    with pytest.raises(ValueError, match="JSON"):
        event({"a": math.nan})
    with pytest.raises(ValueError, match="JSON"):
        CompletionForm("m").whole([Piece(0, "a", more={"tts": {"score": math.inf}})], USAGE)


def test_bytes_are_those_of_the_token_itself():
    """The text of a token also has what those before it began, and an alternative may have its id for one."""
    token = Token(1, "\N{LATIN SMALL LETTER E WITH ACUTE}", -1.0, [(2, "<2>", -1.5), (3, "<eos>", -2.0)])
    form = ChatForm("m", [b"", b"\xa9", b"\xc3", b""], logprobs=True)
    (choice,) = json.loads(form.whole([Piece(0, token.text, [token], "stop")], USAGE))["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert entry["bytes"] == [0xA9]
    assert [other["bytes"] for other in entry["top_logprobs"]] == [[0xC3], None]


TEXTS = [
    "",
    "plain",
    'quotes " and \\ ',
    "lines\r\n\t\0\x1b",
    "\N{SNOWMAN}\N{PILE OF POO}",
    "\u2028</script>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_out_as_it_went_in(text):
    piece = Piece(0, text, (), "stop", stop_reason=text)
    whole = json.loads(CompletionForm(text).whole([piece], USAGE))
    assert (whole["choices"][0]["text"], whole["model"]) == (text, text)
    assert whole["choices"][0]["stop_reason"] == text
    data = ChatForm(text).chunks([piece])
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    assert json.loads(data[6:])["choices"][0]["delta"] == {"role": "assistant", "content": text}


def test_a_long_list_is_written_like_a_short_one():
    tokens = [Token(i, chr(97 + i % 26), -0.5 * i) for i in range(1000)]
    text = "".join(token.text for token in tokens)
    answer = json.loads(CompletionForm("m", logprobs=True).whole([Piece(0, text, tokens, "stop")], USAGE))
    listed = answer["choices"][0]["logprobs"]
    assert "".join(listed["tokens"]) == text
    assert listed["token_logprobs"] == [-0.5 * i for i in range(1000)]
    assert listed["text_offset"] == list(range(1000))


def test_pieces_of_one_turn_are_one_chunk_for_each_choice():
    form = CompletionForm("m", token_ids=True)
    pieces = [
        Piece(0, "a", [Token(1, "a", -1.0)]),
        Piece(1, "x"),
        Piece(0, "b", [Token(2, "b", -1.0)], "stop"),
    ]
    chunks = [json.loads(part[6:]) for part in form.chunks(pieces).split(b"\n\n")[:-1]]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ab", "x"]
    assert chunks[0]["choices"][0]["token_ids"] == [1, 2]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == ["stop", None]
