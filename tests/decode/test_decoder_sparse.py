"""TreeDecoder(sparse=): what is chosen is what is read, and its cost is accounted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from search_options import small_options
from tiny_models import byte_tokenizer, tiny_model
from tts_decode import Branch, SamplingParams, SparseConfig, TreeDecoder, gather
from tts_decode.model.sparse import parse_budget
from tts_decode.search import STRATEGIES

import tts_kernels
from tts_kernels import Selection

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = list(b"The quick brown fox jumps over the lazy dog. " * 7)  # 315 tokens, 20 pages
SMALL = {"dense_layers": 1, "min_pages": 1, "recent": 1}


def make_decoder(sparse: SparseConfig | None, family: str = "llama", **options: Any) -> TreeDecoder:
    return TreeDecoder(tiny_model(family), byte_tokenizer(), kv_bytes=1 << 23, sparse=sparse, **options)


async def logprobs_after(decoder: TreeDecoder, tokens: list[int]) -> list[torch.Tensor]:
    """Of the next token after each of `tokens`, fed one by one behind the prompt."""
    root = await decoder.root(PROMPT)
    found = []
    for token in tokens:
        await root.extend([token])
        found.append(await root.next_logprobs())
    root.release()
    return found


@pytest.mark.parametrize("summaries", ["mean", "minmax", "quarters"])
def test_a_budget_beyond_the_pages_is_dense(summaries: Any) -> None:
    sparse = make_decoder(SparseConfig(budget=10**6, summaries=summaries, dense_layers=0))
    dense = make_decoder(None)
    for a, b in zip(*(d.run(logprobs_after(d, list(b"abc"))) for d in (sparse, dense)), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_chosen_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice of all pages but two gives the bits of a branch from which these two were evicted."""
    gone = [3, 11]

    def choose(q: torch.Tensor, summaries: torch.Tensor, plan: Any, *_: Any, **__: Any) -> Selection:
        chosen = torch.ones((summaries.shape[1], len(q), plan.max_columns), dtype=torch.bool)
        chosen[..., gone] = False
        return Selection.from_bools(chosen)

    monkeypatch.setattr("tts_decode.model.sparse.select_pages", choose)
    sparse, evicted = make_decoder(SparseConfig(budget=4, dense_layers=0)), make_decoder(None)

    async def without_pages(decoder: TreeDecoder) -> list[torch.Tensor]:
        root = await decoder.root(PROMPT)
        decoder.runtime.tree.evict([root.id], gone)
        found = []
        for token in b"xyz":
            await root.extend([token])
            found.append(await root.next_logprobs())
        return found

    expected = evicted.run(without_pages(evicted))
    for a, b in zip(sparse.run(logprobs_after(sparse, list(b"xyz"))), expected, strict=True):
        assert torch.equal(a, b)


def test_first_layers_windows_and_prompts_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = tts_kernels.select_pages

    def count(q: torch.Tensor, *args: Any, **kwargs: Any) -> Selection:
        calls.append(len(q))
        return real(q, *args, **kwargs)

    monkeypatch.setattr("tts_decode.model.sparse.select_pages", count)

    def rows(config: SparseConfig, family: str = "llama") -> list[int]:
        calls.clear()
        decoder = make_decoder(config, family)
        decoder.run(logprobs_after(decoder, [7]))
        return calls.copy()

    assert rows(SparseConfig(budget=4, dense_layers=0)) == [1] * 3
    assert rows(SparseConfig(budget=4, dense_layers=2)) == [1]
    assert rows(SparseConfig(budget=4, dense_layers=0), "mistral") == []  # sliding windows everywhere
    assert rows(SparseConfig(budget=4, dense_layers=0, prompts=True)) == [len(PROMPT)] * 3 + [1] * 3


