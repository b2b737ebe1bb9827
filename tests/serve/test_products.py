"""Numbers that are each within their limit are refused where what they multiply to is not."""

import pytest
from tts_decode.serve.config import Limits

PROMPT = "The quick brown"
LIMITS = Limits(answer_entries=400, search_products=100, idle_seconds=5.0)


@pytest.fixture
def small(serve):
    return serve(limits=LIMITS)


def test_choices_multiply_with_their_tokens(serve, alone):
    served = serve(limits=Limits(request_tokens=100, idle_seconds=5.0))
    for more in ({"n": 11, "max_tokens": 10}, {"n": 2, "best_of": 6, "max_tokens": 17}, {"n": 101}):
        answer = served.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 1, **more})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    answer = served.post("/v1/completions", {"prompt": [PROMPT] * 11, "max_tokens": 10})
    assert answer.json()["error"]["param"] == "max_tokens"
    assert served.complete(PROMPT, n=10, max_tokens=10)["usage"]["completion_tokens"] == 100
    # 512 positions hold 64 tokens behind this prompt, whatever a request names.
    served = serve(alone, limits=Limits(request_tokens=100, idle_seconds=5.0))
    assert served.complete("x" * 448, max_tokens=5000)["usage"]["completion_tokens"] == 64


def test_tokens_of_the_ones_that_are_not_best_are_listed_first_too(small):
    body = {"prompt": PROMPT, "n": 1, "best_of": 8, "max_tokens": 10, "logprobs": 5}
    assert small.post("/v1/completions", body).json()["error"]["param"] == "logprobs"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 8, "max_tokens": 10, "logprobs": 5}, "logprobs"),  # 8 x 10 x 6
        ({"n": 8, "echo": True, "max_tokens": 0, "logprobs": 5}, "logprobs"),  # 8 x 15 x 6
        ({"n": 30, "max_tokens": 1, "return_token_ids": True}, "return_token_ids"),  # 30 x (15 + 1)
        ({"n": 5, "max_tokens": 15, "return_token_ids": True, "logprobs": 3}, "logprobs"),  # 5 x 90
        ({"prompt": [PROMPT] * 8, "max_tokens": 10, "logprobs": 5}, "logprobs"),
    ],
)
def test_an_answer_lists_no_more_than_it_may(small, more, param):
    answer = small.post("/v1/completions", {"prompt": PROMPT, **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert small.complete(PROMPT, n=8, max_tokens=8, logprobs=5, seed=1)["choices"]  # 8 x 8 x 6


def test_a_chat_lists_no_more_than_it_may(small):
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "n": 8, "max_tokens": 10, "logprobs": True, "top_logprobs": 5}
    answer = small.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"


def test_a_chat_that_names_no_length_is_cut_to_what_its_choices_may_come_to(serve):
    served = serve(limits=Limits(request_tokens=100, answer_entries=400, idle_seconds=5.0))
    messages = [{"role": "user", "content": "Hi"}]
    assert served.chat(messages, n=8)["usage"]["completion_tokens"] == 8 * 12
    answer = served.chat(messages, n=8, logprobs=True, top_logprobs=5)
    assert answer["usage"]["completion_tokens"] == 8 * 8  # x 6


def test_the_counts_of_a_search_multiply(small):
    options = {"strategy": "sample_scrutinize", "n": 8, "num_verifications": 8, "num_comparisons": 8}
    answer = small.post("/v1/completions", {"prompt": PROMPT, "tts": options})
    assert answer.status_code == 400
    assert "512" in answer.json()["error"]["message"]
