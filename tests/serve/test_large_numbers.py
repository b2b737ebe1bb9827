"""A number of any size in a request, or in a branch's parameters, ends that request alone."""

import asyncio

import pytest
from tts_decode import SamplingParams
from tts_decode.decoding import drawing
from tts_decode.records.strict_json import loads
from tts_decode.serve.config import Limits
from tts_decode.serve.errors import APIError
from tts_decode.serve.job import Facts, chat_job, completion_job
from tts_decode.serve.prompts import Prompt
from tts_decode.serve.protocol import ChatBody, CompletionBody

PROMPT = "The quick brown"


@pytest.mark.parametrize("top_k", [2**53, 10**20])
def test_any_top_k_above_the_vocabulary_keeps_all_tokens(served, top_k):
    body = {"seed": 3, "max_tokens": 5}
    expected = served.complete(PROMPT, **body)["choices"][0]["text"]
    assert served.complete(PROMPT, **body, top_k=top_k)["choices"][0]["text"] == expected


def test_a_row_that_the_sampler_refuses_fails_alone(alone, monkeypatch):
    """Its logits are finite: only its parameters are at fault."""
    sample = drawing.sample

    def refusing(logits, draws):
        if any(draw.params.top_k == 7 for draw in draws):
            raise ValueError("top_k: refused")
        return sample(logits, draws)

    monkeypatch.setattr(drawing, "sample", refusing)

    async def run():
        good = await alone.root(PROMPT, SamplingParams(max_step_tokens=4))
        bad = await alone.root(PROMPT, SamplingParams(max_step_tokens=4, top_k=7))
        try:
            return await asyncio.gather(good.step(), bad.step(), return_exceptions=True)
        finally:
            good.release()
            bad.release()

    step, error = alone.run(run())
    assert len(step.tokens) == 4
    assert isinstance(error, ValueError)
    assert "refused" in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", float("inf")), ("repetition_penalty", -1.0), ("frequency_penalty", 3.0), ("top_p", 2.0)],
)
def test_what_only_the_sampler_refuses_names_its_field(field, value):
    """The body was not validated: whatever its checks may miss is still the client's fault."""
    body = CompletionBody.model_construct(prompt=["x"], **{field: value})
    with pytest.raises(APIError, match=f"^{field}: ") as caught:
        completion_job(body, [Prompt("x", [1])], Limits(), Facts(260, 1 << 20, 16))
    assert (caught.value.status, caught.value.param) == (400, field)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (CompletionBody, "repeat_penalty", -1.0),
        (ChatBody, "max_completion_tokens", -1),
        (ChatBody, "max_tokens", -1),
    ],
)
def test_a_field_of_two_names_is_told_by_the_one_that_came(kind, field, value):
    body = kind.model_construct(prompt=["x"], **{field: value})
    job = completion_job if kind is CompletionBody else chat_job
    prompt = Prompt("x", [1])
    with pytest.raises(APIError, match=f"^{field}: ") as caught:
        job(body, [prompt] if kind is CompletionBody else prompt, Limits(), Facts(260, 1 << 20, 16))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"1" * 400, "of 400 digits"),
        (b"-" + b"1" * 400, "of 400 digits"),
        (b"1" * 50 + b"e999", f"out of range, {'1' * 40}\\.\\.\\."),
    ],
)
def test_json_numbers_out_of_range_are_cut_visibly(text, told):
    with pytest.raises(ValueError, match=told):
        loads(text)
