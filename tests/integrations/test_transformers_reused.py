"""A reused TreeCache: prompts that continue its rows give their tokens, others are refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from tree_caches import NEW, cache_of, generate, longer, prompts

from tts_kernels.integrations.transformers import TreeCache, UnsupportedError, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()
SAMPLES: dict[str, Any] = {"do_sample": True, "top_k": 0, "num_return_sequences": 3}
BEAMS: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3}


def state(cache: TreeCache) -> tuple[Any, ...]:
    assert cache.tree is not None
    return (
        cache.branches,
        cache.get_seq_length(),
        cache.use(),
        cache.tree.block_tables(cache.branches)[0].tolist(),
    )


def refused(
    cache: TreeCache, words: str, model: PreTrainedModel, ids: Tensor, mask: Tensor | None, **options: Any
) -> None:
    """In a call that changes nothing."""
    before = state(cache)
    with pytest.raises(UnsupportedError, match=words):
        generate(model, ids, mask, cache, **options)
    assert state(cache) == before


def changed(ids: Tensor, row: int, column: int) -> Tensor:
    ids = ids.clone()
    ids[row, column] = (ids[row, column] + 1) % 256
    return ids


@pytest.mark.parametrize("column", [0, 17, 28])
@pytest.mark.parametrize("options", [{}, SAMPLES, BEAMS, {"prefill_chunk_size": 7}], ids=str)
def test_another_prompt_after_prefill(
    own: PreTrainedModel, tree: PreTrainedModel, options: dict[str, Any], column: int
) -> None:
    ids, mask = prompts(30, 30)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask, copies=options.get("num_return_sequences", 1))
    other, was = changed(ids, 1, column), int(ids[1, column])
    row = options.get("num_return_sequences", 1)
    words = (
        rf"^input_ids: got token {other[1, column]} in column {column} of row 1, expected {was}, which "
        rf"row {row} of the cache holds there; pass .* or call cache\.reset\(\)"
    )
    refused(cache, words, tree, other, mask, **options)
    behind = changed(ids, 1, 29)  # the last token is not computed yet
    assert torch.equal(generate(tree, behind, mask, cache, **options), generate(own, behind, mask, **options))


def test_another_prompt_by_its_other_names(tree: PreTrainedModel) -> None:
    ids, mask = prompts(30)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    given: dict[str, Any] = {"max_new_tokens": 2, "past_key_values": cache}
    with pytest.raises(UnsupportedError, match=r"^input_ids: got token .* in column 5 of row 0"):
        tree.generate(input_ids=changed(ids, 0, 5), **given)
    with pytest.raises(UnsupportedError, match=r"^input_ids: got token .* in column 5 of row 0"):
        tree.generate(inputs=changed(ids, 0, 5), **given)


def test_padding_is_not_compared(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 4)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask, copies=3)
    ids = ids.masked_fill(mask == 0, 7)
    assert torch.equal(generate(tree, ids, mask, cache, **SAMPLES), generate(own, ids, mask, **SAMPLES))
    cache.reset()
    cache.prefill(tree, ids, mask)
    refused(cache, r"^input_ids: .* in column 27 of row 1", tree, changed(ids, 1, 27), mask)


@pytest.mark.parametrize("length", [1, 5, 25, 29, 30, 36, 41])
def test_a_prompt_that_is_no_longer_than_the_rows(
    own: PreTrainedModel, tree: PreTrainedModel, length: int
) -> None:
    """The same, a part of it, or another; with other numbers of rows too."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    answer = generate(tree, ids, mask, cache)
    for again, options in ((answer, {}), (prompts(length, seed=1)[0], {}), (answer, SAMPLES)):
        words = rf"^input_ids: got prompts of {length} tokens, of which the cache holds 41.*cache\.reset\(\)"
        refused(cache, words, tree, again[:, :length], None, **options)
    cache.reset()
    other, mask = prompts(length, seed=1)
    assert torch.equal(generate(tree, other, mask, cache), generate(own, other, mask))


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"do_sample": True, "num_return_sequences": 4}], ids=str
)
def test_one_row_of_a_prompt_that_differs(tree: PreTrainedModel, options: dict[str, Any]) -> None:
    """`generate` and `check_prompts` name the same row of it, whether the prompt is repeated or not."""
    ids, _ = prompts(30)
    cache = cache_of(tree)
    rows = ids.repeat(4, 1)
    with torch.no_grad():
        tree(changed(rows, 2, 17), **{cache_argument(): cache})
    turn = torch.cat([ids, ids[:, :1]], 1)
    words = r"^input_ids: got token \d+ in column 17 of row 0, expected \d+, which row 2 of the cache"
    refused(cache, words, tree, turn, None, **options)
    with pytest.raises(UnsupportedError, match=words):
        cache.check_prompts(turn, copies=4)
    with pytest.raises(UnsupportedError, match=words.replace("row 0", "row 2")):
        cache.check_prompts(turn.repeat(4, 1))
    embed = tree.get_input_embeddings()
    with pytest.raises(UnsupportedError, match=r"column 17 of row 0 than .*, which row 2 of the cache"):
        cache.check_embeddings(tree, embed(turn), copies=4)


