"""The adapters of its-hub and llm-reasoners refuse bad arguments; refused calls change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from needed import needs
from primitives import make
from serving import make_chatty
from tts_decode import PromptTooLongError, SamplingParams

needs("its_hub")
needs("reasoners")

from its_hub.api import ChatMessage
from tts_decode.integrations import its_hub, llm_reasoners

CHAT: list[Any] = [{"role": "user", "content": "Count."}]
LIST = r"expected a list of messages; pass \[{"

ITS_HUB: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a text": (lambda lm: lm.generate("x"), TypeError, f"messages: got 'x', {LIST}"),
    "an empty text": (lambda lm: lm.generate(""), TypeError, f"messages: got '', {LIST}"),
    "a number": (lambda lm: lm.generate(3), TypeError, f"messages: got 3, {LIST}"),
    "nothing": (lambda lm: lm.generate(None), TypeError, f"messages: got None, {LIST}"),
    "a message": (lambda lm: lm.generate(CHAT[0]), TypeError, f"messages: got .*, {LIST}"),
    "an iterator": (lambda lm: lm.generate(iter(CHAT)), TypeError, f"messages: got .*, {LIST}"),
    "texts": (lambda lm: lm.generate(["x"]), TypeError, r"messages\[0\]: got 'x', expected its-hub's Chat"),
    "numbers": (
        lambda lm: lm.generate([*CHAT, 3]),
        TypeError,
        r"messages\[1\]: got 3, expected its-hub's Chat",
    ),
    "mixed": (lambda lm: lm.generate([CHAT, "x"]), TypeError, f"messages: got 'x', {LIST}"),
    "no message": (lambda lm: lm.generate([[]]), ValueError, "messages: got none, expected one or more"),
    "single": (
        lambda lm: lm.decoder.run(lm.agenerate_single("x")),
        TypeError,
        f"messages: got 'x', {LIST}",
    ),
    "role": (lambda lm: lm.generate([{"role": 3, "content": "x"}]), ValueError, r"messages\[0\]: got .*role"),
    "content": (lambda lm: lm.generate([ChatMessage("user", 3)]), ValueError, r"messages\[0\]: got .*a text"),
    "parts": (
        lambda lm: lm.generate([{"role": "user", "content": ["x"]}]),
        ValueError,
        r"messages\[0\]: got .*a text",
    ),
    "a part": (
        lambda lm: lm.generate([{"role": "user", "content": [{"type": "text"}]}]),
        ValueError,
        r"messages\[0\]: got .*a text",
    ),
    "a role": (
        lambda lm: lm.generate([{"role": "x", "content": "Count."}]),
        ValueError,
        r"messages\[0\]: got the role 'x', expected one of system, developer, user, assistant",
    ),
    "too long": (
        lambda lm: lm.generate([{"role": "user", "content": "x" * 600}]),
        PromptTooLongError,
        "messages: has 6[0-9]+ tokens, but the model allows 512",
    ),
    "surrogates": (
        lambda lm: lm.generate([{"role": "user", "content": "\ud800"}]),
        ValueError,
        "messages: got surrogates not allowed",
    ),
    "stop": (lambda lm: lm.generate(CHAT, 3), TypeError, "stop: got int, expected"),
    "temperature": (lambda lm: lm.generate(CHAT, temperature="xy"), TypeError, "temperature: got 'xy', exp"),
    "max_tokens": (
        lambda lm: lm.generate(CHAT, max_tokens=5),
        TypeError,
        "max_tokens: unknown argument, expected one of .*max_completion_tokens",
    ),
    "a float": (
        lambda lm: lm.generate(CHAT, max_completion_tokens=5.0),
        TypeError,
        r"max_completion_tokens: got 5\.0, expected an int",
    ),
    "none of them": (
        lambda lm: lm.generate(CHAT, max_completion_tokens=0),
        ValueError,
        "max_completion_tokens: got 0, expected >= 1",
    ),
    "the stop": (
        lambda lm: lm.generate(CHAT, "a", include_stop_str_in_output="x"),
        TypeError,
        "include_stop_str_in_output: got 'x', expected True or False",
    ),
    "usage": (
        lambda lm: lm.generate(CHAT, usage_accumulator=3),
        TypeError,
        "usage_accumulator: got 3, expected a GenerationUsage",
    ),
    "tools": (
        lambda lm: lm.generate(CHAT, tools=torch.zeros(2)),
        ValueError,
        "tools: got a Tensor, .*not serv",
    ),
    "decoder": (lambda lm: type(lm)(3), TypeError, "decoder: got int, expected a TreeDecoder"),
    "sampling": (
        lambda lm: type(lm)(lm.decoder, sampling={}),
        TypeError,
        "sampling: got dict, expected a Samp",
    ),
    "system": (
        lambda lm: type(lm)(lm.decoder, system_prompt=3),
        TypeError,
        "system_prompt: got int, expected a str",
    ),
    "retain": (lambda lm: type(lm)(lm.decoder, retain="x"), TypeError, "retain: got 'x', expected an int"),
    "below 0": (lambda lm: type(lm)(lm.decoder, retain=-1), ValueError, "retain: got -1, expected >= 0"),
}


@pytest.mark.parametrize("name", ITS_HUB)
def test_its_hub(name: str, model: Any) -> None:
    call, error, words = ITS_HUB[name]
    decoder = make_chatty(model)
    sampling = SamplingParams(max_tokens=4, seed=2)
    expected = its_hub.TreeLanguageModel(decoder, sampling=sampling, retain=0).generate(CHAT)
    lm = its_hub.TreeLanguageModel(decoder, sampling=sampling, retain=0)
    with pytest.raises(error, match=f"^{words}"):
        call(lm)
    assert (decoder.stats().branches, decoder.stats().resident_bytes) == (0, 0)
    assert lm.generate(CHAT) == expected  # calls draw by their number


def test_its_hub_and_chat_templates(model: Any) -> None:
    """None, one that refuses, and one that omits the message to continue."""
    with pytest.raises(ValueError, match=r"^decoder: got a tokenizer without a chat template"):
        its_hub.TreeLanguageModel(make(model))
    decoder = make_chatty(model)
    lm = its_hub.TreeLanguageModel(decoder)
    decoder.tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match=r"^messages: got messages that the chat template .*no such role"):
        lm.generate(CHAT)
    decoder.tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"^messages\[1\]: got one of the assistant, which .* leaves out"):
        lm.generate([*CHAT, {"role": "assistant", "content": "One"}])


TEXTS = "expected a list of texts"
REASONERS: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a text": (lambda lm: lm.generate("abc"), TypeError, rf"inputs: got 'abc', {TEXTS}; pass \['abc'\]"),
    "a number": (lambda lm: lm.generate(3), TypeError, f"inputs: got 3, {TEXTS}"),
    "numbers": (lambda lm: lm.generate(["a", 3]), TypeError, r"inputs\[1\]: got int, expected a str"),
    "ids": (lambda lm: lm.generate([[1, 2]]), TypeError, r"inputs\[0\]: got list, expected a str"),
    "max_length": (lambda lm: lm.generate(["a"], "x"), TypeError, "max_length: got 'x', expected an int"),
    "new": (
        lambda lm: lm.generate(["a"], None, 2.0),
        TypeError,
        r"max_new_tokens: got 2\.0, expected an int",
    ),
    "none new": (lambda lm: lm.generate(["a"], None, 0), ValueError, "max_new_tokens: got 0, expected >= 1"),
    "do_sample": (
        lambda lm: lm.generate(["a"], do_sample="x"),
        TypeError,
        "do_sample: got 'x', expected True",
    ),
    "temperature": (
        lambda lm: lm.generate(["a"], temperature="x"),
        TypeError,
        "temperature: got 'x', expected",
    ),
    "top_k": (lambda lm: lm.generate(["a"], top_k="x"), TypeError, "top_k: got 'x', expected an int"),
    "sequences": (
        lambda lm: lm.generate(["a"], num_return_sequences="x"),
        TypeError,
        "num_return_sequences: got 'x', expected an int",
    ),
    "hide_input": (
        lambda lm: lm.generate(["a"], hide_input="x"),
        TypeError,
        "hide_input: got 'x', expected T",
    ),
    "log_probs": (
        lambda lm: lm.generate(["a"], output_log_probs=1),
        TypeError,
        "output_log_probs: got 1, exp",
    ),
    "criteria": (
        lambda lm: lm.generate(["a"], stopping_criteria=3),
        TypeError,
        "stopping_criteria: got 3, expected a function of ids and scores",
    ),
    "an end": (
        lambda lm: lm.generate(["a"], eos_token_id=260),
        ValueError,
        r"eos_token_id: got 260, expected a token id or a text of tokens of the vocabulary, 0\.\.259",
    ),
    "ends": (lambda lm: lm.generate(["a"], eos_token_id=[3, 10**30]), ValueError, "eos_token_id: got 10000"),
    "an end below": (lambda lm: lm.generate(["a"], eos_token_id=-1), ValueError, "eos_token_id: got -1, exp"),
    "the end's text": (
        lambda lm: lm.generate(["a"], eos_token_id="\ud800"),
        ValueError,
        "eos_token_id: got surrogates not allowed",
    ),
    "no text": (lambda lm: lm.generate(["a", ""]), ValueError, r"inputs\[1\]: got no tokens, expected at"),
    "surrogates": (
        lambda lm: lm.generate(["a", "\ud800"]),
        ValueError,
        r"inputs\[1\]: got surrogates not allowed at 0, expected valid Unicode",
    ),
    "too long": (
        lambda lm: lm.generate(["x" * 600]),
        PromptTooLongError,
        r"inputs\[0\]: has 600 tokens, but the model allows 512",
    ),
    "as long as it may": (
        lambda lm: lm.generate(["a", "abcd"], 4),
        ValueError,
        r"max_length: got 4 for inputs\[1\] of 4 tokens, expected more",
    ),
    "no prompt": (lambda lm: lm.get_next_token_logits("", ["a"]), ValueError, "prompt: got no tokens"),
    "long prompts": (
        lambda lm: lm.get_next_token_logits(["a", "x" * 600], ["a"]),
        PromptTooLongError,
        r"prompt\[1\]: has 600 tokens",
    ),
    "a candidate": (
        lambda lm: lm.get_next_token_logits("a", ["\ud800"]),
        ValueError,
        "candidates: got surrogates not allowed",
    ),
    "a long prefix": (
        lambda lm: lm.get_loglikelihood("x" * 600, ["x" * 601]),
        PromptTooLongError,
        "prefix: has 600 tokens",
    ),
    "long contents": (
        lambda lm: lm.get_loglikelihood("x", ["xy", "x" * 600]),
        PromptTooLongError,
        r"contents\[1\]: 599 more after 1",
    ),
    "prompt": (lambda lm: lm.get_next_token_logits(3, ["a"]), TypeError, f"prompt: got 3, {TEXTS}"),
    "prompts": (
        lambda lm: lm.get_next_token_logits([3], ["a"]),
        TypeError,
        r"prompt\[0\]: got int, expected",
    ),
    "letters": (
        lambda lm: lm.get_next_token_logits("a", "abc"),
        TypeError,
        rf"candidates: got 'abc', {TEXTS}; pass \['abc'\]",
    ),
    "no candidates": (lambda lm: lm.get_next_token_logits("a", 3), TypeError, f"candidates: got 3, {TEXTS}"),
    "candidates": (
        lambda lm: lm.get_next_token_logits("a", [[3]]),
        TypeError,
        r"candidates\[0\]\[0\]: got int, expected a str",
    ),
    "lists": (
        lambda lm: lm.get_next_token_logits("a", [3]),
        TypeError,
        rf"candidates\[0\]: got 3, {TEXTS}",
    ),
    "contents": (
        lambda lm: lm.get_loglikelihood("a", "abc"),
        TypeError,
        rf"contents: got 'abc', {TEXTS}; pass \['abc'\]",
    ),
    "a content": (
        lambda lm: lm.get_loglikelihood("a", [3]),
        TypeError,
        r"contents\[0\]: got int, expected a",
    ),
    "prefix": (lambda lm: lm.get_loglikelihood(3, ["abc"]), TypeError, "prefix: got int, expected a str"),
    "no prefix": (
        lambda lm: lm.get_loglikelihood("", ["abc"]),
        ValueError,
        "prefix: got '', expected a text of",
    ),
    "decoder": (lambda lm: type(lm)(3), TypeError, "decoder: got int, expected a TreeDecoder"),
    "seed": (lambda lm: type(lm)(lm.decoder, seed="x"), TypeError, "seed: got 'x', expected an int"),
    "retain": (lambda lm: type(lm)(lm.decoder, retain="x"), TypeError, "retain: got 'x', expected an int"),
    "below 0": (lambda lm: type(lm)(lm.decoder, retain=-1), ValueError, "retain: got -1, expected >= 0"),
}


@pytest.mark.parametrize("name", REASONERS)
def test_llm_reasoners(name: str, model: Any) -> None:
    call, error, words = REASONERS[name]
    decoder = make(model)
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 4}
    expected = llm_reasoners.TreeLanguageModel(decoder, retain=0).generate(["One."], **options)
    lm = llm_reasoners.TreeLanguageModel(decoder, retain=0)
    with pytest.raises(error, match=f"^{words}"):
        call(lm)
    stats = decoder.stats()
    assert (stats.branches, stats.pins, stats.resident_bytes) == (0, 0, 0)
    assert lm.generate(["One."], **options) == expected  # calls draw by their number


def test_a_criterion_of_llm_reasoners_that_returns_no_bool(model: Any) -> None:
    lm = llm_reasoners.TreeLanguageModel(make(model))
    with pytest.raises(TypeError, match=r"^stopping_criteria: got 'x' of it, expected a bool, or bools"):
        lm.generate(["a"], max_new_tokens=4, stopping_criteria=lambda ids, scores: "x")
    assert lm.decoder.stats().branches == 0


def test_a_softmax_over_one_candidate_is_its_probability(model: Any) -> None:
    """Over the vocabulary, so that all tokens as candidates sum to 1."""
    lm = llm_reasoners.TreeLanguageModel(make(model), retain=0)
    letters = [chr(code) for code in range(128)]
    (one,) = lm.get_next_token_logits("One", ["a"], postprocess="softmax")
    (some,) = lm.get_next_token_logits("One", letters, postprocess="softmax")
    assert one == pytest.approx(some[ord("a")])
    assert 0 < one < some.sum() < 1
