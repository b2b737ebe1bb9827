"""TreeCache by itself: its rows beside a DynamicCache's, its pages, and calls that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tts_kernels import KVPool, OutOfPagesError
from tts_kernels.integrations.transformers import CacheUse, TreeCache, UnsupportedError, register, rows
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()

# Of the tiny model: K and V of 16 tokens, 3 layers, 2 KV heads, 32 channels, 4 bytes
PAGE_BYTES = 2 * 16 * 3 * 2 * 32 * 4


@pytest.fixture(scope="module")
def own() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def tree() -> PreTrainedModel:
    model = tiny_model()
    model.set_attn_implementation("tts")
    return model


def forward(model: PreTrainedModel, ids: Tensor, cache: Any, mask: Tensor | None = None) -> Tensor:
    """Logits [B, S, vocabulary] of new tokens."""
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    with torch.no_grad():
        given = {cache_argument(): cache}
        return model(ids, attention_mask=mask, position_ids=positions, use_cache=True, **given).logits


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed))


CHANGES: dict[str, Callable[[Any], Any]] = {
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0, 2])),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([3, 1])),
    "select by mask": lambda cache: cache.batch_select_indices(torch.tensor([True, False, False, True])),
    "select negative": lambda cache: cache.batch_select_indices(torch.tensor([-1, 0, -1])),
    "repeat": lambda cache: cache.batch_repeat_interleave(3),
    "crop": lambda cache: cache.crop(-5),
    "crop a page": lambda cache: cache.crop(-16),
    "crop nothing": lambda cache: cache.crop(0),
    "crop all": lambda cache: cache.crop(-40),
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_are_those_of_a_dynamic_cache(own: PreTrainedModel, tree: PreTrainedModel, change: str) -> None:
    caches = DynamicCache(config=own.config), TreeCache(tree.config, kv_bytes=1 << 24)
    prompt = random_ids(4, 37)
    results = []
    for model, cache in zip((own, tree), caches, strict=True):
        forward(model, prompt, cache)
        CHANGES[change](cache)
        size = {"reorder": 4, "select": 2, "select by mask": 2, "select negative": 3, "repeat": 12}
        new = random_ids(size.get(change, 4), 6, seed=1)
        results += [forward(model, new[:, :2], cache), forward(model, new[:, 2:], cache)]
    assert caches[0].get_seq_length() == caches[1].get_seq_length()
    for theirs, ours in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_random_changes(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        caches = DynamicCache(config=own.config), TreeCache(tree.config, kv_bytes=1 << 24)
        count = 3
        for turn in range(12):
            new = random_ids(
                count, int(torch.randint(1, 20, (), generator=generator)), seed=100 * seed + turn
            )
            theirs, ours = (forward(*each) for each in ((own, new, caches[0]), (tree, new, caches[1])))
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
            size = int(torch.randint(1, 7, (), generator=generator))
            indices = torch.randint(0, count, (size,), generator=generator)
            cut = int(torch.randint(0, 9, (), generator=generator))
            for cache in caches:
                cache.batch_select_indices(indices)
                cache.crop(-min(cut, cache.get_seq_length() - 1))
            count = size
        caches[1].reset()
        assert caches[1].use()[:2] == (0, 0)


def test_memory_is_that_of_the_tree(tree: PreTrainedModel) -> None:
    cache = TreeCache(tree.config, kv_bytes=100 * PAGE_BYTES)
    assert cache.use() == CacheUse(0, 0, 0, 0, 0, 0)
    cache.prefill(tree, random_ids(1, 65), copies=8)  # 64 tokens: four pages
    assert cache.use() == CacheUse(4, 4 * PAGE_BYTES, 4, 4 * PAGE_BYTES, 64, 8 * 64)
    forward(tree, random_ids(8, 1), cache)  # each row begins a page of its own
    assert cache.use() == CacheUse(12, 12 * PAGE_BYTES, 12, 12 * PAGE_BYTES, 64 + 8, 8 * 65)
    cache.batch_select_indices(torch.tensor([0, 5]))
    assert cache.use() == CacheUse(6, 6 * PAGE_BYTES, 12, 12 * PAGE_BYTES, 64 + 2, 2 * 65)
    assert repr(cache) == f"TreeCache(2 rows of 65 tokens in 6 pages, {6 * PAGE_BYTES} bytes)"
    cache.reset()
    assert cache.use() == CacheUse(0, 0, 12, 12 * PAGE_BYTES, 0, 0)


def test_memory_of_beams(tree: PreTrainedModel) -> None:
    """Sixteen beams on four pages of prompt: each ends in pages of its own, two for twenty tokens at most."""
    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    given = {cache_argument(): cache}
    tree.generate(random_ids(1, 64), num_beams=16, max_new_tokens=20, **given)
    assert cache.use().pages <= cache.use().peak_pages <= 4 + 16 * 2
    assert cache.use().row_tokens == 16 * (64 + 19)


def test_rows_that_begin_alike_share_pages(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """Three equal prompts, one that leaves them in its third page, one padded, and one of its own."""
    prompt = random_ids(1, 50)
    ids, mask = prompt.repeat(6, 1), torch.ones((6, 50), dtype=torch.long)
    ids[3, 40] = (ids[3, 40] + 1) % 256
    ids[4] = torch.cat([torch.full((13,), 256), prompt[0, :37]])
    mask[4, :13] = 0
    ids[5] = random_ids(50, seed=9)
    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    logits = forward(tree, ids, cache, mask)
    # 50 tokens are three full pages and a tail of 2, 37 are two and a tail of 5
    assert cache.use().pages == (3 + 1) + 1 + 1 + 2 + 1 + 4
    expected = forward(own, ids, DynamicCache(config=own.config), mask)
    torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], atol=1e-4, rtol=0)
    without = TreeCache(tree.config, kv_bytes=1 << 24, share=False)
    torch.testing.assert_close(forward(tree, ids, without, mask), logits, atol=0, rtol=0)
    assert without.use().pages == 5 * 4 + 3


def test_rows_that_only_seem_alike_are_refused(tree: PreTrainedModel) -> None:
    """Keys and values of the first layer are the same for all tokens, those of the others are not."""
    model = tiny_model()
    model.set_attn_implementation("tts")
    attention = model.model.layers[0].self_attn
    for projection in attention.k_proj, attention.v_proj:
        torch.nn.init.zeros_(projection.weight)
    cache = TreeCache(model.config, kv_bytes=1 << 24)
    with pytest.raises(UnsupportedError, match=r"differ in layer 1; pass share=False"):
        forward(model, random_ids(2, 20), cache)
    assert (cache.get_seq_length(), cache.batch_size, cache.use().pages) == (0, 0, 0)
    without = TreeCache(model.config, kv_bytes=1 << 24, share=False)
    forward(model, random_ids(2, 20), without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_pages_held_before_reaches_no_result(
    tree: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    class Poisoned(KVPool):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.k_pages.fill_(float("nan"))
            self.v_pages.fill_(float("inf"))

    model = tiny_model("mistral", dtype=dtype)
    model.set_attn_implementation("tts")
    ids, mask = random_ids(3, 29), torch.ones((3, 29), dtype=torch.long)
    mask[1, :11] = 0
    options: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 24}
    results = []
    for pool in KVPool, Poisoned:
        monkeypatch.setattr(rows, "KVPool", pool)
        cache = {cache_argument(): TreeCache(model.config, kv_bytes=1 << 24)}
        results.append(model.generate(ids, attention_mask=mask, **options, **cache))
    assert torch.equal(*results)


def test_too_few_pages_change_nothing(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    cache = TreeCache(tree.config, kv_bytes=5 * PAGE_BYTES)
    with pytest.raises(OutOfPagesError, match=r"hold 5 pages of 16 tokens.*make the TreeCache with more"):
        forward(tree, random_ids(3, 32), cache)  # six pages
    assert (cache.batch_size, cache.get_seq_length(), cache.use().pages) == (0, 0, 0)
    with pytest.raises(OutOfPagesError):
        forward(tree, random_ids(1, 40).repeat(4, 1), cache)  # two shared ones, and a tail each
    assert (cache.batch_size, cache.use().pages) == (0, 0)
    prompt = random_ids(2, 30)
    forward(tree, prompt, cache)
    before = cache.use()
    with pytest.raises(OutOfPagesError):
        forward(tree, random_ids(2, 30, seed=3), cache)
    assert cache.use() == before
    new = random_ids(2, 2, seed=4)
    expected = forward(own, torch.cat([prompt, new], 1), None)[:, -2:]
    torch.testing.assert_close(forward(tree, new, cache), expected, atol=1e-4, rtol=0)


def test_a_plan_that_cannot_be_made_leaves_no_trace(
    tree: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    for length in 30, 5:
        with monkeypatch.context() as patched:
            patched.setattr(rows, "plan", fail)
            with pytest.raises(MemoryError):
                forward(tree, random_ids(2, length), cache)
        assert cache.use().row_tokens == 2 * cache.get_seq_length()
        forward(tree, random_ids(2, length), cache)
    assert cache.use().row_tokens == 2 * 35


def test_a_forward_that_ends_in_the_middle_leaves_no_trace(own: PreTrainedModel) -> None:
    model = tiny_model()
    model.set_attn_implementation("tts")
    cache = TreeCache(model.config, kv_bytes=1 << 24)
    prompt, new = random_ids(2, 30), random_ids(2, 5, seed=1)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def interrupted(ids: Tensor) -> None:
        hook = model.model.layers[2].register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            forward(model, ids, cache)
        hook.remove()

    interrupted(random_ids(3, 9))  # another batch than the one that follows
    assert cache.get_seq_length() == 0
    forward(model, prompt, cache)
    interrupted(new)
    assert cache.get_seq_length() == 30
    expected = forward(own, torch.cat([prompt, new], 1), None)[:, 30:]
    torch.testing.assert_close(forward(model, new, cache), expected, atol=1e-4, rtol=0)
    interrupted(new)
    cache.reorder_cache(torch.tensor([1, 1]))
    assert (cache.get_seq_length(), cache.tree and cache.tree.stats().logical_tokens) == (35, 70)


def test_a_cache_serves_in_inference_mode_and_outside(tree: PreTrainedModel) -> None:
    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    with torch.inference_mode():
        cache.prefill(tree, random_ids(1, 20))
    forward(tree, random_ids(1, 3), cache)
    assert cache.get_seq_length() == 22


def test_the_memory_goes_with_the_cache(tree: PreTrainedModel) -> None:
    """At once, and not when the garbage collector comes by."""
    import gc
    import weakref

    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    forward(tree, random_ids(2, 20), cache)
    assert cache.pool is not None
    pages = weakref.ref(cache.pool)
    gc.disable()
    try:
        del cache
        assert pages() is None
    finally:
        gc.enable()


def test_prompts_of_one_token(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    cache = TreeCache(tree.config, kv_bytes=1 << 24)
    ids = random_ids(2, 1)
    cache.prefill(tree, ids, copies=3)
    assert cache.batch_size == 0
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3}
    expected = own.generate(ids, **options)
    assert torch.equal(tree.generate(ids, **options, **{cache_argument(): cache}), expected)
