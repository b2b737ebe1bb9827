"""ST-BoN against a transcription of its authors' code over the hidden states of transformers' own forward."""

from __future__ import annotations

from copy import deepcopy

import pytest
from published_st_bon import window, winner
from tiny_models import EOS, byte_tokenizer, tiny_model
from tts_decode import SamplingParams, TreeDecoder
from tts_decode.default_model import DEFAULT_MODEL
from tts_decode.errors import ModelLoadError
from tts_decode.model.loading import load_model
from tts_decode.search import SearchResult, st_bon
from tts_decode.tasks import default_tasks


def samples_of(result: SearchResult) -> dict[int, tuple[int, ...]]:
    """Tokens of each sample, by its last node, in the order of the forks."""
    tree, samples = result.tree, {}
    for leaf in tree:
        if leaf.status in ("pruned", "finished", "cut"):
            tokens, node, first = (), leaf, leaf.id
            while node.parent >= 0:
                tokens, first, node = (*node.tokens, *tokens), node.id, tree[node.parent]
            samples[leaf.id] = first, tokens
    return {leaf: tokens for leaf, (_, tokens) in sorted(samples.items(), key=lambda item: item[1][0])}


def search(
    decoder: TreeDecoder, prompt: object, n: int, tau_coeff: float, **sampling: object
) -> SearchResult:
    async def run() -> SearchResult:
        root = await decoder.root(prompt, SamplingParams(**sampling))
        result = await st_bon(root, n=n, tau_coeff=tau_coeff)
        root.release()
        return result

    return decoder.run(run())


def check_winner(model: object, prompt: list[int], result: SearchResult, tau_coeff: float) -> None:
    """The winner is the published one; the others were cut at the window's end."""
    samples = samples_of(result)
    won = list(samples).index(result.best.node)
    expected, votes = winner(model, prompt, list(samples.values()), EOS, tau_coeff)
    assert won == expected, votes
    _, end = window(list(samples.values()), EOS, tau_coeff)
    assert all(len(sample) == end for node, sample in samples.items() if node != result.best.node)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_winner_is_the_published_one(family: str, seed: int) -> None:
    model = tiny_model(family, seed=seed)
    plain = deepcopy(model)  # which hidden states leave hooks on
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24)
    sampling = {"max_tokens": 60, "seed": seed, "suppress_token_ids": (EOS,)}
    result = search(decoder, "What is 2 + 3?", 6, 4.0, **sampling)
    check_winner(plain, list(b"What is 2 + 3?"), result, 4.0)


@pytest.mark.usefixtures("one_thread")
def test_the_winner_is_the_published_one_for_questions_to_the_default_model() -> None:
    try:
        model, tokenizer = load_model(DEFAULT_MODEL, "float32")
    except ModelLoadError as missing:
        pytest.skip(str(missing))
    plain, _ = load_model(DEFAULT_MODEL, "float32", pack_weights=False)
    decoder = TreeDecoder(model, tokenizer, kv_bytes=1 << 28, check=False)
    for seed, task in enumerate(default_tasks(4)):
        prompt = [{"role": "user", "content": task.prompt}]
        eos = tuple(decoder.eos_token_ids)
        sampling = {"temperature": 0.8, "max_tokens": 32, "seed": seed, "suppress_token_ids": eos}
        result = search(decoder, prompt, 4, 1.0, **sampling)
        check_winner(plain, decoder.prompt_ids(prompt), result, 1.0)


@pytest.mark.usefixtures("one_thread")
def test_a_sample_that_ends_opens_the_window() -> None:
    """Its mean stays as it was; the search ends with one candidate."""
    model = tiny_model(seed=5)
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=1 << 24)
    decoder.eos_token_ids = frozenset(range(0, 260, 3))
    result = search(decoder, "What is 2 + 3?", 4, 3.0, max_tokens=40, seed=2, temperature=1.5)
    assert len(result.candidates) == 1
    assert len(samples_of(result)) == 4
