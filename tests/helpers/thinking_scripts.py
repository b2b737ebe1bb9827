"""Random words for strategies that spend more or less on one line, and their searches on a model."""

import random
import zlib
from collections import Counter

from scripted import run_scripted, scripted_decoder, words
from search_options import length_mod_3
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder

VOCABULARY = ["so ", "two ", "and ", "But ", "wait, ", "four ", "hmm ", "then "]
SEEDS = range(12)


def wild(seed, ends=("eos",), longest=9):
    """A script of random words; a "stop_string" ends with the text that ends the thinking."""

    def script(prefix, k):
        rng = random.Random(zlib.crc32(f"{seed} {prefix} {k}".encode()))
        chosen = [rng.choice(VOCABULARY) for _ in range(rng.randint(1, longest))]
        reason = rng.choice(ends)
        if reason == "stop_string":
            chosen.append("</think>")
        count = len(chosen) + (reason == "eos")
        return (
            "".join(chosen),
            reason,
            [-1.0] * len(chosen),
            [rng.random() for _ in range(count)][: len(chosen)],
        )

    return script


class Plain:
    """The same script, called without an engine: at most `limit` words, of which an end is one."""

    def __init__(self, script):
        self.script = script
        self.asked = Counter()

    def __call__(self, prefix, limit):
        text, reason, _, entropies = self.script(prefix, self.asked[prefix])
        self.asked[prefix] += 1
        tokens = words(text) + [""] * (reason == "eos")
        if len(tokens) > limit:
            tokens, reason = tokens[:limit], "length"
        self.entropies = [*entropies, 0.0][: len(tokens)]
        return tokens, reason


def texts(result):
    return sorted(candidate.text for candidate in result.candidates)


def majority(answers, extract=length_mod_3):
    return Counter(extract(answer) for answer in answers).most_common(1)[0][0]  # the first of equals


def tiny(max_tokens):
    sampling = SamplingParams(max_tokens=max_tokens, seed=3)
    return TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=64 << 20, sampling=sampling)


async def search(decoder, strategy, **options):
    root = await decoder.root("What is 2 + 3?")
    result = await strategy(root, **options)
    root.release()
    return result


def think(script, strategy, max_tokens, **options):
    """The result of a strategy on the script; max_tokens: of a line."""
    sampling = SamplingParams(max_tokens=max_tokens)
    return run_scripted(scripted_decoder(script), strategy, "Q: ", sampling=sampling, **options)
