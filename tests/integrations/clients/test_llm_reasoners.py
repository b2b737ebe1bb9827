"""llm-reasoners: texts, logits and likelihoods are those of transformers, and its searches run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from needed import needs
from primitives import make
from tts_decode import TreeDecoder

needs("reasoners")

import reasoners
from reasoners.algorithm import MCTS, BeamSearch
from tts_decode.integrations.llm_reasoners import TreeLanguageModel

PROMPTS = ["One prompt of more than one page.", "Another."]


@pytest.fixture
def lm(model: Any) -> Iterator[TreeLanguageModel]:
    """Over bytes, which must hold nothing after `clear`."""
    lm = TreeLanguageModel(make(model))
    yield lm
    lm.clear()
    stats = lm.decoder.stats()
    assert (stats.branches, stats.pins, stats.resident_bytes) == (0, 0, 0)


def logits(model: Any, decoder: TreeDecoder, text: str) -> torch.Tensor:
    """float32 [tokens, vocabulary]: transformers' forward over a text."""
    with torch.no_grad():
        return model(torch.tensor([decoder.token_ids(text)])).logits[0]


def greedy(model: Any, decoder: TreeDecoder, text: str, tokens: int) -> list[int]:
    """Returns transformers' continuation of a text."""
    ids = torch.tensor([decoder.token_ids(text)])
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return out[0, ids.shape[1] :].tolist()


def shown(decoder: TreeDecoder, ids: list[int]) -> str:
    """The text of ids; the last character is left out where its bytes are not all there."""
    text = decoder.tokenizer.decode(ids)
    return text[:-1] if 0xC0 <= ids[-1] < 0xF8 else text


def test_greedy_texts_are_those_of_transformers(model: Any, lm: TreeLanguageModel) -> None:
    decoder = lm.decoder
    expected = [shown(decoder, greedy(model, decoder, text, 12)) for text in PROMPTS]
    assert lm.generate(PROMPTS, max_new_tokens=12).text == expected
    whole = lm.generate(PROMPTS, max_new_tokens=12, hide_input=False)
    assert whole.text == [text + new for text, new in zip(PROMPTS, expected, strict=True)]
    assert whole.log_prob is None
    assert lm.generate(PROMPTS[:1], do_sample=True, temperature=0, max_new_tokens=12).text == expected[:1]
    length = len(decoder.token_ids(PROMPTS[0]))
    assert lm.generate(PROMPTS[:1], max_length=length + 12).text == expected[:1]
    with pytest.raises(ValueError, match=rf"^max_length: got {length} for inputs\[0\] of {length} tokens"):
        lm.generate(PROMPTS[:1], max_length=length)


def test_log_probabilities_are_those_of_a_forward(model: Any, lm: TreeLanguageModel) -> None:
    ids = greedy(model, lm.decoder, PROMPTS[0], 12)
    (found,) = lm.generate(PROMPTS[:1], max_new_tokens=12, output_log_probs=True).log_prob
    start = lm.decoder.token_ids(PROMPTS[0])
    with torch.no_grad():
        rows = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].log_softmax(-1)
    expected = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sampled_texts_are_one_batch_of_forks(lm: TreeLanguageModel) -> None:
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 12}
    before = lm.decoder.stats()
    first = lm.generate(PROMPTS, **options).text
    after = lm.decoder.stats()
    assert len(set(first)) == 8
    assert after.steps - before.steps <= 12 + 2
    tokens = sum(len(lm.decoder.token_ids(text)) for text in PROMPTS)
    assert after.forward_tokens - before.forward_tokens == tokens + 8 * 11  # the last of each is not needed
    assert set(first).isdisjoint(lm.generate(PROMPTS, **options).text)  # calls draw by their number
    again = TreeLanguageModel(lm.decoder)
    assert again.generate(PROMPTS, **options).text == first
    again.clear()


def test_texts_end_with_the_tokens_that_are_told(model: Any, lm: TreeLanguageModel) -> None:
    ids = greedy(model, lm.decoder, PROMPTS[0], 12)
    end = next(i for i in range(3, 12) if ids[i] not in ids[:i] and ids[i] < 128)
    expected = [shown(lm.decoder, ids[: end + 1])]
    for value in (ids[end], chr(ids[end]), ["x" + chr(ids[end]), 200]):
        assert lm.generate(PROMPTS[:1], max_new_tokens=12, eos_token_id=value).text == expected


