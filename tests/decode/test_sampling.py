"""The sampler against transformers' logits processors and float64 distributions."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from sampling_reference import reference_probs, reference_token
from tts_decode.core.params import SamplingParams, mix, uniforms
from tts_decode.decoding import sampler
from tts_decode.decoding.sampler import token_logprobs

from tts_kernels import reference

pytestmark = pytest.mark.usefixtures("one_thread")


Sampler = Callable[..., sampler.Sampled]


@pytest.fixture(params=["kernel", "torch"])
def sample(request: pytest.FixtureRequest) -> Sampler:
    """As it is on the CPU; and what GPUs run, in torch. Called with a list for each part of a draw."""
    run = sampler.sample if request.param == "kernel" else sampler._sample_on_device

    def sampled(logits: torch.Tensor, *parts: list[Any]) -> sampler.Sampled:
        draws = zip(*parts, strict=True)
        return run(logits, [sampler.Draw(params, u, np.unique(history)) for params, u, history in draws])

    return sampled


def random_params(rng: random.Random, vocab: int) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 1.7]),
        top_k=rng.choice([0, 0, 1, 5, 40, 10_000]),
        top_p=rng.choice([1.0, 1.0, 0.2, 0.9, 0.999]),
        min_p=rng.choice([0.0, 0.0, 0.05, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
        suppress_token_ids=tuple(rng.sample(range(vocab), rng.choice([0, 0, 1, vocab // 2]))),
    )


@pytest.mark.parametrize("vocab", [2, 300, 2048, 5000])
def test_tokens_are_those_of_transformers_filters(sample: Sampler, vocab: int) -> None:
    rng = random.Random(vocab)
    torch.manual_seed(vocab)
    rows = 150
    logits = torch.randn(rows, vocab) * torch.rand(rows, 1) * 4
    params = [random_params(rng, vocab) for _ in range(rows)]
    uniforms = [rng.random() for _ in range(rows)]
    history = [[rng.randrange(vocab) for _ in range(rng.randint(1, 30))] for _ in range(rows)]
    before = logits.clone()
    tokens = sample(logits, params, uniforms, history).tokens
    assert torch.equal(logits, before)
    for row in range(rows):
        expected = reference_token(logits[row], params[row], uniforms[row], history[row])
        assert tokens[row] == expected, (row, params[row])


def assert_drawn_from(
    sample: Sampler, logits: torch.Tensor, params: SamplingParams, probs: torch.Tensor
) -> None:
    """Each token that is not improbable comes at both ends of its interval of the CDF."""
    tokens = (probs > 1e-5).nonzero()[:, 0]
    high = probs.cumsum(-1)[tokens]
    low = high - probs[tokens]
    inside = 2e-6 + 0.01 * probs[tokens]  # more than float32 sums over the vocabulary are off
    uniforms = torch.cat([low + inside, high - inside]).tolist()
    rows = logits.expand(len(uniforms), -1)
    drawn = sample(rows, [params] * len(uniforms), uniforms, [[]] * len(uniforms)).tokens
    assert drawn == tokens.tolist() * 2, params


def test_ties_at_the_top_k_cut_count_for_top_p(sample: Sampler) -> None:
    """Of the mass 1, 3 * 0.368 of `[3, 2, 2, 2]` the share 0.73 is cut off behind two of those tied."""
    logits, params = torch.tensor([3.0, 2.0, 2.0, 2.0, 0.0]), SamplingParams(top_k=2, top_p=0.73)
    probs = reference_probs(logits.double(), params, [])
    torch.testing.assert_close(probs, torch.tensor([0.576, 0, 0.212, 0.212, 0]).double(), atol=5e-4, rtol=0)
    assert_drawn_from(sample, logits, params, probs)


@pytest.mark.parametrize("vocab", [1, 2, 5, 16, 40, 256, 257, 1500])
def test_many_ties_are_cut_as_by_transformers(
    sample: Sampler, vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of equals top-p drops is up to the sort: torch's is stable up to 16 values, and here beyond."""
    monkeypatch.setattr(torch, "sort", functools.partial(torch.sort, stable=True))
    rng = random.Random(vocab)
    torch.manual_seed(vocab)
    for _ in range(max(12, 300 // vocab)):
        levels = rng.choice([1, 2, 4, 12])
        logits = torch.randint(-levels, levels, (vocab,)) / rng.choice([1.0, 2.0])
        params = SamplingParams(
            temperature=rng.choice([0.5, 1.0, 2.0]),
            top_k=rng.choice([0, 1, 2, 5, vocab - 1, vocab, 300]) if vocab > 1 else 1,
            top_p=rng.choice([1.0, rng.uniform(0.01, 1), rng.uniform(0.7, 1)]),
            min_p=rng.choice([0.0, 0.0, rng.uniform(0, 1)]),
            suppress_token_ids=tuple(rng.sample(range(vocab), rng.choice([0, 0, vocab // 3]))),
        )
        probs = reference_probs(logits.double(), params, [])
        assert_drawn_from(sample, logits, params, probs)
        row = [params.temperature, params.top_k, params.top_p, params.min_p, 1.0, 0.0]
        suppressed = torch.tensor([(0, token) for token in params.suppress_token_ids]).reshape(-1, 2)
        found, _, _ = reference.sample_tokens(
            logits[None], torch.tensor([row]).double(), suppressed=suppressed
        )
        torch.testing.assert_close(found[0], probs)


def test_a_row_does_not_depend_on_its_batch(sample: Sampler) -> None:
    rng = random.Random(1)
    torch.manual_seed(1)
    logits = torch.randn(40, 3000) * 3
    params = [random_params(rng, 3000) for _ in range(40)]
    uniforms = [rng.random() for _ in range(40)]
    history = [[rng.randrange(3000)] for _ in range(40)]
    together = sample(logits, params, uniforms, history)
    for row in range(40):
        alone = sample(logits[row : row + 1], [params[row]], [uniforms[row]], [history[row]])
        assert alone.tokens[0] == together.tokens[row]


def test_logprobs_and_entropies_are_the_unfiltered_distributions(
    sample: Sampler, request: pytest.FixtureRequest
) -> None:
    torch.manual_seed(2)
    logits = torch.randn(20, 777) * 5
    logits[:, 5] = -torch.inf
    params = [SamplingParams(temperature=0.5, top_k=3, repetition_penalty=1.5)] * 20
    sampled = sample(logits, params, [0.5] * 20, [[1, 2, 3]] * 20)
    logprobs = logits.double().log_softmax(-1)
    entropies = torch.special.entr(logprobs.exp()).sum(-1)
    chosen = logprobs[torch.arange(20), torch.tensor(sampled.tokens)]
    # float32 exp and sums over 777 terms: a few 1e-6 absolute
    torch.testing.assert_close(torch.tensor(sampled.logprobs).double(), chosen, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(sampled.entropies).double(), entropies, atol=1e-5, rtol=0)
    if request.node.callspec.params["sample"] == "kernel":
        assert token_logprobs(logits, sampled.tokens) == (sampled.logprobs, sampled.entropies)


def test_greedy_takes_the_first_of_equals(sample: Sampler, request: pytest.FixtureRequest) -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert sample(logits, [SamplingParams(temperature=0)], [0.9], [[0]]).tokens == [1]


@pytest.mark.parametrize("u", [0.0, 0.5, 1.0 - 2.0**-53])
def test_extreme_uniforms_never_take_an_impossible_token(sample: Sampler, u: float) -> None:
    logits = torch.full((3, 1000), -torch.inf)
    logits[0, 0] = logits[1, 999] = logits[2, 500] = 3.0
    logits[2, 10] = -90.0  # weight below the float32 resolution of the sum
    tokens = sample(logits, [SamplingParams()] * 3, [u] * 3, [[0]] * 3).tokens
    assert tokens[:2] == [0, 999]
    assert tokens[2] in (10, 500)


def test_flat_top_p_needs_more_than_the_first_candidates(sample: Sampler) -> None:
    logits = torch.linspace(0, 1e-3, 6000)[None]
    params = SamplingParams(top_p=0.9)
    for u in (0.0, 0.3, 0.999):
        assert sample(logits, [params], [u], [[0]]).tokens == [reference_token(logits[0], params, u, [0])]


def test_tiny_temperature_is_greedy(sample: Sampler) -> None:
    logits = torch.randn(1, 100)
    assert sample(logits, [SamplingParams(temperature=1e-30)], [0.7], [[0]]).tokens == [int(logits.argmax())]


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40])
def test_an_extreme_penalty_repeats_or_avoids_what_was_seen(sample: Sampler, penalty: float) -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0, -2.0]])
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, repetition_penalty=penalty)
        (token,), (logprob,), _, _ = sample(logits, [params], [0.5], [[0, 3]])
        assert token == 0 if penalty < 1 else token in (1, 2)
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[0, token]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_logits_are_an_error(sample: Sampler, bad: float) -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = bad
    with pytest.raises(ValueError, match="logits hold NaN or inf in row 1"):
        sample(logits, [SamplingParams()] * 3, [0.5] * 3, [[0]] * 3)
    with pytest.raises(ValueError, match="logits hold NaN or inf"):
        sample(torch.full((1, 5), -torch.inf), [SamplingParams()], [0.5], [[0]])