@pytest.mark.parametrize("options", [{}, SAMPLES], ids=["greedy", "samples"])
def test_another_prompt_that_is_longer_than_the_rows(
    own: PreTrainedModel, tree: PreTrainedModel, options: dict[str, Any]
) -> None:
    """What `generate` drew is known too, whether the prompts were prefilled or not."""
    ids, mask = prompts(30, 9)
    cache = cache_of(tree)
    answers = generate(tree, ids, mask, cache, **options)
    turn = torch.cat([answers, prompts(*[5] * len(answers), seed=2)[0]], 1)
    mask = longer(mask.repeat_interleave(len(answers) // 2, 0), turn)
    for column in 29, 30, 40:
        refused(cache, rf"^input_ids: .* in column {column} of row 1", tree, changed(turn, 1, column), mask)
    refused(cache, "^input_ids: .* of row 0", tree, turn.flip(0), mask.flip(0))
    assert torch.equal(generate(tree, turn, mask, cache), generate(own, turn, mask))


@pytest.mark.parametrize(("rows", "options"), [(1, {}), (4, {}), (2, SAMPLES), (1, BEAMS), (2, BEAMS)])
def test_more_or_fewer_rows(tree: PreTrainedModel, rows: int, options: dict[str, Any]) -> None:
    ids, mask = prompts(30, 30)
    cache = cache_of(tree)
    answers = generate(tree, ids, mask, cache)
    asked = rows * options.get("num_return_sequences", 1)
    turn = answers[torch.arange(rows) % 2]
    words = rf"^cache: got a batch of {asked} rows, but the cache holds 2; call cache\.batch_repeat"
    refused(cache, words, tree, turn, None, **options)


def test_rows_that_are_repeated_selected_and_reordered(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 30)
    cache = cache_of(tree)
    answers = generate(tree, ids, mask, cache)
    cache.batch_repeat_interleave(3)
    assert torch.equal(
        generate(tree, answers, None, cache, **SAMPLES), generate(own, answers, None, **SAMPLES)
    )
    cache.batch_select_indices(torch.tensor([5, 0]))
    cache.crop(-NEW)
    refused(cache, "^input_ids: .* in column 0 of row 0", tree, answers, None)
    cache.reorder_cache(torch.tensor([1, 0]))
    assert torch.equal(generate(tree, answers, None, cache), generate(own, answers, None))


@pytest.mark.parametrize("prefilled", [False, True])
def test_after_beam_search(own: PreTrainedModel, tree: PreTrainedModel, prefilled: bool) -> None:
    """The rows are the beams that ran last, the answers the best ones, whose last tokens may be others."""
    ids, mask = prompts(30, 9)
    cache = cache_of(tree)
    if prefilled:
        cache.prefill(tree, ids, mask, copies=3)
    answers = generate(tree, ids, mask, cache, **BEAMS)
    refused(
        cache, "^input_ids: got prompts of 30 tokens, of which the cache holds 41", tree, ids, mask, **BEAMS
    )
    behind = longer(mask.repeat_interleave(3, 0), answers)
    held = cache.tokens()
    column = int(((held != answers[:, :41]) & (held >= 0)).any(0).nonzero()[0])
    words = rf"^input_ids: .* in column {column} of .*after beam search.*cache\.crop\({column} - cache\.get_"
    refused(cache, words, tree, answers, behind)
    turn = torch.cat([held.clamp_min(0), prompts(*[3] * 6, seed=2)[0]], 1)
    assert torch.equal(
        generate(tree, turn, longer(behind, turn), cache), generate(own, turn, longer(behind, turn))
    )
    cache.crop(30 - cache.get_seq_length())
    other = changed(answers, 4, 25)
    refused(cache, "^input_ids: .* in column 25 of row 4", tree, other, behind)
    assert torch.equal(generate(tree, answers, behind, cache), generate(own, answers, behind))


@pytest.mark.parametrize("kept", [0, 1, 16, 29, 35])
def test_after_crop(own: PreTrainedModel, tree: PreTrainedModel, kept: int) -> None:
    """Behind what is kept the text may be another."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    answer = generate(tree, ids, mask, cache)
    cache.crop(kept - cache.get_seq_length())
    if kept:
        refused(cache, f"^input_ids: .* in column {kept - 1} of", tree, changed(answer, 0, kept - 1), None)
    other = changed(answer, 0, kept)
    assert torch.equal(generate(tree, other, None, cache), generate(own, other, None))


def test_new_tokens_alone(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """With a mask of all tokens; nothing stands for those that the rows hold."""
    ids, mask = prompts(30)
    cache = cache_of(tree)
    answer = generate(tree, ids, mask, cache)
    turn = torch.cat([answer, prompts(5, seed=2)[0]], 1)
    expected = generate(own, turn, None)
    got = generate(tree, turn[:, 41:], torch.ones_like(turn), cache)
    assert torch.equal(got, expected[:, 41:])
    turn = torch.cat([expected, ids[:, :3]], 1)
    for column in 7, 43, 52:
        refused(cache, f"^input_ids: .* in column {column} of", tree, changed(turn, 0, column), None)
    assert torch.equal(generate(tree, turn, None, cache), generate(own, turn, None))


def test_generate_is_called_as_before(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """With another cache, with positional arguments, and by its class."""
    ids, mask = prompts(30)
    assert "inputs" in inspect.signature(own.generate).parameters
    expected = generate(own, ids, mask)
    assert torch.equal(generate(own, ids, mask, hf.DynamicCache(config=own.config)), expected)
    config = hf.GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW)
    given: dict[str, Any] = {cache_argument(): cache_of(tree)}
    assert torch.equal(type(own).generate(own, ids, config), expected)
    assert torch.equal(type(tree).generate(tree, ids, config, **given), expected)
    with pytest.raises(UnsupportedError, match=r"^guidance_scale: got 2"):
        tree.generate(expected, hf.GenerationConfig(guidance_scale=2, max_new_tokens=3), **given)


WRONG: dict[str, tuple[Callable[[PreTrainedModel, TreeCache, Tensor], Any], type[Exception], str]] = {
    "model": (lambda m, c, ids: c.prefill(None, ids), TypeError, "model: got NoneType, expected a PreTr"),
    "module": (lambda m, c, ids: c.prefill(torch.nn.Linear(1, 1), ids), TypeError, "model: got Linear, exp"),
    "a list": (
        lambda m, c, ids: c.prefill(m, ids.tolist()),
        TypeError,
        'input_ids: got list, expected a Tensor; pass return_tensors="pt"',
    ),
    "floats": (lambda m, c, ids: c.prefill(m, ids.float()), TypeError, r"input_ids: got torch\.float32, exp"),
    "a row": (
        lambda m, c, ids: c.prefill(m, ids[0]),
        ValueError,
        r"input_ids: got \[30\], expected \[B, S\]",
    ),
    "no rows": (lambda m, c, ids: c.prefill(m, ids[:0]), ValueError, r"input_ids: got \[0, 30\], expected"),
    "no tokens": (
        lambda m, c, ids: c.prefill(m, ids[:, :0]),
        ValueError,
        r"input_ids: got \[2, 0\], expected",
    ),
    "other ids": (
        lambda m, c, ids: c.prefill(m, ids + 400),
        ValueError,
        r"input_ids: got token \d+, expected 0",
    ),
    "below": (
        lambda m, c, ids: c.prefill(m, ids - 300),
        ValueError,
        r"input_ids: got token -\d+, expected 0",
    ),
    "a mask": (
        lambda m, c, ids: c.prefill(m, ids, "x"),
        TypeError,
        "attention_mask: got str, expected a Tens",
    ),
    "its shape": (
        lambda m, c, ids: c.prefill(m, ids, ids[:, 1:]),
        ValueError,
        r"attention_mask: got \[2, 29\], expected \[B, S\]",
    ),
    "copies": (lambda m, c, ids: c.prefill(m, ids, copies=0), ValueError, "copies: got 0"),
    "copies type": (
        lambda m, c, ids: c.prefill(m, ids, copies="2"),
        TypeError,
        "copies: got '2', expected an int",
    ),
    "held": (lambda m, c, ids: c.prefill(m, ids), ValueError, "cache: got one that holds 2 rows"),
    "crop": (lambda m, c, ids: c.crop(3), ValueError, "tokens_to_remove: got 3, expected 0 or less"),
    "crop str": (lambda m, c, ids: c.crop("x"), TypeError, "tokens_to_remove: got 'x', expected an int"),
    "crop None": (lambda m, c, ids: c.crop(None), TypeError, "tokens_to_remove: got None, expected an int"),
    "crop float": (lambda m, c, ids: c.crop(-0.5), TypeError, "tokens_to_remove: got -0.5, expected an int"),
    "crop tensor": (lambda m, c, ids: c.crop(torch.tensor(-1.0)), TypeError, "tokens_to_remove: got -1.0"),
    "repeats": (lambda m, c, ids: c.batch_repeat_interleave(0), ValueError, "repeats: got 0"),
    "repeats str": (lambda m, c, ids: c.batch_repeat_interleave("x"), TypeError, "repeats: got 'x'"),
    "reorder list": (
        lambda m, c, ids: c.reorder_cache([0, 1]),
        TypeError,
        "beam_idx: got list, expected a Tensor",
    ),
    "reorder float": (
        lambda m, c, ids: c.reorder_cache(torch.zeros(2)),
        TypeError,
        r"beam_idx: got torch\.float",
    ),
    "reorder bool": (
        lambda m, c, ids: c.reorder_cache(torch.tensor([True, False])),
        TypeError,
        r"beam_idx: got torch\.bool, expected torch\.int32 or torch\.int64",
    ),
    "reorder 2d": (
        lambda m, c, ids: c.reorder_cache(ids),
        ValueError,
        r"beam_idx: got \[2, 30\], expected \[N\]",
    ),
    "select list": (
        lambda m, c, ids: c.batch_select_indices([0]),
        TypeError,
        "indices: got list, expected a T",
    ),
    "select float": (
        lambda m, c, ids: c.batch_select_indices(torch.zeros(1)),
        TypeError,
        "indices: got torch",
    ),
    "select far": (
        lambda m, c, ids: c.batch_select_indices(ids[0]),
        IndexError,
        "indices: got .* that has 2",
    ),
    "select mask": (
        lambda m, c, ids: c.batch_select_indices(torch.tensor([True])),
        ValueError,
        r"indices: got a mask of \[1\], expected \[2\], one entry a row",
    ),
    "check": (lambda m, c, ids: c.check_prompts("x"), TypeError, "input_ids: got str, expected a Tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_change_nothing(own: PreTrainedModel, tree: PreTrainedModel, name: str) -> None:
    call, error, words = WRONG[name]
    ids, _ = prompts(30, 30)
    cache = cache_of(tree)
    cache.prefill(tree, ids)
    before = state(cache)
    with pytest.raises(error, match=f"^{words}"):
        call(tree, cache, ids)
    assert state(cache) == before
    refused(cache, "^input_ids: .* in column 3 of row 0", tree, changed(ids, 0, 3), None)
    assert torch.equal(generate(tree, ids, None, cache), generate(own, ids, None))
