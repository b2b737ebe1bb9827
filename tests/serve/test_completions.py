"""/v1/completions: what each field does, against the same decoder in process."""

import asyncio
import json
from dataclasses import replace

import pytest
from primitives import plain_logprobs
from tiny_models import EOS
from tts_decode import SamplingParams
from tts_decode.serve.config import Limits

PROMPT = "The quick brown"
PARAMS = SamplingParams(seed=7, max_tokens=12, max_step_tokens=12)
BODY = {"seed": 7, "max_tokens": 12}


def drawn(decoder, prompt=PROMPT, forks=0, **params):
    """Steps of a root and of its forks, in process."""

    async def run():
        root = await decoder.root(prompt, replace(PARAMS, **params))
        branches = [root, *root.fork(forks)] if forks else [root]
        try:
            return await asyncio.gather(*(branch.step() for branch in branches))
        finally:
            for branch in branches:
                branch.release()

    return decoder.run(run())


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize(
    ("fields", "params"),
    [
        ({}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"top_p": 0.2}, {"top_p": 0.2}),
        ({"top_k": 2}, {"top_k": 2}),
        ({"top_k": -1}, {}),
        ({"min_p": 0.4}, {"min_p": 0.4}),
        ({"repetition_penalty": 1.9}, {"repetition_penalty": 1.9}),
        ({"repeat_penalty": 1.9}, {"repetition_penalty": 1.9}),
        ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
        ({"presence_penalty": -1.5}, {"presence_penalty": -1.5}),
        ({"logit_bias": {"65": 100}}, {"logit_bias": {65: 100.0}}),
        ({"seed": 8}, {"seed": 8}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"n": None, "stop": None, "user": "me", "metadata": {"a": "b"}, "suffix": ""}, {}),
    ],
)
def test_sampling_fields_mean_what_they_mean_in_process(served, alone, fields, params):
    answer = served.complete(PROMPT, **(BODY | fields))
    (step,) = drawn(alone, **params)
    assert texts(answer) == [step.text]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == len(step.tokens)