def test_uniforms_are_a_function_of_seed_and_position() -> None:
    draws = torch.tensor([uniforms([seed] * 200, range(200)) for seed in range(200)], dtype=torch.float64)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert len(draws.unique()) == draws.numel()
    # 40,000 draws: the standard error of the mean is 0.0014, of a decile 0.0015
    assert abs(draws.mean().item() - 0.5) < 0.01
    for low in range(10):
        share = ((draws >= low / 10) & (draws < (low + 1) / 10)).double().mean().item()
        assert abs(share - 0.1) < 0.01
    rng = random.Random(2)
    seeds = [rng.randrange(-(2**70), 2**70) for _ in range(100)]
    positions = [rng.randrange(2**20) for _ in seeds]
    alone = [uniforms([seed], [position])[0] for seed, position in zip(seeds, positions, strict=True)]
    assert uniforms(seeds, positions) == alone
    assert alone == [(mix(*pair) >> 11) / 2**53 for pair in zip(seeds, positions, strict=True)]
    assert mix(-1, 2) != mix(2, -1)
    assert mix(2**64 + 7) == mix(7)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"temperature": -0.1}, "temperature: got -0.1, expected a finite number >= 0"),
        ({"temperature": float("nan")}, "temperature: got nan, expected"),
        ({"temperature": float("inf")}, "temperature: got inf, expected"),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a finite number, 0 < top_p <= 1"),
        ({"top_p": 1.1}, "top_p: got 1.1, expected"),
        ({"min_p": -0.5}, "min_p: got -0.5, expected a finite number, 0 <= min_p <= 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: got 0.0, expected a finite number > 0"),
        ({"top_k": -1}, "top_k: got -1, expected >= 0"),
        ({"max_tokens": 0}, "max_tokens: got 0, expected >= 1"),
        ({"max_step_tokens": 0}, "max_step_tokens: got 0, expected >= 1"),
        ({"stop": ("",)}, r"stop\[0\]: got '', expected a text that is not empty"),
        ({"stop_token_ids": (-1,)}, r"stop_token_ids\[0\]: got -1, expected >= 0"),
        ({"suppress_token_ids": (3, -1)}, r"suppress_token_ids\[1\]: got -1, expected >= 0"),
    ],
)
def test_parameters_out_of_range(options: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        SamplingParams(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"seed": None},
        {"max_tokens": True},
        {"stop": 5},
        {"stop_token_ids": 5},
    ],
)
def test_parameters_of_wrong_type(options: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        SamplingParams(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("stop", "a string or a sequence of strings"), ("suppress_token_ids", "a sequence of token ids")],
)
def test_what_is_no_sequence_is_told_what_is_taken(name: str, expected: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: got int, expected {expected}$"):
        SamplingParams(**{name: 1})  # type: ignore[arg-type]


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)  # type: ignore[arg-type]


