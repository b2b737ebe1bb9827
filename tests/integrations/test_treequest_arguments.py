"""TreeGenerator refuses bad arguments by name; a failed call makes no branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from primitives import make
from serving import make_chatty
from tts_decode import PromptTooLongError, SamplingParams, TreeDecoder
from tts_decode.integrations.treequest import TreeGenerator
from tts_decode.rewards import mean_probability

PROMPT = "The prompt has more than one page of tokens."
STEPS = SamplingParams(max_tokens=64, max_step_tokens=4)

OPTIONS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "decoder": ({"decoder": 3}, TypeError, "decoder: got int, expected a TreeDecoder"),
    "scorer": ({"scorer": None}, TypeError, "scorer: got NoneType, expected an async function of branches"),
    "scorer text": ({"scorer": "x"}, TypeError, "scorer: got str, expected an async function of branches"),
    "sampling": ({"sampling": {"max_tokens": 3}}, TypeError, "sampling: got dict, expected a SamplingParams"),
    "revision": ({"revision": 3}, TypeError, "revision: got int, expected a str"),
    "no revision": ({"revision": ""}, ValueError, "revision: got '', expected a text; leave it out"),
}
PARENT = r"expected the state of a node, or None for the root; pass trial\.parent_state"
CALLS: dict[str, tuple[Callable[[TreeGenerator], Any], str]] = {
    "a text": (lambda generate: generate("x"), f"parent: got 'x', {PARENT}"),
    "a number": (lambda generate: generate(3), f"parent: got 3, {PARENT}"),
    "a list": (lambda generate: generate([None]), rf"parent: got \[None\], {PARENT}"),
    "no batch": (lambda generate: generate.batch(None), "parents: got None, expected a list of states"),
    "letters": (lambda generate: generate.batch("xy"), "parents: got 'xy', expected a list of states"),
    "of numbers": (lambda generate: generate.batch([None, 3]), rf"parents\[1\]: got 3, {PARENT}"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, decoder: TreeDecoder) -> None:
    given, error, words = OPTIONS[name]
    options: dict[str, Any] = {"decoder": decoder, "prompt": PROMPT, "scorer": mean_probability()}
    with pytest.raises(error, match=f"^{words}"):
        TreeGenerator(**options | given)


@pytest.mark.parametrize("name", CALLS)
def test_parents(name: str, decoder: TreeDecoder) -> None:
    call, words = CALLS[name]
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=STEPS)
    with pytest.raises(TypeError, match=f"^{words}"):
        call(generate)
    assert decoder.stats().branches == 0  # not even the prompt's
    state, _ = generate(None)
    with pytest.raises(TypeError, match=r"^parents: got TreeState\(.*pass \[state\]"):
        generate.batch(state)  # type: ignore[arg-type]
    generate.release()


MESSAGE = r'expected \{"role": "user", "content": text\}'
MESSAGES: dict[str, tuple[Any, str]] = {
    "missing": ({"role": "user"}, f"got a message of role 'user' without content, {MESSAGE}"),
    "None": ({"role": "user", "content": None}, f"got a message of role 'user' without content, {MESSAGE}"),
    "a number": ({"role": "user", "content": 3}, "got the content 3, expected a text, or a list of parts"),
    "no role": ({"content": "x"}, f"got a message with no role, {MESSAGE}"),
    "a role": ({"role": 3, "content": "x"}, f"got a message with the role 3, {MESSAGE}"),
    "none": (3, "got 3, expected a chat message"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_a_chat(name: str, model: Any) -> None:
    message, words = MESSAGES[name]
    decoder = make_chatty(model)
    prompt = [{"role": "user", "content": "x"}, message]
    generate = TreeGenerator(decoder, prompt, mean_probability(), sampling=STEPS)
    with pytest.raises((TypeError, ValueError), match=rf"^prompt\[1\]: {words}"):
        generate(None)
    assert decoder.stats().branches == 0


def test_a_message_of_tool_calls_needs_no_content(model: Any) -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "add"}]}
    generate = TreeGenerator(make_chatty(model), [call], mean_probability(), sampling=STEPS)
    generate(None)
    generate.release()


@pytest.mark.parametrize("score", [1 + 1e-9, -1e-9])
def test_a_score_beyond_the_range_is_told_as_it_is(score: float, decoder: TreeDecoder) -> None:
    async def mine(branches: Any) -> list[float]:
        return [score for _ in branches]

    generate = TreeGenerator(decoder, PROMPT, mine, sampling=STEPS)
    words = rf"^scorer mine: got the score {score} for branch \d+, expected a number from 0 to 1"
    with pytest.raises(ValueError, match=words):
        generate(None)
    generate.release()


def test_a_revision_that_is_too_long_is_named(decoder: TreeDecoder) -> None:
    brief = SamplingParams(max_tokens=4, max_step_tokens=4)
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=brief, revision="x" * 600)
    state, _ = generate(None)
    assert state.finished
    with pytest.raises(PromptTooLongError, match=r"^revision: 600 more after"):
        generate(state)
    generate.release()


def test_a_scorer_that_is_not_async(decoder: TreeDecoder) -> None:
    generate = TreeGenerator(decoder, PROMPT, lambda branches: [0.5 for _ in branches], sampling=STEPS)  # type: ignore[arg-type, return-value]
    with pytest.raises(
        TypeError, match=r"^scorer .*: got a list of it, expected an awaitable; write it as async"
    ):
        generate(None)
    assert decoder.stats().branches == 1  # the prompt's
    generate.release()


def test_a_state_of_another_decoder(model: Any, decoder: TreeDecoder) -> None:
    other = TreeGenerator(make(model), PROMPT, mean_probability(), sampling=STEPS)
    state, _ = other(None)
    generate = TreeGenerator(decoder, PROMPT, mean_probability(), sampling=STEPS)
    with pytest.raises(ValueError, match=r"^parent: got TreeState\(.* of another decoder, .*; pickle it"):
        generate(state)
    assert decoder.stats().branches == 1
    generate.release()
    other.release()
