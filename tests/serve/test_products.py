"""Numbers that are each within their limit are refused where what they multiply to is not."""

import pytest
from tts_decode.serve.config import Limits

PROMPT = "The quick brown"
LIMITS = Limits(answer_entries=400, search_products=100, idle_seconds=5.0)


@pytest.fixture
def small(serve):
    return serve(limits=LIMITS)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 8, "max_tokens": 10, "logprobs": 5}, "logprobs"),  # 8 x 10 x 6
        ({"n": 8, "echo": True, "max_tokens": 0, "logprobs": 5}, "logprobs"),  # 8 x 15 x 6
        ({"n": 30, "echo": True, "max_tokens": 1, "return_token_ids": True}, "return_token_ids"),
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


def test_the_counts_of_a_search_multiply(small):
    options = {"strategy": "sample_scrutinize", "n": 8, "num_verifications": 8, "num_comparisons": 8}
    answer = small.post("/v1/completions", {"prompt": PROMPT, "tts": options})
    assert answer.status_code == 400
    assert "512" in answer.json()["error"]["message"]
