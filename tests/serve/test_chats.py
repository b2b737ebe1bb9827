"""/v1/chat/completions: templates, fields, log-probabilities, against the same decoder in process."""

import pytest
from primitives import plain_logprobs
from tts_decode import SamplingParams

ASKED = [{"role": "user", "content": "Hi there"}]
BODY = {"seed": 7, "max_tokens": 12}
PARAMS = SamplingParams(seed=7, max_tokens=12, max_step_tokens=12)


def answered(decoder, text, params=PARAMS):
    """Returns the continuation of a text, computed in process."""

    async def run():
        root = await decoder.root(list(text.encode()), params)
        try:
            return (await root.step()).text
        finally:
            root.release()

    return decoder.run(run())


def content(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("messages", "fields", "rendered"),
    [
        (ASKED, {}, "<user>Hi there\n<assistant>"),
        (ASKED, {"add_generation_prompt": False}, "<user>Hi there\n"),
        (
            [{"role": "system", "content": "Be brief."}, *ASKED],
            {},
            "<system>Be brief.\n<user>Hi there\n<assistant>",
        ),
        ([*ASKED, {"role": "assistant", "content": "Well \n"}], {}, None),
        (
            [*ASKED, {"role": "assistant", "content": "Well \n"}],
            {"continue_final_message": True},
            "<user>Hi there\n<assistant>Well \n",
        ),
        (
            [*ASKED, {"role": "assistant", "content": "Well"}],
            {"continue_final_message": True, "add_generation_prompt": False},
            "<user>Hi there\n<assistant>Well",
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}],
                }
            ],
            {},
            "<user>Hi there\n<assistant>",
        ),
    ],
)
def test_messages_become_the_text_of_the_template(served, alone, messages, fields, rendered):
    answer = served.chat(messages, **BODY, **fields)
    rendered = rendered or "<user>Hi there\n<assistant>Well \n\n<assistant>"
    assert content(answer) == answered(alone, rendered)
    assert answer["usage"]["prompt_tokens"] == len(rendered)


def test_an_answer_has_the_form_of_the_protocol(served):
    answer = served.chat(ASKED, n=2, **BODY)
    assert answer.keys() == {"id", "created", "model", "object", "choices", "usage"}
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    choice = answer["choices"][0]
    assert choice.keys() == {"index", "message", "logprobs", "finish_reason", "stop_reason"}
    assert choice["message"].keys() == {"role", "content", "refusal"}
    assert (choice["message"]["role"], choice["logprobs"]) == ("assistant", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_completion_tokens": 12},
        {"max_completion_tokens": 12, "max_tokens": 12},
        {"max_tokens": 12, "tools": [], "tool_choice": "none", "modalities": ["text"], "store": False},
        {"max_tokens": 12, "response_format": {"type": "text"}, "reasoning_effort": None},
    ],
)
def test_fields_that_change_nothing(served, alone, fields):
    answer = served.chat(ASKED, seed=7, **fields)
    assert content(answer) == answered(alone, "<user>Hi there\n<assistant>")


def test_an_answer_goes_on_to_the_models_last_position(served, alone):
    answer = served.chat(ASKED, seed=7)
    assert answer["usage"]["total_tokens"] == 512
    assert answer["choices"][0]["finish_reason"] == "length"


def test_log_probabilities_of_a_chat(served, model):
    answer = served.chat(ASKED, logprobs=True, top_logprobs=2, return_token_ids=True, **BODY)
    (choice,) = answer["choices"]
    prompt = list(b"<user>Hi there\n<assistant>")
    expected = plain_logprobs(model, prompt + choice["token_ids"])
    for i, entry in enumerate(choice["logprobs"]["content"]):
        row = expected[len(prompt) - 1 + i]
        assert entry["logprob"] == pytest.approx(row[choice["token_ids"][i]].item(), abs=2e-4)
        told = [top["logprob"] for top in entry["top_logprobs"]]
        assert told == pytest.approx(row.topk(2).values.tolist(), abs=2e-4)
        ids = [choice["token_ids"][i], *row.topk(2).indices.tolist()]
        for id, named in zip(ids, [entry, *entry["top_logprobs"]], strict=True):
            assert named["bytes"] == ([id] if id < 256 else None)  # the tokenizer's tokens are bytes
    whole = "".join(entry["token"] for entry in choice["logprobs"]["content"])
    assert whole == choice["message"]["content"]


def test_ids_of_the_prompt_are_told_once(served):
    prompt = list(b"<user>Hi there\n<assistant>")
    answer = served.chat(ASKED, n=2, return_token_ids=True, **BODY)
    assert answer["prompt_token_ids"] == prompt
    assert not any("prompt_token_ids" in choice for choice in answer["choices"])
    assert "prompt_token_ids" not in served.chat(ASKED, **BODY)


def test_without_top_logprobs_only_the_tokens_own_are_told(served):
    (choice,) = served.chat(ASKED, logprobs=True, **BODY)["choices"]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[]] * 12


def test_a_model_without_template_serves_no_chats(serve, alone):
    served = serve(alone)
    answer = served.post("/v1/chat/completions", {"messages": ASKED})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


def test_models_are_listed(served):
    listed = served.http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["tiny"]
    assert served.http.get("/v1/models/tiny").json()["max_model_len"] == 512
    assert served.http.get("/v1/models/other").status_code == 404


def test_health_and_metrics(served):
    served.complete("Once", max_tokens=3)
    assert served.http.get("/health").json() == {"status": "ok"}
    text = served.http.get("/metrics").text
    assert "tts_decode_prompt_tokens_total 4.0" in text
    assert "tts_decode_generated_tokens_total 3.0" in text
    assert 'tts_decode_requests_total{path="/v1/completions",status="200"} 1.0' in text
