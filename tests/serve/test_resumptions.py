"""A request that continues an earlier one computes at most 16 tokens of it, whatever that was."""

import json

import pytest
from serving import make_chatty, until
from tiny_models import EOS
from tts_decode.serve.config import Limits

PROMPT = "The quick brown fox jumps over the lazy dog."
CHAT = [{"role": "user", "content": "Tell me a long story about a fox, if you please."}]
PAGE = 16
SAMPLED = {"seed": 6, "max_tokens": 60}


def missing(answer):
    usage = answer["usage"]
    return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]


def pins(served):
    return served.decoder.stats().pins


@pytest.mark.parametrize("strategy", ["best_of_n", "beam_search", "self_consistency", "mcts"])
def test_the_answer_of_a_search(serve, model, strategy):
    decoder = make_chatty(model)
    decoder.eos_token_ids = frozenset({EOS})  # in the middle of an answer it would not be in the text
    served = serve(decoder)
    first = served.complete(PROMPT, **SAMPLED, tts={"strategy": strategy, "max_step_tokens": 20})
    assert first["usage"]["completion_tokens"] > PAGE
    text = first["choices"][0]["text"]
    assert missing(served.complete(PROMPT + text, max_tokens=2)) <= PAGE


def test_the_answer_of_a_search_in_a_chat(served):
    first = served.chat(CHAT, **SAMPLED, tts={"strategy": "best_of_n", "n": 3})
    final = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    assert missing(served.chat([*CHAT, final], max_tokens=2, continue_final_message=True)) <= PAGE


def test_the_prompt_of_a_search_that_failed(serve):
    def broken(branches):
        raise OSError

    served = serve(scorers={"broken": broken})
    served.complete(PROMPT, **SAMPLED, tts={"strategy": "best_of_n", "scorer": "broken"})
    assert missing(served.complete(PROMPT, max_tokens=2)) <= PAGE


def test_a_stream_that_was_broken_off(serve):
    served = serve(limits=Limits(idle_seconds=5.0))
    text = ""
    body = {"prompt": PROMPT, "seed": 5, "max_tokens": 4000, "stream": True}
    with served.http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
            if len(text) > 40:
                break
    until(served.idle)
    assert missing(served.complete(PROMPT + text, max_tokens=2)) <= PAGE


def test_a_final_message_whose_steps_end_in_a_stop_string(served):
    """As its-hub's beam search does: steps of several beams from one text, which the client puts together."""
    beams = [""] * 3
    for step in range(4):
        for i, text in enumerate(beams):
            final = [{"role": "assistant", "content": text}] if text else []
            goes_on = {"continue_final_message": True, "add_generation_prompt": False} if text else {}
            answer = served.chat([*CHAT, *final], seed=10 * step + i, max_tokens=30, stop=["e"], **goes_on)
            assert not text or missing(answer) <= PAGE
            choice = answer["choices"][0]
            beams[i] += choice["message"]["content"] + ("e" if choice["stop_reason"] == "e" else "")
        beams = [beams[0], beams[0], beams[2]]  # as a beam that others took the place of


@pytest.mark.parametrize("by_text", [True, False])
def test_a_prompt_of_token_ids(served, by_text):
    ids = list(PROMPT.encode())
    first = served.complete(ids, return_token_ids=True, **SAMPLED)["choices"][0]
    later = PROMPT + first["text"] if by_text else ids + first["token_ids"]
    assert missing(served.complete(later, max_tokens=2)) <= PAGE


def test_a_prompt_that_was_only_echoed(served):
    served.complete(PROMPT, echo=True, logprobs=1, max_tokens=0)
    assert missing(served.complete(PROMPT, max_tokens=2)) <= PAGE


def test_an_echo_alone_makes_no_second_branch(served, monkeypatch):
    lengths = []
    root = type(served.decoder).root

    async def noting(self, prompt, *arguments):
        lengths.append(len(prompt))
        return await root(self, prompt, *arguments)

    monkeypatch.setattr(type(served.decoder), "root", noting)
    answer = served.complete(PROMPT, echo=True, logprobs=1, max_tokens=0)
    assert answer["choices"][0]["text"] == PROMPT
    assert lengths == [1]  # its first token; the others are read behind it
    served.complete(PROMPT, echo=True, max_tokens=0)
    assert lengths == [1]
