"""its-hub's searches, unmodified: in process, and by its own client over the server.

Texts have to be those of transformers, and what a step computes of its prompt is counted by the decoder, or
told by the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from needed import needs
from serving import make_chatty
from tiny_models import EOS, VOCAB
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.decoding.branch import TreeBranch

needs("its_hub")

import aiohttp
from its_hub import LMOrchestrator, OpenAICompatibleLanguageModel, SelfConsistency, StepGeneration
from its_hub.api import AbstractProcessRewardModel, BadRequestError, ChatMessage, GenerationUsage
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering, ParticleGibbs
from tts_decode.integrations.its_hub import TreeLanguageModel

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
PROMPT = "What is 3 + 4? Explain it in steps."
CHAT = [ChatMessage("user", "Count from one to five.")]
PAGE = 16


class Letters(AbstractProcessRewardModel):
    """Rewards texts of many different characters."""

    def score(self, prompt: Any, steps: list[str]) -> list[float]:
        return [min(1.0, len(set(step)) / 60) for step in steps]

    async def ascore(self, prompt: Any, steps: list[str]) -> list[float]:
        return self.score(prompt, steps)


def algorithm(name: str, steps: StepGeneration) -> Any:
    return {
        "beam_search": lambda: BeamSearch(steps, Letters(), beam_width=2),
        "particle_filtering": lambda: ParticleFiltering(steps, Letters()),
        "particle_gibbs": lambda: ParticleGibbs(steps, Letters(), num_iterations=2),
    }[name]()


def greedy(model: Any, tokenizer: Any, text: str, tokens: int) -> str:
    """Returns transformers' continuation of a text."""
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def rendered(tokenizer: Any, *, content: str = "") -> str:
    chat = [{"role": "user", "content": CHAT[0].content}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) + content


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompt tokens that each `root` computes."""
    found: list[int] = []
    grow = TreeBranch.grow.__func__

    async def recorded(cls: Any, *arguments: Any, **options: Any) -> TreeBranch:
        branch = await grow(cls, *arguments, **options)
        found.append(branch.length - branch.cached_tokens)
        return branch

    monkeypatch.setattr(TreeBranch, "grow", classmethod(recorded))
    return found


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The `usage` of each answer that its-hub's client reads."""
    found: list[dict[str, Any]] = []
    read = aiohttp.ClientResponse.json

    async def recorded(self: Any, **options: Any) -> Any:
        answer = await read(self, **options)
        found.append(answer["usage"])
        return answer

    monkeypatch.setattr(aiohttp.ClientResponse, "json", recorded)
    return found


def remote(served: Any, **options: Any) -> OpenAICompatibleLanguageModel:
    return OpenAICompatibleLanguageModel(f"{served.url}/v1", "none", "tiny", **options)


STEPS: dict[str, Callable[[], StepGeneration]] = {
    "lines": lambda: StepGeneration(4, "\n", temperature=0.8),
    "kept stops": lambda: StepGeneration(4, ["\n", ". "], include_stop_str_in_output=True),
    "tokens": lambda: StepGeneration(4, tokens_per_step=12),
}


@pytest.mark.parametrize("name", ["beam_search", "particle_filtering", "particle_gibbs"])
@pytest.mark.parametrize("steps", STEPS)
def test_a_search_in_process_computes_only_what_is_new(
    name: str, steps: str, real: TreeDecoder, computed: list[int]
) -> None:
    lm = TreeLanguageModel(real, sampling=SamplingParams(max_tokens=24))
    search = algorithm(name, STEPS[steps]())
    result = search.infer(lm, PROMPT, budget=8, return_response_only=False)
    assert result.the_one["content"]
    first, *later = computed
    assert first > PAGE  # the prompt
    assert len(later) >= 20
    assert max(later) <= PAGE
    assert lm.prompt_tokens - lm.cached_tokens == sum(computed)
    assert real.stats().forward_tokens <= sum(computed) + lm.completion_tokens
    lm.clear()
    assert (real.stats().branches, real.stats().resident_bytes) == (0, 0)


@pytest.mark.parametrize("name", ["beam_search", "particle_filtering"])
@pytest.mark.parametrize("steps", STEPS)
def test_a_search_over_the_server_computes_only_what_is_new(
    name: str, steps: str, served: Any, told: list[dict[str, Any]]
) -> None:
    lm = remote(served, max_completion_tokens=None if steps == "tokens" else 24)
    result = algorithm(name, STEPS[steps]()).infer(lm, PROMPT, budget=8)
    assert result["content"]
    computed = [usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] for usage in told]
    assert sum(tokens > PAGE for tokens in computed) == 1  # the prompt, once
    assert len(computed) >= 20


