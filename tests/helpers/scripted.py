"""A model that outputs a script's text, for conformance tests of strategies.

To write such a test: the script is a pure function of (prefix, k), where prefix is the whole text so far,
including the prompt, and k counts the requests with that prefix from 0 in order. The strategy runs on it, and
so does a plain transcription of the paper's algorithm, written in the test from the paper's pseudo-code
without any engine: it calls the same script and the same score function. Both must yield the same texts.

    def script(prefix, k):                        # three steps, then the end; wording depends on prefix and k
        steps = prefix.count("\\n")
        return (f"step {steps}{'abcd'[k]}\\n", "stop_string") if steps < 3 else (f"= {len(prefix)}", "eos")

    def score(text):                              # of the text after the prompt
        return (len(text) * 37 % 11) / 11

    def plain(ask, prompt, n):                    # the algorithm: n answers, the best-scored one wins
        texts, ended = [""] * n, [False] * n
        while not all(ended):
            for i in range(n):
                if not ended[i]:
                    text, reason = ask(prompt + texts[i])
                    texts[i] += text
                    ended[i] = reason == "eos"
        return max(texts, key=score)

    def test_best_of_n():
        result = run_scripted(scripted_decoder(script), best_of_n, "Q: ", n=4, scorer=scorer(score))
        assert result.answer == plain(counted(script), "Q: ", 4)

`random_script(seed)` makes scripts for a loop over many seeds, `counted(script)` counts k as the model does.
Branches that step together ask in the order in which the strategy lists them.

`decoder.complete.calls` has the requests to the model. A token is a word with the white space after it, so
"So 4.\\n" is the two tokens "So " and "4.\\n", and a branch can be cut between any two. An end ("eos") is
another token, with no text. Ids are a hash of the word; log-probabilities are -1 and entropies 1 unless the
script gives them, 0 for an end.
"""

from __future__ import annotations

import asyncio
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from search_options import small_options
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.completions.decoder import TextDecoder
from tts_decode.rewards import mean_logprob
from tts_decode.search import get_strategy

NEEDS_A_MODEL = {"lm_beam_search"}  # strategies that want the probabilities of all tokens

EOS = 0


def words(text: str) -> list[str]:
    """The tokens of a text: words, each with the white space after it."""
    return re.findall(r"\s*\S+\s*|\s+", text)


def word_id(word: str) -> int:
    return 1 + zlib.crc32(word.encode()) % 50_000


@dataclass(frozen=True)
class Call:
    prefix: str
    k: int
    text: str
    reason: str
    request: CompletionRequest


class ScriptedModel:
    """A `complete` for `TextDecoder`.

    Args:
        script: script(prefix, k) -> (text, reason) or (text, reason, logprobs) or (text, reason, logprobs,
            entropies); reason is "stop_string", "eos" or "length", the lists have one entry a word. A text
            longer than the request's max_tokens is cut to it and ends with "length". A "stop_string" ends
            the completion if the request has no stop strings or the text holds one of them; else the script
            is asked how it goes on.
        latency: latency(prefix, k) -> cycles of the event loop before the answer comes, for strategies that
            do not wait for all.

    Attributes:
        calls: every answered request, in the order of the answers.
    """

    def __init__(self, script, latency=None):
        self.calls: list[Call] = []
        self._script = script
        self._latency = latency
        self._asked = Counter()

    async def __call__(self, request: CompletionRequest) -> Completion:
        prefix = request.prompt
        k = self._count(prefix)
        for _ in range(self._latency(prefix, k) if self._latency else 0):
            await asyncio.sleep(0)
        tokens = []  # (text, id, log-probability, entropy)
        said, reason, goes_on = "", "", k
        while goes_on is not None:
            text, reason, *numbers = self._script(prefix + said, goes_on)
            said += text
            pieces = words(text)
            logprobs = numbers[0] if numbers else [-1.0] * len(pieces)
            entropies = numbers[1] if len(numbers) > 1 else [1.0] * len(pieces)
            tokens += zip(pieces, map(word_id, pieces), logprobs, entropies, strict=True)
            stopped = not request.stop or any(stop in said for stop in request.stop)
            more = text and reason == "stop_string" and not stopped and len(tokens) < request.max_tokens
            goes_on = self._count(prefix + said) if more else None
        if reason == "eos":
            tokens.append(("", EOS, 0.0, 0.0))
        if len(tokens) > request.max_tokens or (not stopped and reason == "stop_string"):
            tokens, reason = tokens[: request.max_tokens], "length"
        texts, ids, logprobs, entropies = zip(*tokens, strict=True) if tokens else ((),) * 4
        text = "".join(texts)
        self.calls.append(Call(prefix, k, text, reason, request))
        return Completion(text, reason, ids, logprobs, entropies, texts)

    def _count(self, prefix):
        self._asked[prefix] += 1
        return self._asked[prefix] - 1


def counted(script):
    """ask(prefix) -> what the script says to the next request with that prefix; for plain transcriptions."""
    asked = Counter()

    def ask(prefix):
        asked[prefix] += 1
        return script(prefix, asked[prefix] - 1)

    return ask


def random_script(seed, *, vocabulary=("red", "blue", "green", "one", "two"), answers=("1", "2", "3")):
    """A script drawn once for all: steps of 1 to 4 words ended by a line break, until one line holds the end,
    "answer is ...", which comes the sooner the more steps there were."""

    def script(prefix, k):
        rng = random.Random(f"{seed} {k} {prefix}")
        if rng.random() < 0.1 + 0.15 * prefix.count("\n"):
            return f"answer is {rng.choice(answers)}", "eos"
        return " ".join(rng.choices(vocabulary, k=rng.randint(1, 4))) + "\n", "stop_string"

    return script


def scripted_decoder(script, *, latency=None, logprobs_of=None, **options) -> TextDecoder:
    """A decoder over a `ScriptedModel`; `options` are TextDecoder's.

    logprobs_of: logprobs_of(prefix, text) -> one log-probability a token of a text that is not kept
        (`Branch.logprobs_of`) or forced (`Branch.extend`). Without it a forced text is one token.
    """

    async def score(prompt, continuations):
        return [logprobs_of(prompt, text) for text in continuations]

    return TextDecoder(ScriptedModel(script, latency), score=score if logprobs_of else None, **options)


def run_scripted(decoder, strategy, prompt, /, *, sampling=None, budget=None, **options):
    """One search from a prompt to its result; nothing of it may be left in the decoder."""

    async def search():
        root = await decoder.root(prompt, sampling, budget)
        try:
            return await strategy(root, **options)
        finally:
            root.release()

    result = decoder.run(search())
    assert decoder.stats().branches == 0
    return result


def text_options(name):
    """`small_options` for a strategy that runs on texts: none that read hidden states."""
    options = small_options(name)
    if "embed" in get_strategy(name).parameters:
        options["embed"] = lambda steps: np.array([[len(step.text), 1.0] for step in steps])
    if name == "st_bon":
        options["consistency"] = "string"
    if name == "no_thinking":
        options["scorer"] = mean_logprob()  # self-certainty wants the probabilities of all tokens
    if name == "deepconf":
        options["signal"] = "entropy"
    return options


def scorer(score, calls=None):
    """A scorer of the branches' texts by `score(text)`; appends the texts of each call to `calls`."""

    async def scripted_scorer(branches):
        texts = [branch.text for branch in branches]
        if calls is not None:
            calls.append(texts)
        return [score(text) for text in texts]

    return scripted_scorer
