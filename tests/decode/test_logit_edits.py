"""Biases, frequency and presence penalties: the sampler against a reference, branches however they grew."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from primitives import PROMPT, make, plain_logprobs
from sampling_reference import reference_probs, reference_token
from transformers import PreTrainedModel
from tts_decode import Branch, BranchState, SamplingParams, gather
from tts_decode.core.params import uniforms
from tts_decode.decoding import drawing, sampler
from tts_decode.decoding.logit_edits import LogitEdits, changed_logits

pytestmark = pytest.mark.usefixtures("one_thread")

PENALISED = SamplingParams(
    seed=5,
    max_step_tokens=6,
    frequency_penalty=0.7,
    presence_penalty=0.9,
    logit_bias={101: 4.0, 32: -100.0, 7: 2.5},
)


@pytest.fixture(params=["kernel", "torch"])
def sample(request: pytest.FixtureRequest) -> Callable[..., sampler.Sampled]:
    """As it is on the CPU; and what GPUs run, in torch."""
    return sampler.sample if request.param == "kernel" else sampler._sample_on_device


def draw(params: SamplingParams, u: float, history: list[int], prompt: int, vocab: int) -> sampler.Draw:
    return sampler.Draw(params, u, edits=LogitEdits(params, history, prompt, None, vocab))


@pytest.mark.parametrize("vocab", [2, 300, 3000])
def test_tokens_are_those_of_the_reference(sample: Callable[..., sampler.Sampled], vocab: int) -> None:
    rng = random.Random(vocab)
    torch.manual_seed(vocab)
    logits = torch.randn(120, vocab) * torch.rand(120, 1) * 4
    before = logits.clone()
    draws, expected = [], []
    for row in logits:
        history = [rng.randrange(-1, vocab) for _ in range(rng.randint(1, 40))]
        prompt, u = rng.randint(1, len(history)), rng.random()
        bias = {rng.randrange(vocab): rng.uniform(-100, 100) for _ in range(rng.choice([0, 1, 5]))}
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.6, 1.0]),
            top_k=rng.choice([0, 0, 7]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            suppress_token_ids=(1,) if rng.random() < 0.3 else (),
            frequency_penalty=rng.choice([0.0, rng.uniform(-2, 2)]),
            presence_penalty=rng.choice([0.0, rng.uniform(-2, 2)]),
            logit_bias=bias,
        )
        plain = rng.random() < 0.2  # drawn beside the others, by nothing but the filters
        draws.append(sampler.Draw(PLAIN, u) if plain else draw(params, u, history, prompt, vocab))
        expected.append(reference_token(row, PLAIN if plain else params, u, history, prompt))
    sampled = sample(logits, draws)
    assert torch.equal(logits, before)
    assert sampled.tokens == expected
    own = logits.double().log_softmax(-1)[torch.arange(120), torch.tensor(expected)]
    torch.testing.assert_close(torch.tensor(sampled.logprobs).double(), own, atol=1e-5, rtol=0)


PLAIN = SamplingParams(temperature=0.8, top_k=5)


def test_a_row_draws_alone_what_it_draws_beside_others(sample: Callable[..., sampler.Sampled]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(30, 700) * 3
    history = [[row, row, 5] for row in range(30)]
    edited = [draw(PENALISED, row / 30, history[row], 1, 700) for row in range(30)]
    draws = [d if row % 3 else sampler.Draw(PLAIN, d.uniform) for row, d in enumerate(edited)]
    together = sample(logits, draws)
    for row in range(30):
        alone = sampler.sample(logits[row : row + 1], draws[row : row + 1])
        assert alone.tokens[0] == together.tokens[row]
        if not row % 3 and sample is sampler.sample:
            assert [column[0] for column in alone] == [column[row] for column in together]


def test_a_bias_of_minus_100_bans_and_one_of_100_forces(sample: Callable[..., sampler.Sampled]) -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, -5.0]]).repeat(2, 1)
    params = [SamplingParams(logit_bias={0: -100}), SamplingParams(logit_bias={3: 100})]
    for u in (1e-9, 0.5, 0.999):
        tokens = sample(logits, [draw(p, u, [0], 1, 4) for p in params]).tokens
        assert tokens[0] in (1, 2, 3)
        assert tokens[1] == 3


@given(
    st.lists(st.integers(-30, 30), min_size=1, max_size=12),
    st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=4),
    st.lists(st.integers(-1, 11), max_size=20),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
@settings(max_examples=60)
def test_greedy_takes_the_greatest_changed_logit(
    whole: list[int], bias: dict[int, float], history: list[int], frequency: float, presence: float
) -> None:
    """Worked out by the formula of OpenAI's documentation, in float64."""
    vocab = len(whole)
    bias = {token: value for token, value in bias.items() if token < vocab}
    history = [token for token in history if token < vocab]
    params = SamplingParams(
        temperature=0, logit_bias=bias, frequency_penalty=frequency, presence_penalty=presence
    )
    changed = [
        logit
        + bias.get(token, 0.0)
        - history.count(token) * frequency
        - (presence if token in history else 0.0)
        for token, logit in enumerate(whole)
    ]
    (token,) = sampler.sample(
        torch.tensor([whole], dtype=torch.float32), [draw(params, 0.0, history, 0, vocab)]
    ).tokens
    assert changed[token] > max(changed) - 1e-4  # float32 at logits of up to 130