def test_texts_of_other_tokens_than_the_tokenizer_makes(model: Any, computed: list[int]) -> None:
    """A random model over bytes: its texts are no words, and few of them are even text. Ids that are no bytes
    are not drawn: a text that comes back does not have them."""
    decoder = make_chatty(model)
    no_bytes = dict.fromkeys(range(EOS, VOCAB), -100.0)
    lm = TreeLanguageModel(decoder, sampling=SamplingParams(seed=3, logit_bias=no_bytes))
    search = ParticleFiltering(StepGeneration(6, tokens_per_step=20), Letters())
    search.infer(lm, PROMPT, budget=8)
    assert max(computed[1:]) <= PAGE
    lm.clear()


def test_answers_are_those_of_transformers(real: TreeDecoder, real_model: Any) -> None:
    lm = TreeLanguageModel(real, sampling=SamplingParams(temperature=0, max_tokens=24))
    text = greedy(*real_model, rendered(real_model[1]), 24)
    assert lm.generate(CHAT) == {"role": "assistant", "content": text}
    lines = text.partition("\n")
    assert lines[1]
    assert lm.generate(CHAT, "\n")["content"] == lines[0]
    kept = lm.generate(CHAT, "\n", include_stop_str_in_output=True)["content"]
    assert kept == lines[0] + "\n"
    going_on = [*CHAT, {"role": "assistant", "content": lines[0] + "\n"}]
    rest = greedy(*real_model, rendered(real_model[1], content=lines[0] + "\n"), 9)
    assert lm.generate(going_on, max_completion_tokens=9)["content"] == rest


def test_a_template_that_trims_leaves_a_text_that_goes_on_as_it_is(model: Any) -> None:
    decoder = make_chatty(model)
    decoder.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}|{% endfor %}"
    )
    lm = TreeLanguageModel(decoder, sampling=SamplingParams(temperature=0, max_tokens=4))
    chat = [{"role": "user", "content": "a "}, {"role": "assistant", "content": " b\n"}]
    usage = GenerationUsage()
    lm.generate(chat, usage_accumulator=usage)
    assert usage == GenerationUsage(len("<user>a|<assistant> b\n"), 4, 1)
    lm.clear()


def test_a_list_of_conversations_is_one_batch(real: TreeDecoder) -> None:
    lm = TreeLanguageModel(real, sampling=SamplingParams(max_tokens=16), system_prompt="Be brief.")
    before = real.stats().steps
    answers = lm.generate([CHAT] * 8, temperature=[0.0, *[1.0] * 7])
    assert len({answer["content"] for answer in answers}) > 4  # each draws by itself
    assert real.stats().steps - before <= 16 + 3  # the first prompt, then the others
    assert lm.generate([]) == []


def test_its_orchestrator_serves(real: TreeDecoder) -> None:
    lm = TreeLanguageModel(real, sampling=SamplingParams(max_tokens=16))
    found = SelfConsistency(orchestrator=LMOrchestrator()).infer(lm, PROMPT, 4, return_response_only=False)
    assert len(found.responses) == 4


def test_what_is_not_served_is_named(real: TreeDecoder, served: Any) -> None:
    lm = TreeLanguageModel(real)
    tools = [{"type": "function", "function": {"name": "f"}}]
    for name, value in (
        ("tools", tools),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
    ):
        with pytest.raises(ValueError, match=f"^{name}: got .* not served"):
            lm.generate(CHAT, **{name: value})
    with pytest.raises(TypeError, match=r"^top_n: unknown"):
        lm.generate(CHAT, top_n=1)
    with pytest.raises(ValueError, match=r"^messages\[0\]: got"):
        lm.generate([ChatMessage("user", [{"type": "image_url", "image_url": {"url": "x"}}])])
    with pytest.raises(ValueError, match=r"^messages\[1\]: got"):
        lm.generate([*CHAT, ChatMessage("assistant", "x", tool_calls=[{"id": "1"}])])
    with pytest.raises(ValueError, match=r"^temperature: got 2 numbers for 1"):
        lm.generate([CHAT], temperature=[1.0, 1.0])
    with pytest.raises(BadRequestError, match="tools: not served"):
        real.run(remote(served).agenerate(CHAT, tools=tools))
