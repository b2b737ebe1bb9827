"""Clients as people have them, against the server: the package openai, and OpenAICompletions of this one."""

import asyncio

import openai
import pytest
from tts_decode import OpenAICompletions, SamplingParams, TextDecoder, TreeDecoder
from tts_decode.core.params import mix
from tts_decode.rewards import mean_probability
from tts_decode.search import beam_search

PROMPT = "The quick brown fox"
MESSAGES = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def in_process(decoder, prompt, seed, max_tokens, **params):
    async def run():
        sampling = SamplingParams(seed=seed, max_tokens=max_tokens, max_step_tokens=max_tokens, **params)
        root = await decoder.root(prompt, sampling)
        try:
            return await root.step()
        finally:
            root.release()

    return decoder.run(run())


def test_openai_completions(client, alone):
    step = in_process(alone, PROMPT, 4, 20)
    asked = {"model": "tiny", "prompt": PROMPT, "seed": 4, "max_tokens": 20}
    answer = client.completions.create(**asked, logprobs=1)
    assert answer.choices[0].text == step.text
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx(step.logprobs)
    assert answer.usage.completion_tokens == 20
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == step.text
    assert last.usage.completion_tokens == 20


def test_openai_chats(client, alone):
    step = in_process(alone, list(b"<user>Hi there\n<assistant>"), 4, 20)
    asked = {"model": "tiny", "messages": MESSAGES, "seed": 4, "max_completion_tokens": 20}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == step.text
    assert [entry.logprob for entry in answer.choices[0].logprobs.content] == pytest.approx(step.logprobs)
    again = client.chat.completions.create(**asked)
    assert again.usage.prompt_tokens_details.cached_tokens == 25
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == step.text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_openai_searches_by_extra_body(client):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30}
    tts = {"strategy": "best_of_n", "n": 3}
    answer = client.chat.completions.create(**asked, extra_body={"tts": tts})
    assert answer.choices[0].message.content
    assert answer.tts["candidates"] == 3
    chunks = list(client.chat.completions.create(**asked, stream=True, extra_body={"tts": tts}))
    assert chunks[-1].tts["candidates"] == 3


def test_openai_reads_our_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[{"type": "function"}])
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="x")
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_openai_asynchronously(served, alone):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20}
            whole = await asyncio.gather(*(client.completions.create(seed=i, **asked) for i in range(4)))
            texts = []
            for i in range(4):
                stream = await client.completions.create(seed=i, stream=True, **asked)
                texts.append("".join([chunk.choices[0].text async for chunk in stream]))
            return [answer.choices[0].text for answer in whole], texts

    whole, streamed = asyncio.run(run())
    assert whole == streamed == [in_process(alone, PROMPT, i, 20).text for i in range(4)]


# -- our own


def remote(served, **options):
    engine = OpenAICompletions(f"{served.url}/v1", "tiny")
    return TextDecoder(engine, score=engine.score, **options)


@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_our_client_gets_the_texts_of_the_tree(serve, real_model, temperature):
    """Steps, each a request of its own that sends the text so far, with the seeds that the client makes."""
    served = serve(TreeDecoder(*real_model, kv_bytes=1 << 27, check=False))
    alone = TreeDecoder(*real_model, kv_bytes=1 << 27, check=False)
    params = SamplingParams(temperature, seed=2, max_tokens=30, max_step_tokens=10, stop=".")
    decoder = remote(served, sampling=params)

    async def run():
        root = await decoder.root(PROMPT)
        while not root.finished:
            await root.step()
        return root

    root = decoder.run(run())
    assert len(root.steps) >= 3
    context, length = PROMPT, 1
    for step in root.steps:
        seed, left = mix(2, length) >> 33, 30 - (length - 1)
        expected = in_process(alone, context, seed, min(10, left), temperature=temperature, stop=".")
        assert step.text == expected.text
        assert step.tokens == expected.tokens
        assert step.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
        context, length = context + step.text, length + len(step.tokens)


def test_our_client_scores_texts_as_the_tree_does(served, alone):
    async def here():
        root = await alone.root(PROMPT)
        try:
            return (await root.logprobs_of(" jumps")).tolist()
        finally:
            root.release()

    decoder = remote(served)

    async def there():
        return (await (await decoder.root(PROMPT)).logprobs_of(" jumps")).tolist()

    assert decoder.run(there()) == pytest.approx(alone.run(here()), abs=2e-4)


def test_a_search_of_ours_runs_over_the_server(served):
    decoder = remote(served, sampling=SamplingParams(seed=1, max_tokens=30, max_step_tokens=6))

    async def run():
        return await beam_search(await decoder.root(PROMPT), n=4, beam_width=2, scorer=mean_probability())

    result = decoder.run(run())
    assert result.stopped is None
    assert len(result.candidates) == 4
