"""The default model: its answers are those of transformers, and its searches leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.rewards import self_evaluation
from tts_decode.search import STRATEGIES, lm_beam_search
from tts_decode.tasks import default_tasks

pytestmark = pytest.mark.model
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def decoder(real_model: Loaded) -> Iterator[TreeDecoder]:
    decoder = TreeDecoder(*real_model, kv_bytes=64 << 20)
    yield decoder
    stats = decoder.stats()
    assert (stats.branches, stats.resident_bytes) == (0, 0)


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(chat(text), add_generation_prompt=True, return_dict=True)["input_ids"]
    return torch.tensor([ids])


def test_greedy_text_is_that_of_generate(real_model: Loaded, decoder: TreeDecoder) -> None:
    model, tokenizer = real_model
    prompts = [task.prompt for task in default_tasks(3)] + ["Name three colours."]

    async def greedy(prompt: str) -> list[int]:
        root = await decoder.root(chat(prompt), SamplingParams(temperature=0, max_tokens=24))
        while not root.finished:
            await root.step()
        tokens = root.tokens[root.prompt_length :]
        root.release()
        return tokens

    for prompt, tokens in zip(prompts, decoder.run_all([greedy(prompt) for prompt in prompts]), strict=True):
        ids = encoded(tokenizer, prompt)
        expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert tokens == expected.tolist()


def test_likeliest_text_is_that_of_generate(real_model: Loaded, decoder: TreeDecoder) -> None:
    model, tokenizer = real_model
    prompt = "What is 3 + 4?"

    async def search() -> tuple[int, ...]:
        root = await decoder.root(chat(prompt), SamplingParams(max_tokens=12))
        result = await lm_beam_search(root, n=4)
        root.release()
        return result.best.tokens

    ids = encoded(tokenizer, prompt)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, num_beams=4)[0, ids.shape[1] :]
    assert list(decoder.run(search())) == expected.tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_run_and_release(decoder: TreeDecoder, name: str) -> None:
    strategy = STRATEGIES[name]
    options = {"scorer": self_evaluation()} if strategy.needs_scorer else {}

    async def search() -> str:
        sampling = SamplingParams(temperature=0.8, stop=("\n",), max_tokens=16, max_step_tokens=8)
        root = await decoder.root(chat(default_tasks(1)[0].prompt), sampling)
        result = await strategy.run(root, n=4, **options)
        root.release()
        return result.answer

    assert decoder.run(search()).strip()
