"""A caller that answers a search's requests from a script."""

import zlib
from collections import Counter

from scripted import random_script, words
from tts_decode.completions.completion import Completion, CompletionRequest
from tts_decode.search.ask_tell import LogprobRequest, ScoreRequest

PROMPT = "Question?\n"


def grade(text):
    return sum(ord(char) * (i % 5 + 1) for i, char in enumerate(text)) % 101 / 101


def logprobs_of(prefix, text):
    return [-1.0 - zlib.crc32((prefix + word).encode()) % 8 / 8 for word in words(text)]


class Caller:
    """Answers by a script, whose k-th answer to a prefix goes to the k-th request with it as asked for."""

    def __init__(self, seed):
        self.script = random_script(seed)
        self.k = {}  # request id -> which request with its prefix it is
        self.asked = Counter()

    def answer(self, request):
        if isinstance(request, ScoreRequest):
            assert all(prompt.startswith("Question?\n") for prompt in request.prompts)
            return [grade(text) for text in request.texts]
        if isinstance(request, LogprobRequest):
            return logprobs_of(request.prompt, request.text)
        return Completion(*self.script(request.prompt, self.k[request.id]))

    def see(self, requests):
        for request in requests:
            if isinstance(request, CompletionRequest) and request.id not in self.k:
                self.k[request.id] = self.asked[request.prompt]
                self.asked[request.prompt] += 1