@pytest.mark.parametrize("value", ["", ["a", ""], True, [False], 2.0, [None], {}])
def test_ends_without_a_token_are_refused(lm: TreeLanguageModel, value: Any) -> None:
    error = ValueError if value in ("", ["a", ""]) else TypeError
    with pytest.raises(error, match=r"^eos_token_id: got .*, expected a token id or a text of tokens"):
        lm.generate(PROMPTS[:1], max_new_tokens=2, eos_token_id=value)


def test_no_ends_are_none(model: Any, lm: TreeLanguageModel) -> None:
    expected = [shown(lm.decoder, greedy(model, lm.decoder, PROMPTS[0], 12))]
    assert lm.generate(PROMPTS[:1], max_new_tokens=12, eos_token_id=[]).text == expected


@pytest.mark.parametrize("form", [bool, lambda stops: [stops], lambda stops: torch.tensor([stops])])
def test_a_criterion_may_return_what_those_of_transformers_do(lm: TreeLanguageModel, form: Any) -> None:
    seen: list[int] = []

    def stop(ids: torch.Tensor, scores: torch.Tensor) -> Any:
        seen.append(ids.shape[1])
        return form(len(seen) == 3)

    lm.generate(PROMPTS[:1], max_new_tokens=12, stopping_criteria=stop)
    assert len(seen) == 3


def test_a_stopping_criterion_sees_each_token(model: Any, lm: TreeLanguageModel) -> None:
    seen: list[int] = []

    def stop(ids: torch.Tensor, scores: torch.Tensor) -> list[bool]:
        seen.append(ids.shape[1])
        return [len(seen) == 5]

    text = lm.generate(PROMPTS[:1], max_new_tokens=12, stopping_criteria=stop).text
    length = len(lm.decoder.token_ids(PROMPTS[0]))
    assert seen == [length + i for i in range(1, 6)]
    assert text == [shown(lm.decoder, greedy(model, lm.decoder, PROMPTS[0], 5))]


def test_logits_are_those_of_a_forward(model: Any, lm: TreeLanguageModel) -> None:
    rows = [logits(model, lm.decoder, text)[-1] for text in PROMPTS]
    own = [["a", "b", "7"], ["x"]]
    for candidates, lists in ((["a", "b"], [["a", "b"]] * 2), (own, own)):
        for name, function in ((None, lambda row: row), ("softmax", lambda row: row.softmax(-1))):
            found = lm.get_next_token_logits(PROMPTS, candidates, postprocess=name)
            for row, texts, values in zip(rows, lists, found, strict=True):
                expected = function(row)[[ord(text) for text in texts]]
                np.testing.assert_allclose(values, expected, atol=1e-4)
    (values,) = lm.get_next_token_logits(PROMPTS[0], ["a"], postprocess="log_softmax")
    np.testing.assert_allclose(values, rows[0].log_softmax(-1)[[ord("a")]], atol=1e-4)
    with pytest.warns(UserWarning, match=r"^candidates: got 'ab' of 2 tokens"):
        (values,) = lm.get_next_token_logits(PROMPTS[0], ["ab"])
    np.testing.assert_allclose(values, rows[0][[ord("b")]], atol=1e-4)
    with pytest.raises(ValueError, match=r"^postprocess: got 'exp', expected None or softmax or log_softmax"):
        lm.get_next_token_logits(PROMPTS[0], ["a"], postprocess="exp")


@pytest.mark.parametrize("candidates", [[], [[], []], [["a"], []], [["a"]], [""], [["a"], [""]]])
def test_candidates_without_a_token_are_refused(lm: TreeLanguageModel, candidates: Any) -> None:
    with pytest.raises(ValueError, match=r"^candidates: got .*, expected .*one token"):
        lm.get_next_token_logits(PROMPTS, candidates)