@given(
    st.lists(st.integers(-1, 20), max_size=30),
    st.integers(0, 30),
    st.lists(st.integers(0, 40), max_size=60),
    st.sampled_from([1.0, 1.3]),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([0.0, -0.9]),
)
@settings(max_examples=60)
def test_edits_grown_token_by_token_are_those_of_the_whole_text(
    history: list[int], prompt: int, more: list[int], repetition: float, frequency: float, presence: float
) -> None:
    """Against the formulas, in float64."""
    prompt = min(prompt, len(history))
    params = SamplingParams(
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
        logit_bias={3: 1.5, 40: -2.0},
    )
    edits = LogitEdits(params, history, prompt, None, 41)
    for token in more:
        edits.take(token)
    logits = torch.randn(2, 41, generator=torch.Generator().manual_seed(len(more)))
    index, values = changed_logits(logits, [(1, edits)])
    assert set(index[0].tolist()) == {1}
    changed = dict(zip(index[1].tolist(), values.tolist(), strict=True))
    assert len(changed) == len(values)
    text = history + more
    for token in range(41):
        old = float(logits[1, token])
        new = old + {3: 1.5, 40: -2.0}.get(token, 0.0)
        if token in text:
            new = new * repetition if new < 0 else new / repetition
        if count := text[prompt:].count(token):
            new -= count * frequency + presence
        assert changed.get(token, old) == pytest.approx(new, abs=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_named(sample: Callable[..., sampler.Sampled], bad: float) -> None:
    logits = torch.zeros(3, 200)
    logits[1, 101] = bad  # which has a bias
    with pytest.raises(ValueError, match="output logits hold NaN or inf in row 1"):
        sample(logits, [draw(PENALISED, 0.5, [1, 2], 1, 200)] * 3)


def test_all_rows_are_drawn_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], sampler.sample_tokens

    def counted(logits: torch.Tensor, *args: object, **options: object) -> object:
        calls.append(len(logits))
        return whole(logits, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sampler, "sample_tokens", counted)
    draws = [draw(PENALISED, 0.5, [1, 2], 1, 300), sampler.Draw(PLAIN, 0.5)] * 3
    sampler.sample(torch.randn(6, 300), draws)
    assert calls == [6]


# -- branches


def check_drawn(model: PreTrainedModel, branch: Branch, begin: int) -> None:
    """The branch's tokens from `begin` on are what a forward of the model by itself leads to."""
    logprobs = plain_logprobs(model, branch.tokens).double()
    for position in range(begin, branch.length):
        history = branch.tokens[:position]
        probs = reference_probs(logprobs[position - 1], branch.sampling, history, branch.prompt_length)
        u, token = uniforms([branch.seed], [position])[0], branch.tokens[position]
        high = float(probs[: token + 1].sum())
        assert high - float(probs[token]) - 1e-4 <= u <= high + 1e-4, position


def test_counts_are_right_however_a_branch_grew(model: PreTrainedModel) -> None:
    """Forks, cuts, forced text, a snapshot and replays: each branch continues from its own tokens."""
    decoder, other = make(model), make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT, PENALISED)
        await root.step()
        check_drawn(model, root, len(PROMPT))
        await root.extend("eeee  ee")
        early, late = *root.fork(1, at=len(PROMPT) + 3), *root.fork()
        root.truncate(root.length - 4)
        again = await other.restore(BranchState.from_dict(json.loads(json.dumps(late.snapshot().to_dict()))))
        steps = [(branch, branch.length) for branch in (root, early, late, again)]
        await gather(branch.step() for branch, _ in steps)
        for branch, begin in steps:
            check_drawn(model, branch, begin)
        assert again.tokens == late.tokens
        repeated = early.fork(1, at=early.length - 6, seeds=[early.seed])[0]
        await repeated.replay(early.steps[-1])
        first, second = await early.step(), await repeated.step()
        assert first == second

    asyncio.run(search())


def test_a_branch_does_not_depend_on_company(model: PreTrainedModel) -> None:
    async def drawn(company: Sequence[SamplingParams]) -> list[object]:
        decoder = make(model)
        branches = [await decoder.root(PROMPT, params) for params in (PENALISED, PLAIN, *company)]
        steps = await gather(branch.step(max_step_tokens=12) for branch in branches)
        return [(step.tokens, step.logprobs, step.entropies) for step in steps[:2]]

    others = [SamplingParams(seed=seed, frequency_penalty=seed - 1.0) for seed in range(4)]
    assert asyncio.run(drawn([])) == asyncio.run(drawn(others))


