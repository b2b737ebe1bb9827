"""Compression per layer: what a branch attends to afterwards, whose pages it touches, and what it refuses."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import byte_tokenizer, tiny_model
from transformers import DynamicCache, PreTrainedModel
from tts_decode import (
    Branch,
    Compression,
    OutOfPagesError,
    SamplingParams,
    SparseConfig,
    TreeDecoder,
    UnsupportedModelError,
)
from tts_decode.select import kept_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = 16
PROMPT = list(b"The quick brown fox jumps over the lazy dog, and the dog sleeps on by the river. " * 3)
FORCED = list(b"It runs on.")


# --- the rule


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    st.data(),
)
def test_the_most_important_are_kept_and_of_equals_the_earlier(rows: list[list[int]], data: Any) -> None:
    keep = data.draw(st.integers(1, len(rows[0])))
    found = kept_tokens(np.array(rows, np.float32), keep)
    for row, kept in zip(rows, found.tolist(), strict=True):
        assert kept == sorted(sorted(range(len(row)), key=lambda i: (-row[i], i))[:keep])


@pytest.mark.parametrize(
    ("importance", "keep", "message"),
    [
        (np.zeros(3, np.float32), 1, r"importance: got shape \(3,\)"),
        (np.array([[0, np.nan]], np.float32), 1, r"importance\[0, 1\]: got nan"),
        (np.zeros((1, 3), np.float32), 0, "keep: got 0, expected 1 <= keep <= 3"),
        (np.zeros((1, 3), np.float32), 4, "keep: got 4"),
    ],
)
def test_bad_arguments_of_the_rule(importance: Any, keep: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_tokens(importance, keep)


# --- branches


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def make(model: PreTrainedModel, **options: Any) -> TreeDecoder:
    options = {"kv_bytes": 1 << 22, "sampling": SamplingParams(max_step_tokens=20)} | options
    decoder = TreeDecoder(model, byte_tokenizer(), **options)
    decoder.eos_token_ids = frozenset()  # a random model ends its texts at random
    return decoder


def table(branch: Branch) -> list[int]:
    pages: list[int] = branch.decoder.runtime.tree.block_tables([branch.id])[0][0].tolist()
    return pages


class Plain:
    """The model by itself in float64, over a cache from which each layer lost tokens of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = copy.deepcopy(model).double()
        self.model.set_attn_implementation("eager")

    def read(self, tokens: list[int], cache: DynamicCache, begin: int) -> Any:
        with torch.inference_mode():
            return self.model(
                torch.tensor([tokens]),
                past_key_values=cache,
                position_ids=torch.arange(begin, begin + len(tokens))[None],
                output_attentions=True,
            )

    def compressed(
        self, tokens: list[int], keep: int, observe: int, sink: int = 1, recent: int = 4
    ) -> tuple[DynamicCache, list[list[int]]]:
        """The cache after `tokens`, and the tokens that each layer lost."""
        cache = DynamicCache()
        attentions = self.read(tokens, cache, 0).attentions
        pages = -(-len(tokens) // PAGE)
        movable = torch.arange(sink * PAGE, (pages - recent) * PAGE)
        dropped = PAGE * (pages - keep)
        lost = []
        for layer, attention in zip(cache.layers, attentions, strict=True):
            importance = attention[0, :, -observe:, movable].sum((0, 1))
            kept = set(movable[importance.topk(len(movable) - dropped).indices].tolist())
            lost.append([at for at in movable.tolist() if at not in kept])
            held = torch.tensor([at for at in range(len(tokens)) if at not in lost[-1]])
            layer.keys, layer.values = layer.keys[:, :, held], layer.values[:, :, held]
        return cache, lost

    def next_logprobs(self, cache: DynamicCache, begin: int, tokens: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.read(tokens, copy.deepcopy(cache), begin).logits
        return logits[0, -1].log_softmax(-1).float()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"pack_weights": False}),
        ("qwen3", {}),
        ("smollm3", {}),
        ("llama", {"track_mass": True}),
    ],
)
def test_each_layer_goes_on_with_the_tokens_that_matter_in_it(name: str, options: Any) -> None:
    """Beside the model's own forward, by its own attention: expectations do without the decoder."""
    model = tiny_model(name)
    plain = Plain(model)
    decoder = make(model, **options)
    keep, observe = 8, 20
    cache, lost = plain.compressed(PROMPT, keep, observe)
    assert len(set(map(tuple, lost))) == len(lost)  # each layer its own

    async def search() -> None:
        root = await decoder.root(PROMPT)
        pages = len(table(root))
        masses = root.masses().sum()
        assert root.compress(keep, observe=observe) == pages - keep > 4
        assert root.masses().sum() == pytest.approx(masses, rel=1e-4)
        page_bytes = decoder.stats().page_bytes
        assert decoder.stats().resident_bytes == keep * page_bytes == decoder.resident_bytes([root])
        assert [page < 0 for page in table(root)] == [1 <= c <= pages - keep for c in range(pages)]
        assert root.tokens == PROMPT
        [child, other] = root.fork(2)
        await child.extend(FORCED)
        await other.step()
        for branch in (root, child, other):
            rest = branch.tokens[len(PROMPT) :]
            if rest:
                expected = plain.next_logprobs(cache, len(PROMPT), rest)
                torch.testing.assert_close(await branch.next_logprobs(), expected, atol=2e-4, rtol=0)
        assert root.compress(keep) == 0

    decoder.run(search())