def test_branches_of_calls_that_fail_are_released(lm: TreeLanguageModel) -> None:
    """At once, though the frames of the error still hold them."""

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> bool:
        if ids.shape[1] > len(PROMPTS[0]) + 2:
            raise RuntimeError("out of order")
        return False

    too_long = "x" * 600  # the model has 512 positions
    calls = [
        lambda: lm.generate(PROMPTS, max_new_tokens=8, num_return_sequences=2, stopping_criteria=broken),
        lambda: lm.generate([PROMPTS[0], too_long], max_new_tokens=8),
        lambda: lm.generate(PROMPTS, max_new_tokens=8, num_return_sequences=0),
        lambda: lm.get_next_token_logits([PROMPTS[0], too_long], ["a"]),
        lambda: lm.get_loglikelihood(PROMPTS[0], [PROMPTS[0] + " yes", PROMPTS[0] + too_long]),
    ]
    gc.disable()
    try:
        for call in calls:
            with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
                call()
            assert caught.traceback
            assert lm.decoder.stats().branches == 0
    finally:
        gc.enable()


def test_likelihoods_are_those_of_a_forward(model: Any, lm: TreeLanguageModel) -> None:
    ends = [" yes", " no, not at all", ""]
    found = lm.get_loglikelihood(PROMPTS[0], [PROMPTS[0] + end for end in ends])
    expected = []
    for end in ends:
        ids = lm.decoder.token_ids(PROMPTS[0] + end)
        rows = logits(model, lm.decoder, PROMPTS[0] + end).log_softmax(-1)
        expected.append(sum(float(rows[i - 1, ids[i]]) for i in range(len(PROMPTS[0]), len(ids))))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"^contents\[1\]: got other tokens"):
        lm.get_loglikelihood("One", ["One more", "Two"])


def test_a_text_that_goes_on_is_not_computed_again(lm: TreeLanguageModel) -> None:
    (text,) = lm.generate(PROMPTS[:1], max_new_tokens=3, hide_input=False).text
    before = lm.decoder.stats().forward_tokens
    lm.get_next_token_logits(PROMPTS[0] + " And more.", ["a"])
    assert lm.decoder.stats().forward_tokens - before <= 16 + len(" And more.")
    assert text.startswith(PROMPTS[0])


class Letters(reasoners.WorldModel):
    """States are texts, and actions what is put behind them."""

    def init_state(self) -> str:
        return PROMPTS[0]

    def step(self, state: str, action: str) -> tuple[str, dict[str, Any]]:
        return state + action, {}

    def is_terminal(self, state: str) -> bool:
        return len(state) >= len(PROMPTS[0]) + 3


class LikelyLetters(reasoners.SearchConfig):
    """Rewards an action by its probability."""

    def __init__(self, lm: TreeLanguageModel) -> None:
        super().__init__()
        self.lm = lm

    def get_actions(self, state: str) -> list[str]:
        return ["a", "b", "c"]

    def fast_reward(self, state: str, action: str) -> tuple[float, dict[str, Any]]:
        return float(self.lm.get_loglikelihood(state, [state + action])[0]), {}

    def reward(self, state: str, action: str, **_: Any) -> tuple[float, dict[str, Any]]:
        return self.fast_reward(state, action)


@pytest.mark.parametrize("search", ["beam_search", "mcts"])
def test_its_searches_run(search: str, model: Any, lm: TreeLanguageModel) -> None:
    algorithm = {
        "beam_search": lambda: BeamSearch(beam_size=27, max_depth=3, reward_aggregator="cumulative"),
        "mcts": lambda: MCTS(n_iters=60, depth_limit=4, w_exp=50.0),
    }[search]()
    result = reasoners.Reasoner(Letters(), LikelyLetters(lm), algorithm)("a task")
    if isinstance(result, list):
        result = result[0]
    texts = [PROMPTS[0] + a + b + c for a in "abc" for b in "abc" for c in "abc"]

    def likelihood(text: str) -> float:
        rows = logits(model, lm.decoder, text).log_softmax(-1)
        return sum(float(rows[i - 1, ord(text[i])]) for i in range(len(PROMPTS[0]), len(text)))

    best = max(texts, key=likelihood)
    assert result.terminal_state == best
