"""Decoders of one model on threads of their own: each gives what it gives alone."""

from __future__ import annotations

import threading

import pytest
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ("hello " * 20, "quick fox" * 9, "z" * 90)


def generated(decoder: TreeDecoder, prompt: str) -> tuple[list[int], list[float]]:
    async def generate() -> tuple[list[int], list[float]]:
        branch = await decoder.root(prompt)
        for _ in range(25):
            await branch.step(max_tokens=4)
        return branch.tokens, branch.logprobs

    return decoder.run(generate())


@pytest.mark.parametrize("pack_weights", [True, False])
def test_decoders_made_and_run_on_threads_of_one_model(pack_weights: bool) -> None:
    model = tiny_model()
    started = threading.Barrier(len(PROMPTS))
    found: dict[str, list[object]] = {prompt: [] for prompt in PROMPTS}

    def decoder() -> TreeDecoder:
        sampling = SamplingParams(max_tokens=200)
        return TreeDecoder(
            model, byte_tokenizer(), kv_bytes=1 << 24, pack_weights=pack_weights, sampling=sampling
        )

    def work(prompt: str) -> None:
        started.wait()
        for _ in range(4):
            try:
                found[prompt].append(generated(decoder(), prompt))
            except Exception as error:
                found[prompt].append(error)

    alone = {prompt: generated(decoder(), prompt) for prompt in PROMPTS}
    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in PROMPTS:
        assert found[prompt] == [alone[prompt]] * 4
