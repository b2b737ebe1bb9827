"""LoRA adapters of peft: served over the general path, one at a time, and what is refused by name."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import torch
from primitives import PROMPT, close, make, plain_logprobs
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder, UnsupportedModelError

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("one_thread")


def adapted(family: str = "llama") -> Any:
    """A tiny model under two adapters that both change its numbers; "first" is active."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(tiny_model(family), config, adapter_name="first")
    model.add_adapter("second", config)
    return model.eval()


async def continued(decoder: TreeDecoder) -> tuple[list[int], torch.Tensor]:
    """Tokens of two forks that went on together, and the log-probabilities of the generated ones."""
    root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=9, seed=2))
    first, second = root.fork(2)
    await asyncio.gather(first.step(), second.step())
    return first.tokens, torch.tensor(first.logprobs)


def by_itself(model: Any, tokens: list[int]) -> torch.Tensor:
    rows = plain_logprobs(model, tokens)[len(PROMPT) - 1 : -1]
    return rows[torch.arange(len(rows)), torch.tensor(tokens[len(PROMPT) :])]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_adapter_is_served_over_the_general_path(family: str, wrapped: bool) -> None:
    model = adapted(family)
    decoder = make(model if wrapped else model.get_base_model())
    assert decoder.runtime.engine.packed is None
    tokens, logprobs = asyncio.run(continued(decoder))
    close(logprobs, by_itself(model, tokens))
    plain = by_itself(tiny_model(family), tokens)
    assert (logprobs - plain).abs().max() > 0.1  # the adapter does something


def test_another_adapter_is_another_model() -> None:
    """KV computed with the first is no longer used once the decoder is told."""
    model = adapted()
    decoder = make(model)

    async def search() -> None:
        tokens, before = await continued(decoder)
        model.set_adapter("second")
        decoder.weights_changed()
        again, after = await continued(decoder)
        close(after, by_itself(model, again))
        assert again != tokens or (after - before).abs().max() > 0.01

    asyncio.run(search())


def test_a_merged_adapter_runs_packed() -> None:
    model = adapted()
    merged = copy.deepcopy(model).merge_and_unload()
    decoder = TreeDecoder(merged, byte_tokenizer(), kv_bytes=1 << 22)
    assert decoder.runtime.engine.packed is not None
    tokens, logprobs = asyncio.run(continued(decoder))
    close(logprobs, by_itself(model, tokens))


def test_a_learned_prompt_is_refused_by_name() -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny_model(), config)
    with pytest.raises(
        UnsupportedModelError, match=r"'default', which learns a prompt \(PromptTuningConfig\)"
    ):
        make(model)


def test_an_adapter_for_one_request_is_refused_by_name() -> None:
    decoder = make(adapted())

    async def search() -> None:
        with pytest.raises(TypeError, match="adapter"):
            await decoder.root(PROMPT, adapter="second")  # type: ignore[call-arg]
        branch = await decoder.root(PROMPT)
        with pytest.raises(TypeError, match="adapter"):
            await branch.step(adapter="second")

    asyncio.run(search())