def test_a_branch_is_compressed_again_and_again(model: PreTrainedModel) -> None:
    """Kept tokens compete with later ones; positions continue, and attention sees as many tokens."""
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        for _ in range(4):
            await root.extend(FORCED * 5)
            assert root.compress(9, observe=8) > 0
            assert sum(page >= 0 for page in table(root)) == 9
        assert root.length == len(PROMPT) + 20 * len(FORCED) == root.kv_length
        assert (await root.next_logprobs()).isfinite().all()
        await root.step()

    decoder.run(search())


def test_int8_pages_are_compressed(model: PreTrainedModel) -> None:
    """Within the rounding of the pages of the exact result."""
    cache, _ = (plain := Plain(model)).compressed(PROMPT, 8, 20)
    decoder = make(model, kv_dtype=torch.int8)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        root.compress(8, observe=20)
        await root.extend(FORCED)
        expected = plain.next_logprobs(cache, len(PROMPT), FORCED)
        torch.testing.assert_close(await root.next_logprobs(), expected, atol=0.3, rtol=0)

    decoder.run(search())


def test_pages_of_others_stay_as_they_are(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        [child] = root.fork()
        assert root.compress(6) == child.compress(6) == 0  # neither holds a page alone
        before = await root.next_logprobs()
        await child.extend(FORCED * 12)
        shared = len(PROMPT) // PAGE
        held = table(child)
        assert child.compress(shared + 6) == len(held) - shared - 6
        assert table(child)[:shared] == held[:shared] == table(root)[:shared]
        root.truncate(len(PROMPT) - 1)
        await root.extend(PROMPT[-1:])
        torch.testing.assert_close(await root.next_logprobs(), before, atol=1e-5, rtol=0)

    decoder.run(search())


def test_no_prompt_shares_what_was_compressed(model: PreTrainedModel) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        expected = await root.next_logprobs()
        root.compress(6)
        again = await decoder.root(PROMPT)
        assert again.cached_tokens == PAGE  # the sink
        torch.testing.assert_close(await again.next_logprobs(), expected, atol=1e-5, rtol=0)

    decoder.run(search())


def test_a_branch_cannot_be_cut_in_what_was_compressed(model: PreTrainedModel) -> None:
    decoder = make(model)
    cache, lost = (plain := Plain(model)).compressed(PROMPT, 8, 20)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        root.compress(8, observe=20)
        last = len(table(root)) - 4  # the first column behind
        state = root.length, root.kv_length, table(root), root.fork_count
        for cut in (PAGE + 2, (last - 1) * PAGE + 5, last * PAGE + 1):
            with pytest.raises(
                ValueError, match=f"at: got {cut - 1}, but positions {PAGE} to {last * PAGE - 1}"
            ):
                root.fork(at=cut)
            with pytest.raises(ValueError, match="were evicted or compacted, expected at most 16, or"):
                root.truncate(cut)
        assert (root.length, root.kv_length, table(root), root.fork_count) == state
        cut = last * PAGE + 1  # the first token that is fed again
        [child] = root.fork(at=cut + 1)
        await child.extend(FORCED)
        for layer, gone in zip(cache.layers, lost, strict=True):
            kept = cut - len(gone)
            layer.keys, layer.values = layer.keys[:, :, :kept], layer.values[:, :, :kept]
        expected = plain.next_logprobs(cache, cut, [PROMPT[cut], *FORCED])
        torch.testing.assert_close(await child.next_logprobs(), expected, atol=2e-4, rtol=0)
        root.truncate(PAGE + 1)  # its last token is fed again
        assert len(table(root)) == 1
        assert min(table(root)) >= 0

    decoder.run(search())


def test_a_decoder_keeps_its_branches_within_a_budget(model: PreTrainedModel) -> None:
    """The prompt and its branch come back to the budget before they exceed it by the slack and a page."""
    budget = Compression(budget_tokens=128, slack_tokens=32, observe=8)
    decoder = make(model, compress=budget)
    free = make(model)

    async def search(decoder: TreeDecoder) -> list[int]:
        root = await decoder.root(PROMPT)
        most = [sum(page >= 0 for page in table(root))]
        [child] = root.fork()
        root.release()
        for _ in range(6):
            await child.step()
            most.append(sum(page >= 0 for page in table(child)))
        assert child.length == len(PROMPT) + 120
        child.release()
        return most

    held, unbounded = decoder.run(search(decoder)), free.run(search(free))
    assert held[0] == 128 // PAGE
    assert max(held) <= (128 + 32) // PAGE + 1 < max(unbounded)
    assert decoder.stats().resident_bytes == 0


def test_more_tokens_to_observe_than_there_are_are_those_that_are_there(model: PreTrainedModel) -> None:
    """Nothing says that a decoder needs pages for them."""
    held = []
    for observe in (len(PROMPT), 10**6):
        decoder = make(model, compress=Compression(64, slack_tokens=16, observe=observe))

        async def prompt(decoder: TreeDecoder = decoder) -> int:
            root = await decoder.root(PROMPT)
            return sum(page >= 0 for page in table(root))

        held.append(decoder.run(prompt()))
    assert held[0] == held[1] < len(PROMPT) // PAGE


def test_a_shared_prompt_is_left_and_its_branches_are_compressed(model: PreTrainedModel) -> None:
    decoder = make(model, compress=Compression(budget_tokens=16 * PAGE, slack_tokens=16, observe=8))
    pages = len(PROMPT) // PAGE

    async def search() -> None:
        root = await decoder.root(PROMPT)
        children = root.fork(2)
        prompt = table(root)[:pages]
        for _ in range(8):
            await asyncio.gather(*(child.step() for child in children))
        for child in children:
            assert table(child)[:pages] == prompt
            own = [page for page in table(child)[pages:] if page >= 0]
            assert len(own) < 12  # of 160 tokens

    decoder.run(search())


def test_without_a_free_page_nothing_is_compressed(model: PreTrainedModel) -> None:
    pages = -(-len(PROMPT) // PAGE)
    size = make(model).stats().page_bytes
    decoder = make(model, kv_bytes=pages * size)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        held = table(root)
        with pytest.raises(OutOfPagesError, match="more KV pages"):
            root.compress(6)
        assert table(root) == held
        assert decoder.stats().branches == 1

    decoder.run(search())
    automatic = make(model, kv_bytes=pages * size, compress=Compression(64, slack_tokens=16))

    async def prompt() -> None:
        root = await automatic.root(PROMPT)
        assert min(table(root)) >= 0

    automatic.run(prompt())


@pytest.mark.parametrize(
    ("name", "feature"), [("mistral", "a sliding window"), ("llama4", "chunks"), ("bloom", "ALiBi")]
)
def test_layers_that_go_by_where_a_key_lies_are_refused(name: str, feature: str) -> None:
    model = tiny_model(name)
    with pytest.raises(UnsupportedModelError, match=f"compress: .* has layers with {feature}"):
        make(model, compress=Compression(128))
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT[:100])
        with pytest.raises(UnsupportedModelError, match=feature):
            root.compress(2)

    decoder.run(search())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: b.compress(0), ValueError, "keep: got 0, expected >= 1"),
        (lambda b: b.compress(6, sink=-1), ValueError, "sink: got -1, expected >= 0"),
        (lambda b: b.compress(6, recent=1), ValueError, "recent: got 1, expected >= 2"),
        (lambda b: b.compress(6, observe=0), ValueError, "observe: got 0, expected >= 1"),
        (lambda b: Compression(0), ValueError, "budget_tokens: got 0, expected >= 1"),
        (lambda b: Compression(64, slack_tokens=3), ValueError, "slack_tokens: got 3, expected >= 16"),
        (lambda b: make(b.decoder.model, compress=3), TypeError, "compress: got int, expected a Compression"),
        (
            lambda b: make(b.decoder.model, compress=Compression(64), sparse=SparseConfig(dense_layers=0)),
            ValueError,
            "compress: got a decoder with sparse attention",
        ),
    ],
)
def test_what_cannot_be_compressed_is_refused(
    model: PreTrainedModel, call: Any, error: type[Exception], message: str
) -> None:
    decoder = make(model)

    async def search() -> None:
        root = await decoder.root(PROMPT)
        with pytest.raises(error, match=message):
            call(root)
        [busy] = root.fork()
        task = asyncio.create_task(busy.step())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waits for the engine"):
            busy.compress(6)
        await task
        assert min(table(root)) >= 0

    decoder.run(search())