@pytest.mark.parametrize("share", ["branch", "siblings", "tree"])
@pytest.mark.parametrize("name", ["best_of_n", "lm_beam_search", "ets", "mcts", "particle_gibbs", "st_bon"])
def test_strategies_run_sparse(name: str, share: Any) -> None:
    sparse = SparseConfig(budget=0.3, share=share, keep_tail=False, **SMALL)  # type: ignore[arg-type]
    decoder = make_decoder(sparse)
    sampling = SamplingParams(temperature=0.8, max_tokens=24, max_step_tokens=8)

    async def search() -> Any:
        root = await decoder.root(PROMPT, sampling)
        try:
            return await STRATEGIES[name](root, **small_options(name))
        finally:
            root.release()

    result = decoder.run(search())
    assert all(np.isfinite(candidate.logprob) for candidate in result.candidates)
    stats = decoder.stats()
    assert stats.resident_bytes == 0
    assert stats.cost.selection.flops > 0


def test_the_cost_of_a_step_is_that_of_the_pages_read() -> None:
    """Attention of 3 decoding branches on 20 pages: 1 dense layer, 2 that read 6 pages of 2 KV heads each."""
    decoder = make_decoder(SparseConfig(budget=6, share="tree", **SMALL))  # type: ignore[arg-type]

    async def step() -> tuple[Any, Any]:
        root = await decoder.root(PROMPT)
        branches = root.fork(3)
        for token in (7, 5):
            before = decoder.stats().cost
            await gather(branch.extend([token]) for branch in branches)
            await gather(branch.next_logprobs() for branch in branches)
        return before, decoder.stats().cost

    before, after = decoder.run(step())
    shape = decoder.runtime.engine.shape
    page_bytes = 2 * 16 * shape.head_dim * shape.kv_bytes
    # 19 shared pages and 3 tails; of the former the sink and the 4 best are read, one set for all.
    dense_loads, sparse_loads = 22 * 2, 2 * (5 + 3) * 2
    assert (after - before).attention.bytes == (dense_loads + sparse_loads) * page_bytes
    assert (after - before).selection.bytes == 2 * 22 * 2 * shape.head_dim * shape.summary_bytes


def test_bad_settings_are_refused() -> None:
    for options, message in [
        ({"budget": 0}, "budget: got 0, expected >= 1"),
        (
            {"budget": 1.5},
            "budget: got 1.5, expected an int, pages, or a float, a share of them, 0 < budget < 1",
        ),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a finite number, 0 < top_p <= 1"),
        ({"summaries": "max"}, "summaries: got 'max', expected one of 'mean', 'minmax'"),
        ({"share": "all"}, "share: got 'all', expected one of 'branch', 'siblings', 'tree'"),
        ({"recent": 0}, "recent: got 0, expected >= 1"),
        ({"dense_layers": -1}, "dense_layers: got -1, expected >= 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            SparseConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="budget: got '1/8', expected an int, pages"):
        SparseConfig(budget="1/8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dense_layers: got 3, expected fewer than the model's 3 layers"):
        make_decoder(SparseConfig(dense_layers=3))
    with pytest.raises(TypeError, match="sparse: got dict, expected a SparseConfig"):
        make_decoder({"budget": 4})  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("1/8", 0.125), ("0.25", 0.25)])
def test_budgets_as_text(text: str, value: float) -> None:
    assert parse_budget(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "8/8", "1/0", "a", "", "1e3"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number of pages, or a share"):
        parse_budget(text)


def test_a_branch_is_cut_and_forked_as_ever() -> None:
    """Summaries follow the pages: log-probabilities after forks and cuts equal those of a fresh prompt."""
    decoder = make_decoder(SparseConfig(budget=5, keep_tail=False, **SMALL))  # type: ignore[arg-type]

    async def check() -> None:
        root = await decoder.root(PROMPT)
        child = root.fork(1, at=301)[0]
        await one_by_one(child, PROMPT[301:308])
        other = child.fork(1)[0]
        await one_by_one(child, list(b"abcdefghijk"))
        child.truncate(311)
        found = await child.next_logprobs()
        tokens = list(child.tokens)
        for branch in (root, child, other):
            branch.release()
        fresh = await decoder.root(tokens[:300])
        await one_by_one(fresh, tokens[300:])
        torch.testing.assert_close(await fresh.next_logprobs(), found, rtol=1e-4, atol=1e-4)

    async def one_by_one(branch: Branch, tokens: list[int]) -> None:
        for token in tokens:
            await branch.extend([token])
            await branch.next_logprobs()

    decoder.run(check())
