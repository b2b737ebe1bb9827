"""A TreeCache that meets another prompt, model, dtype or mode: right, or refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from tiny_models import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from tree_caches import NEW, cache_of, generate, longer, model_of, prompts

from tts_kernels.integrations.transformers import TreeCache, UnsupportedError, WrongCacheError, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()


SECOND: dict[str, Any] = {
    "assistant_model": tiny_model(seed=1),
    "prompt_lookup_num_tokens": 3,
}


@pytest.mark.parametrize("mode", SECOND)
def test_modes_that_compute_a_prefilled_prompt_again(tree: PreTrainedModel, mode: str) -> None:
    """transformers does in the first step, and with its own caches gives other tokens."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    with pytest.raises(
        UnsupportedError, match=rf"^{mode}: got one with .* holds 29 tokens.*leave cache\.prefill"
    ):
        generate(tree, ids, mask, cache, **{mode: SECOND[mode]})
    assert cache.get_seq_length() == 29


def test_forwards_of_a_prompt_that_is_there(tree: PreTrainedModel) -> None:
    """Of the model itself, which nobody looks at but the attention."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    with (
        torch.no_grad(),
        pytest.raises(
            UnsupportedError, match=r"position_ids: got 0 .* holds 29 of the row: .*call cache\.reset\(\)"
        ),
    ):
        tree(ids, position_ids=torch.arange(30)[None], **{cache_argument(): cache})
    with (
        torch.no_grad(),
        pytest.raises(UnsupportedError, match=r"^input_ids: got no new token behind the 29"),
    ):
        tree(ids[:, 30:], **{cache_argument(): cache})
    assert cache.get_seq_length() == 29


def test_going_on_with_rows_that_ended_before_others(tree: PreTrainedModel) -> None:
    """Their padding lies behind their tokens, of which the cache holds keys and values."""
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    answers = generate(tree, ids, mask, cache)
    mask = longer(mask, answers)
    mask[0, 35:] = 0
    answers, mask = torch.cat([answers, ids[:, -3:]], 1), torch.cat([mask, mask.new_ones(2, 3)], 1)
    with pytest.raises(UnsupportedError, match=r"rows of \[35, 15\] tokens .* expected \[41, 15\]"):
        generate(tree, answers, mask, cache)


def test_stop_strings(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """`generate` hands the tokenizer on to the attention function."""
    ids, mask = prompts(30, 9)
    options = {"stop_strings": ["a"], "tokenizer": byte_tokenizer()}
    expected = generate(own, ids, mask, **options)
    assert torch.equal(generate(tree, ids, mask, cache_of(tree), **options), expected)


def test_hidden_states(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30)
    options = {"output_hidden_states": True, "return_dict_in_generate": True}
    expected: Any = generate(own, ids, mask, **options)
    got: Any = generate(tree, ids, mask, cache_of(tree), **options)
    assert len(got.hidden_states) == NEW
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=True):
        for layer, reference in zip(ours, theirs, strict=True):
            torch.testing.assert_close(layer, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reset", [False, True])
def test_a_model_whose_dtype_changed(tree: PreTrainedModel, reset: bool) -> None:
    ids, mask = prompts(30)
    cache = cache_of(tree)
    answer = generate(tree, ids, mask, cache)
    tree.to(torch.bfloat16)
    if reset:
        cache.reset()
    words = (
        r"got 2 KV heads of 32 channels, torch\.bfloat16 on cpu, expected .* torch\.float32 on cpu.*another"
    )
    with pytest.raises(UnsupportedError, match=words):
        generate(tree, answer, longer(mask, answer), cache)
    generate(tree, answer, longer(mask, answer), cache_of(tree))


@pytest.mark.parametrize("layers", [2, 4])
def test_a_model_of_other_layers(tree: PreTrainedModel, layers: int) -> None:
    """Of fewer, no forward would end."""
    other, cache = model_of(num_hidden_layers=layers), cache_of(tree)
    with pytest.raises(WrongCacheError, match=rf"3 layers, expected {layers} .*TreeCache\(model\.config\)"):
        generate(other, *prompts(30), cache)
    assert cache.batch_size == 0


def test_two_models_take_turns_on_a_cache(tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    for seed in 0, 5, 0:
        model, reference = model_of(seed=seed), model_of("sdpa", seed=seed)
        assert torch.equal(generate(model, ids, mask, cache), generate(reference, ids, mask))
        cache.reset()


NO_ROWS: dict[str, Callable[[TreeCache], None]] = {
    "indices": lambda cache: cache.batch_select_indices(torch.tensor([], dtype=torch.long)),
    "mask": lambda cache: cache.batch_select_indices(torch.tensor([False, False])),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([], dtype=torch.long)),
}


@pytest.mark.parametrize("call", NO_ROWS)
def test_selecting_no_rows(own: PreTrainedModel, tree: PreTrainedModel, call: str) -> None:
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    with pytest.raises(ValueError, match=r"indices: got none, expected at least one; call reset\(\)"):
        NO_ROWS[call](cache)
    assert torch.equal(generate(tree, ids, mask, cache), generate(own, ids, mask))


def test_selecting_rows_of_an_empty_cache(tree: PreTrainedModel) -> None:
    """Nothing, as of transformers' own."""
    for cache in cache_of(tree), hf.DynamicCache(config=tree.config):
        cache.batch_select_indices(torch.tensor([True, False]))
        assert cache.get_seq_length() == 0


def test_autocast(tree: PreTrainedModel) -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(UnsupportedError, match=r"dtype: got .* leave torch\.autocast out"),
    ):
        generate(tree, *prompts(30), cache_of(tree))


def test_caches_that_transformers_makes(tree: PreTrainedModel) -> None:
    ids, mask = prompts(30)
    with pytest.raises(WrongCacheError, match=r"got a static cache.*leave cache_implementation out"):
        generate(tree, ids, mask, cache_implementation="static")
    with pytest.raises(ValueError, match="Passing both `cache_implementation`"):
        generate(tree, ids, mask, cache_of(tree), cache_implementation="static")