def test_suppressed_tokens_are_never_drawn_and_leave_the_log_probabilities(
    sample: Sampler,
) -> None:
    """Also the only finite ones; a row beside them draws what it draws alone."""
    logits = torch.tensor([[9.0, -torch.inf, -torch.inf, -torch.inf], [9.0, 1.0, 0.0, -torch.inf]])
    rows = torch.stack([logits[0], logits[1], logits[1]])
    for temperature in (0.0, 1.0):
        for u in (0.0, 0.5, 0.999):
            plain = SamplingParams(temperature=temperature)
            params = [SamplingParams(temperature=temperature, suppress_token_ids=(0,))] * 2 + [plain]
            drawn = sample(rows, params, [u] * 3, [[]] * 3)
            assert drawn.tokens[0] in (1, 2, 3)
            assert drawn.tokens[1] in (1, 2)
            assert drawn.tokens[2] == sample(rows[2:], [plain], [u], [[]]).tokens[0]
            expected = logits[1].log_softmax(-1)[drawn.tokens[1]].item()
            assert drawn.logprobs[1] == pytest.approx(expected, abs=1e-6)
            assert drawn.entropies[1] == drawn.entropies[2]


def test_numbers_of_numpy_are_kept_as_python_s() -> None:
    """They go to JSON, and integers of numpy overflow in the hash of the seed."""
    given = {
        "temperature": np.float32(0.5),
        "top_k": np.int64(3),
        "seed": np.uint64(2**64 - 1),
        "stop_token_ids": np.array([1]),
    }
    params = SamplingParams(**given)
    assert params == SamplingParams(0.5, 3, seed=2**64 - 1, stop_token_ids=(1,))
    assert [type(value) for value in asdict(params).values()] == [
        type(value) for value in asdict(SamplingParams(0.5, 3)).values()
    ]
    assert type(params.stop_token_ids[0]) is int
