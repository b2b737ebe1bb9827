"""Token-level beam search against transformers' generate(num_beams=)."""

from dataclasses import replace

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import Budget, Choice, SamplingParams, TreeDecoder
from tts_decode.search import lm_beam_search

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(b"Count: one, two")
SETTINGS = [
    {"n": 1, "length_penalty": 1.0, "early_stopping": False, "max_tokens": 10},
    {"n": 2, "length_penalty": 1.0, "early_stopping": False, "max_tokens": 12},
    {"n": 4, "length_penalty": 1.0, "early_stopping": False, "max_tokens": 20},
    {"n": 4, "length_penalty": 0.0, "early_stopping": "never", "max_tokens": 20},
    {"n": 3, "length_penalty": 2.0, "early_stopping": "never", "max_tokens": 12},
    {"n": 3, "length_penalty": -1.0, "early_stopping": False, "max_tokens": 12},
    {"n": 4, "length_penalty": 0.5, "early_stopping": True, "max_tokens": 20},
    {"n": 6, "length_penalty": 1.0, "early_stopping": False, "max_tokens": 1},
]
# One end token, which random models rarely choose, and enough of them that sequences of many lengths end.
ENDS = [[256], [256, *range(0, 256, 16)]]


def generate(model, n, length_penalty, early_stopping, max_tokens):
    """Tokens after the prompt and scores of the sequences that transformers returns."""
    ids = torch.tensor([PROMPT])
    options = {"num_beams": n, "length_penalty": length_penalty, "early_stopping": early_stopping}
    options |= {"num_return_sequences": n, "max_new_tokens": max_tokens, "do_sample": False}
    returned = {"return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **returned)
    ends = model.generation_config.eos_token_id
    sequences = []
    for tokens in found.sequences[:, len(PROMPT) :].tolist():
        length = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
        sequences.append(tuple(tokens[:length]))
    return sequences, None if n == 1 else found.sequences_scores.tolist()


async def search(decoder, sampling, budget=None, **options):
    root = await decoder.root(PROMPT, sampling, budget)
    result = await lm_beam_search(root, **options)
    root.release()
    return result


CASES = [
    *(("llama", ends, setting) for ends in ENDS for setting in SETTINGS),
    *((family, ENDS[1], setting) for family in ("qwen3", "gemma3") for setting in SETTINGS[2:4]),
]


@pytest.mark.parametrize(("family", "ends", "setting"), CASES)
def test_finds_what_generate_finds(family, ends, setting):
    model = tiny_model(family)
    model.generation_config.eos_token_id = ends
    sequences, scores = generate(model, **setting)
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=16 << 20)
    options = {key: setting[key] for key in ("n", "length_penalty", "early_stopping")}
    result = decoder.run(search(decoder, SamplingParams(max_tokens=setting["max_tokens"]), **options))
    assert [c.tokens for c in result.candidates] == sequences
    assert result.best.tokens == sequences[0]
    if scores is not None:
        assert [c.score for c in result.candidates] == pytest.approx(scores, rel=1e-5, abs=1e-5)
    for candidate in result.candidates:
        assert candidate.finish_reason == ("eos" if candidate.tokens[-1] in ends else "max_tokens")
        assert candidate.score == pytest.approx(
            candidate.logprob / len(candidate.tokens) ** setting["length_penalty"]
        )
    assert decoder.stats().resident_bytes == 0


def test_a_step_is_one_forward_and_dropped_beams_return_their_pages():
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=16 << 20)
    result = decoder.run(search(decoder, SamplingParams(max_tokens=12), n=4))
    assert decoder.stats().steps == 12  # the prompt, then one a token but for the last, which needs no KV
    assert decoder.stats().forward_tokens == len(PROMPT) + 4 * 11
    assert result.stats.generated_tokens > 4 * 11
    # The prompt's page, and a page of its own for each of 4 old and 4 new beams at most.
    assert decoder.stats().peak_bytes <= 10 * decoder.stats().page_bytes


def test_budget_counts_beam_tokens():
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=16 << 20)
    budget = Budget(max_tokens=14)
    result = decoder.run(search(decoder, SamplingParams(max_tokens=30), budget, n=4))
    assert budget.tokens_used == 12  # 3 steps of 4 beams; a fourth does not fit
    assert {len(c.tokens) for c in result.candidates} == {3}
    assert result.best.score == pytest.approx(max(c.logprob for c in result.candidates) / 3)
    assert result.best.score == max(c.score for c in result.candidates)


@pytest.mark.parametrize(("max_tokens", "reason"), [(9, "length"), (8, "max_tokens"), (5, "max_tokens")])
def test_the_models_last_position_ends_the_search(max_tokens, reason):
    model = tiny_model()
    model.config.max_position_embeddings = len(PROMPT) + 8
    decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=16 << 20)
    result = decoder.run(search(decoder, SamplingParams(max_tokens=max_tokens), n=2))
    assert {len(c.tokens) for c in result.candidates} == {min(max_tokens, 8)}
    assert {c.finish_reason for c in result.candidates} == {reason}


LETTERS = "aeiou"


def test_a_sequence_that_stop_when_takes_is_finished_as_by_an_end_token():
    """The letters are end tokens of one model and what the predicate takes in the other search."""
    letters = [ord(letter) for letter in LETTERS]
    sampling = SamplingParams(max_tokens=12)
    found = []
    for ends, stop_when in (([256, *letters], None), ([256], lambda text: text.endswith(tuple(LETTERS)))):
        model = tiny_model()
        model.generation_config.eos_token_id = ends
        decoder = TreeDecoder(model, byte_tokenizer(), kv_bytes=16 << 20)
        own = replace(sampling, stop_when=stop_when)
        result = decoder.run(search(decoder, own, n=12, length_penalty=0.0, early_stopping="never"))
        found.append([(c.tokens, c.score) for c in result.candidates])
        by_letter = [c for c in result.candidates if c.tokens[-1] in letters]
        assert {c.finish_reason for c in by_letter} == {"eos" if stop_when is None else "stop_when"}
        assert all(c.complete for c in by_letter)
    assert found[0] == found[1]


def test_a_constraint_is_refused():
    decoder = TreeDecoder(tiny_model(), byte_tokenizer(), kv_bytes=16 << 20)
    with pytest.raises(ValueError, match="constraint: got one, expected None: lm_beam_search ranks"):
        decoder.run(search(decoder, SamplingParams(constraint=Choice(["a", "b"])), n=2))
