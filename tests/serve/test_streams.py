"""Streams give what whole answers give, in pieces."""

import pytest

PROMPT = "The quick brown"
CHAT = [{"role": "user", "content": "Hi"}]

BODIES = [
    {},
    {"n": 3},
    {"temperature": 0},
    {"return_token_ids": True},
    {"stop": ["a", "b", "c", "d", "e"]},
    {"stop": ["a", "b"], "include_stop_str_in_output": True},
    {"max_tokens": 1},
]


def put_together(chunks):
    """The choices of a completion's stream, as a whole answer has them."""
    choices = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            whole = choices.setdefault(part["index"], part | {"text": "", "logprobs": None, "token_ids": []})
            whole["text"] += part.get("text", "")
            whole["token_ids"] += part.get("token_ids", [])
            whole |= {name: part[name] for name in ("finish_reason", "stop_reason")}
            whole["prompt_token_ids"] = part.get("prompt_token_ids") or whole.get("prompt_token_ids")
            if part["logprobs"]:
                told = whole["logprobs"] or {name: [] for name in part["logprobs"]}
                whole["logprobs"] = {name: told[name] + part["logprobs"][name] for name in told}
    return [choices[index] for index in sorted(choices)]


@pytest.mark.parametrize("body", [*BODIES, {"logprobs": 2}, {"echo": True}, {"echo": True, "logprobs": 1}])
def test_a_completion_in_pieces(served, body):
    asked = {"prompt": PROMPT, "seed": 3, "max_tokens": 40} | body
    whole = served.complete(**asked)["choices"]
    parts = put_together(served.chunks("/v1/completions", asked))
    for one, other in zip(parts, whole, strict=True):
        assert one == {"token_ids": [], "prompt_token_ids": None} | other


@pytest.mark.parametrize("body", [*BODIES, {"logprobs": True, "top_logprobs": 2}])
def test_a_chat_in_pieces(served, body):
    asked = {"messages": CHAT, "seed": 3, "max_tokens": 40} | body
    whole = served.chat(**asked)["choices"]
    chunks = served.chunks("/v1/chat/completions", asked)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert not any("role" in part["delta"] for part in parts[1:])
        text = "".join(part["delta"].get("content", "") for part in parts)
        assert text == choice["message"]["content"]
        ends = [(part["finish_reason"], part["stop_reason"]) for part in parts]
        assert ends[-1] == (choice["finish_reason"], choice["stop_reason"])
        assert set(ends[:-1]) <= {(None, None)}
        told = [entry for part in parts for entry in (part["logprobs"] or {"content": []})["content"]]
        assert told == (choice["logprobs"] or {"content": []})["content"]


@pytest.mark.parametrize("n", [1, 2])
def test_the_first_chunk_of_each_choice_has_the_ids_of_the_prompt(served, n):
    """In completions within the choice, in chats beside the choices; as vLLM has it."""
    asked = {"prompt": PROMPT, "seed": 3, "max_tokens": 9, "n": n, "return_token_ids": True}
    chunks = served.chunks("/v1/completions", asked)
    for index in range(n):
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == index]
        assert parts[0]["prompt_token_ids"] == list(PROMPT.encode())
        assert all(part["prompt_token_ids"] is None for part in parts[1:])
    asked = {"messages": CHAT, "seed": 3, "max_tokens": 9, "n": n, "return_token_ids": True}
    chunks = served.chunks("/v1/chat/completions", asked)
    for index in range(n):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["prompt_token_ids"] == list(b"<user>Hi\n<assistant>")
        assert not any("prompt_token_ids" in chunk for chunk in own[1:])


def test_usage_comes_last_where_it_is_asked_for(served):
    asked = {"prompt": PROMPT, "seed": 3, "max_tokens": 9, "n": 2}
    plain = served.chunks("/v1/completions", asked)
    assert not any("usage" in chunk for chunk in plain)
    *_, last = served.chunks("/v1/completions", asked | {"stream_options": {"include_usage": True}})
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 18
    assert last["usage"]["prompt_tokens"] == 15


def test_tokens_come_as_they_are_drawn(served):
    chunks = served.chunks("/v1/completions", {"prompt": PROMPT, "seed": 3, "max_tokens": 40})
    assert len(chunks) > 10