def test_an_answer_has_the_form_of_the_protocol(served):
    answer = served.complete(PROMPT, max_tokens=3, model="tiny")
    assert answer.keys() == {"id", "created", "model", "object", "choices", "usage"}
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    assert answer["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 3,
        "total_tokens": 18,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_fields_in_extra_body_count_as_the_bodys(served):
    plain = served.complete(PROMPT, **BODY, top_k=3, n=2, stop=[" "])
    extra = {"seed": 7, "top_k": 3, "stop": [" "], "user": None}
    assert texts(served.complete(PROMPT, max_tokens=12, n=2, top_k=3, extra_body=extra)) == texts(plain)


def test_16_tokens_are_the_default(served):
    assert served.complete(PROMPT)["usage"]["completion_tokens"] == 16


def test_the_default_is_cut_to_the_limits(serve):
    limits = Limits(max_tokens=12, request_tokens=40, answer_entries=130, idle_seconds=5.0)
    served = serve(limits=limits)

    def drawn_of(**body):
        return served.complete(**{"prompt": PROMPT, **body})["usage"]["completion_tokens"]

    assert drawn_of() == 12
    assert drawn_of(n=4) == 4 * 10  # of 40
    assert drawn_of(prompt=[PROMPT, PROMPT], best_of=3) == 2 * 3 * 6
    assert drawn_of(n=4, logprobs=4) == 4 * 6  # 130 entries // (4 choices x 5)
    assert drawn_of(n=2, logprobs=1, echo=True) == 2 * 12
    assert (
        drawn_of(n=3, logprobs=0, echo=True, return_token_ids=True) == 3 * 6
    )  # (130 - 3 x 15 x 2) // (3 x 2)
    for tokens in (13, 16):
        answer = served.post("/v1/completions", {"prompt": PROMPT, "max_tokens": tokens})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == f"max_tokens: got {tokens}, expected at most 12"


def test_choices_are_the_prompts_branch_and_its_forks(served, alone):
    answer = served.complete(PROMPT, n=3, **BODY)
    assert texts(answer) == [step.text for step in drawn(alone, forks=2)]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["prompt_tokens"] == 15  # computed and counted once


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_is_the_same_for_every_n(served, stream):
    def told(n):
        if not stream:
            return texts(served.complete(PROMPT, n=n, **BODY))
        found = [""] * n
        for chunk in served.chunks("/v1/completions", {"prompt": PROMPT, "n": n} | BODY):
            for choice in chunk["choices"]:
                found[choice["index"]] += choice["text"]
        return found

    most = told(5)
    assert len(set(most)) == 5
    assert [told(n) for n in (1, 2, 3)] == [most[:1], most[:2], most[:3]]


def test_best_of_gives_the_likeliest_by_token(served, alone):
    answer = served.complete(PROMPT, n=2, best_of=5, **BODY)
    steps = drawn(alone, forks=4)
    ranked = sorted(steps, key=lambda step: -sum(step.logprobs) / len(step.logprobs))
    assert texts(answer) == [step.text for step in ranked[:2]]
    assert answer["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("ids", [False, True])
def test_several_prompts_have_seeds_in_a_row(served, alone, ids):
    prompts = ["Once", "Twice upon", "Once"]
    answer = served.complete([list(p.encode()) for p in prompts] if ids else prompts, n=2, **BODY)
    expected = [
        step.text
        for number, prompt in enumerate(prompts)
        for step in drawn(alone, prompt, forks=1, seed=7 + number)
    ]
    assert texts(answer) == expected
    assert answer["usage"]["prompt_tokens"] == 4 + 10 + 4


def test_a_list_of_ids_is_one_prompt(served, alone):
    assert texts(served.complete(list(PROMPT.encode()), **BODY)) == [drawn(alone)[0].text]


# -- ends


def ascii_stop(decoder, length=1):
    """A sampled text and characters of it that are ASCII, from the middle."""
    (step,) = drawn(decoder, max_tokens=60, max_step_tokens=60)
    for at in range(5, len(step.text) - length):
        stop = step.text[at : at + length]
        if stop.isascii() and step.text.find(stop) == at:
            return step.text, stop
    raise AssertionError("no such text")


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(served, alone, stream, length):
    text, stop = ascii_stop(alone, length)
    body = {"prompt": PROMPT, "seed": 7, "max_tokens": 60, "stop": stop}
    for fields, kept in (
        ({}, ""),
        ({"include_stop_str_in_output": True}, stop),
        ({"no_stop_trim": True}, stop),
    ):
        if stream:
            chunks = served.chunks("/v1/completions", body | fields)
            choices = [chunk["choices"][0] for chunk in chunks]
        else:
            choices = served.complete(**(body | fields))["choices"]
        assert "".join(choice["text"] for choice in choices) == text.partition(stop)[0] + kept
        assert (choices[-1]["finish_reason"], choices[-1]["stop_reason"]) == ("stop", stop)


def test_of_several_stop_strings_the_one_that_ends_first_is_told(served, alone):
    text, stop = ascii_stop(alone)
    (choice,) = served.complete(PROMPT, seed=7, max_tokens=60, stop=["never there", stop])["choices"]
    assert (choice["text"], choice["stop_reason"]) == (text.partition(stop)[0], stop)


def test_stop_tokens_end_the_text_and_are_told(served, alone):
    (step,) = drawn(alone)
    token = step.tokens[4]
    count = step.tokens.index(token) + 1
    (choice,) = served.complete(PROMPT, stop_token_ids=[token], return_token_ids=True, **BODY)["choices"]
    assert choice["token_ids"] == list(step.tokens[:count])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)


def test_the_end_of_the_sequence_is_a_stop_without_reason(served, alone):
    (step,) = drawn(alone)
    served.decoder.eos_token_ids = frozenset({step.tokens[3]})
    answer = served.complete(PROMPT, **BODY)
    (choice,) = answer["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)
    assert answer["usage"]["completion_tokens"] == step.tokens.index(step.tokens[3]) + 1


# -- what is told of tokens


def test_log_probabilities_are_those_of_a_plain_forward(served, model):
    prompt = list(PROMPT.encode())
    (choice,) = served.complete(PROMPT, logprobs=3, return_token_ids=True, temperature=0.7, **BODY)["choices"]
    expected = plain_logprobs(model, prompt + choice["token_ids"])
    told = choice["logprobs"]
    for i, token in enumerate(choice["token_ids"]):
        row = expected[len(prompt) - 1 + i]
        assert told["token_logprobs"][i] == pytest.approx(row[token].item(), abs=2e-4)
        best = row.topk(3).values.tolist()
        listed = sorted(told["top_logprobs"][i].values(), reverse=True)
        assert listed[0] == pytest.approx(best[0], abs=2e-4)
        assert told["token_logprobs"][i] in listed
        assert len(listed) <= 4
    assert "".join(told["tokens"]).startswith(choice["text"])
    assert told["text_offset"] == [len("".join(told["tokens"][:i])) for i in range(12)]


def test_ids_are_told_of_the_prompt_and_of_what_is_drawn(served, alone):
    prompts = [list(b"Once"), list(b"Twice upon")]
    for more in ({}, {"echo": True}, {"logprobs": 1, "echo": True}):
        choices = served.complete(prompts, n=2, return_token_ids=True, **BODY, **more)["choices"]
        assert [choice["prompt_token_ids"] for choice in choices] == [prompts[i] for i in (0, 0, 1, 1)]
        assert choices[0]["token_ids"] == list(drawn(alone, prompts[0])[0].tokens)
    (choice,) = served.complete(PROMPT, return_token_ids=True, echo=True, max_tokens=0)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (list(PROMPT.encode()), [])


def test_echo_begins_with_the_prompt_and_tells_its_tokens(served, model):
    (plain,) = served.complete(PROMPT, echo=True, **BODY)["choices"]
    (choice,) = served.complete(PROMPT, echo=True, logprobs=1, **BODY)["choices"]
    assert choice["text"] == plain["text"]
    assert plain["text"].startswith(PROMPT)
    prompt = list(PROMPT.encode())
    expected = plain_logprobs(model, prompt)
    told = choice["logprobs"]
    assert told["tokens"][:15] == list(PROMPT)
    assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
    for i in range(1, 15):
        row = expected[i - 1]
        assert told["token_logprobs"][i] == pytest.approx(row[prompt[i]].item(), abs=2e-4)
        assert max(told["top_logprobs"][i].values()) == pytest.approx(row.max().item(), abs=2e-4)
    assert len(told["tokens"]) == 15 + 12


def test_echo_alone_scores_a_prompt(served):
    answer = served.complete(PROMPT, echo=True, logprobs=0, max_tokens=0)
    (choice,) = answer["choices"]
    assert choice["text"] == PROMPT
    assert len(choice["logprobs"]["token_logprobs"]) == 15
    assert answer["usage"]["completion_tokens"] == 0


# -- constraints


@pytest.mark.parametrize("stream", [False, True])
def test_a_json_schema_holds(served, stream):
    pytest.importorskip("llguidance")
    served.decoder.eos_token_ids = frozenset({EOS})
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {"prompt": PROMPT, "seed": 1, "max_tokens": 60, "response_format": form}
    if stream:
        text = "".join(c["choices"][0]["text"] for c in served.chunks("/v1/completions", body))
    else:
        (text,) = texts(served.complete(**body))
    assert json.loads(text)["a"] in (1, 2)


def test_a_length_beyond_the_models_positions_is_cut(served):
    """The model has 512 positions."""
    answer = served.complete("x" * 500, max_tokens=100)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 12