def test_only_those_who_ask_are_edited(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without penalties makes none of their calls."""
    decoder = make(model)

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LogitEdits, "__init__", refuse)
    monkeypatch.setattr(sampler, "changed_logits", refuse)
    plain = SamplingParams(max_step_tokens=4, repetition_penalty=1.2, suppress_token_ids=(3,))

    async def search() -> None:
        branch = await decoder.root(PROMPT, plain)
        await branch.step()

    asyncio.run(search())


def test_top_logprobs_are_the_models_own(model: PreTrainedModel) -> None:
    """Those of a plain forward, whatever the branch is drawn by; none where they are not asked for."""
    decoder = make(model)

    async def search() -> None:
        branch = await decoder.root(PROMPT, PENALISED)
        step = await branch.step(top_logprobs=5, temperature=0.0)
        assert len(step.top_logprobs) == len(step.tokens)
        rows = plain_logprobs(model, branch.tokens)[len(PROMPT) - 1 : -1]
        for top, row, token, logprob in zip(step.top_logprobs, rows, step.tokens, step.logprobs, strict=True):
            values, ids = row.topk(5)
            assert [token for token, _ in top] == ids.tolist()
            torch.testing.assert_close(torch.tensor([value for _, value in top]), values, atol=2e-4, rtol=0)
            assert dict(top).get(token, logprob) == logprob
        everything = await branch.step(top_logprobs=10_000, max_step_tokens=1)
        assert len(everything.top_logprobs[0]) == decoder.vocab_size
        assert (await branch.step()).top_logprobs == ()

    asyncio.run(search())


def test_the_likeliest_of_all_branches_are_listed_at_once(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who ask for the same number."""
    decoder, calls, whole = make(model), [], drawing.top_logprobs

    def counted(logits: torch.Tensor, count: int, log_sums: list[float]) -> object:
        calls.append((len(logits), count))
        return whole(logits, count, log_sums)

    monkeypatch.setattr(drawing, "top_logprobs", counted)

    async def search() -> None:
        root = await decoder.root(PROMPT, SamplingParams(max_step_tokens=2))
        counts = [3, 0, 3, 5, 3]
        steps = await gather(
            branch.step(top_logprobs=count) for branch, count in zip(root.fork(5), counts, strict=True)
        )
        assert [[len(top) for top in step.top_logprobs] for step in steps] == [
            [count] * 2 if count else [] for count in counts
        ]
        alone = await root.copy().step(top_logprobs=3, max_step_tokens=1)
        assert alone.top_logprobs[0] == steps[0].top_logprobs[0]

    asyncio.run(search())
    assert sorted(calls) == [(1, 3), *[(1, 5)] * 2, *[(3, 3)] * 2]


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(1, 12)
)
@settings(max_examples=80)
def test_lists_are_by_probability_and_then_by_id(rows: list[list[int]], count: int) -> None:
    listed = sampler.top_logprobs(torch.tensor(rows, dtype=torch.float32), count, [0.5] * len(rows))
    for row, top in zip(rows, listed, strict=True):
        ranked = sorted(enumerate(row), key=lambda pair: (-pair[1], pair[0]))
        assert list(top) == [(token, logit - 0.5) for token, logit in ranked[:count]]


def test_of_equally_probable_tokens_the_lowest_ids_are_listed() -> None:
    row = torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    lse = float(row.double().logsumexp(-1))
    (listed,) = sampler.top_logprobs(row[None], 4, [lse])
    assert [token for token, _ in listed] == [1, 3, 2, 4]
    assert listed[0][1] == pytest.approx(2 - lse)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"frequency_penalty": 2.1}, ValueError, "frequency_penalty: got 2.1"),
        ({"presence_penalty": float("nan")}, ValueError, "presence_penalty: got nan"),
        ({"presence_penalty": "1"}, TypeError, "presence_penalty: got '1'"),
        ({"logit_bias": {3: 101}}, ValueError, r"logit_bias\[3\]: got 101"),
        ({"logit_bias": {"3": 1}}, TypeError, "token id of logit_bias: got '3'"),
        ({"logit_bias": {-1: 1}}, ValueError, "token id of logit_bias: got -1"),
        ({"logit_bias": [(3, 1.0), (3, 2.0)]}, ValueError, "token 3 twice"),
        ({"logit_bias": 5}, TypeError, "logit_bias: got 5"),
        ({"logit_bias": [3]}, TypeError, "logit_bias: got 3, expected pairs"),
        ({"top_logprobs": -1}, ValueError, "top_logprobs: got -1"),
    ],
)
def test_parameters_out_of_range(options: dict[str, object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        SamplingParams(**options)  # type: ignore[arg-type]


def test_a_bias_of_a_token_that_is_not_there_is_refused(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        branch = await decoder.root(PROMPT)
        with pytest.raises(ValueError, match="logit_bias: got token 260, expected ids"):
            await branch.step(logit_bias={260: 1.0})
        with pytest.raises(TypeError, match="adapter"):  # a field that there is not, as of one adapter a call
            await branch.step(adapter="other")
        assert (await branch.step(max_step_tokens=1)).tokens

    asyncio.run(search())


def test_parameters_go_through_json() -> None:
    params = SamplingParams(logit_bias={5: 1.5, 2: -100}, frequency_penalty=1, stop="x", top_logprobs=3)
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert params.bias_pairs == ((2, -100.0), (5, 1.5))
    assert hash(params) == hash(SamplingParams.from_dict(params.to_dict()))
