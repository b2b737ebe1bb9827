"""An echoed prompt whose tokens are told: computed once, and free of the answer's grammar."""

import pytest

PROMPT = "The quick brown fox jumps over the lazy dog."


def test_an_echoed_prompt_is_computed_once(served):
    before = served.decoder.stats().forward_tokens
    served.complete(PROMPT, echo=True, logprobs=2, max_tokens=1, seed=1)
    computed = served.decoder.stats().forward_tokens - before
    assert computed <= len(PROMPT) + 1  # the last token again, for its logits


def test_the_grammar_of_an_answer_is_not_that_of_its_prompt(served):
    pytest.importorskip("llguidance")
    form = {"type": "json_object"}
    answer = served.complete(PROMPT, echo=True, logprobs=1, max_tokens=3, seed=1, response_format=form)
    assert answer["choices"][0]["text"].startswith(PROMPT + "{")
