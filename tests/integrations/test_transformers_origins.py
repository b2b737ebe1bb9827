"""What a TreeCache holds came from other models, embeddings or positions: the same text, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import PreTrainedModel
from tree_caches import NEW, cache_of, generate, longer, model_of, prompts

from tts_kernels.integrations.transformers import TreeCache, UnsupportedError, register
from tts_kernels.integrations.transformers.versions import cache_argument

pytestmark = pytest.mark.usefixtures("one_thread")
register()
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
MAX = 2**31 - 1


def forward(model: PreTrainedModel, cache: Any, ids: Tensor | None = None, **options: Any) -> Tensor:
    """Logits."""
    with torch.no_grad():
        logits: Tensor = model(ids, **options, **{cache_argument(): cache}).logits
    return logits


def refused(words: str, cache: TreeCache, call: Any) -> None:
    before = cache.tokens(), cache.branches, cache.use()
    with pytest.raises(UnsupportedError, match=words):
        call()
    assert torch.equal(cache.tokens(), before[0])
    assert (cache.branches, cache.use()) == before[1:]


@pytest.mark.parametrize("first", ["generate", "prefill", "forward"])
def test_another_model(tree: PreTrainedModel, first: str) -> None:
    """Of the same shapes: by whatever call it meets the cache, until reset."""
    other, reference = model_of(seed=5), model_of("sdpa", seed=5)
    ids, mask = prompts(30)
    cache = cache_of(tree)
    turn = generate(tree, ids, mask, cache) if first == "generate" else ids
    if first == "prefill":
        cache.prefill(tree, ids, mask)
    elif first == "forward":
        forward(tree, cache, ids)
        turn = torch.cat([ids, ids[:, :3]], 1)
    words = r"^model: got another .*holds, seen by its first LlamaAttention; call cache\.reset\(\)"
    refused(words, cache, lambda: generate(other, turn, None, cache))
    refused(words, cache, lambda: forward(other, cache, ids[:, :2]))
    cache.reset()
    assert torch.equal(generate(other, turn, None, cache), generate(reference, turn, None))
    refused(words, cache, lambda: forward(tree, cache, ids[:, :2]))


def test_a_model_that_is_gone(tree: PreTrainedModel) -> None:
    """The cache does not keep it, and knows another in its place."""
    ids, mask = prompts(30)
    model = model_of()
    cache = cache_of(model)
    answer = generate(model, ids, mask, cache)
    del model
    refused("^model: got another", cache, lambda: generate(tree, answer, None, cache))


def test_forwards(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """Prompts that continue from direct forwards: ids by position or name, of either model."""
    ids, _ = prompts(30, 30)
    cache, given = cache_of(tree), {cache_argument(): cache_of(tree)}
    cache = given[cache_argument()]
    with torch.no_grad():
        tree(ids[:, :9], **given)
        tree.forward(input_ids=ids[:, 9:10], **given)
        tree.base_model(input_ids=ids[:, 10:20], **given)
        tree(ids[:, 20:25], None, None, cache)
    assert torch.equal(cache.tokens(), ids[:, :25])
    for column in 0, 9, 15, 24:
        other = ids.clone()
        other[1, column] = (other[1, column] + 1) % 256
        words = f"^input_ids: got token .* in column {column} of row 1"
        refused(words, cache, lambda other=other: generate(tree, other, None, cache))
    assert torch.equal(generate(tree, ids, None, cache), generate(own, ids, None))


def test_forwards_of_a_compiled_model(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, _ = prompts(30)
    torch._dynamo.reset()
    tree.compile(backend="eager")
    cache = cache_of(tree)
    forward(tree, cache, ids[:, :20])
    assert torch.equal(cache.tokens(), ids[:, :20])
    assert torch.equal(generate(tree, ids, None, cache), generate(own, ids, None))


def embeddings(model: PreTrainedModel, ids: Tensor) -> Tensor:
    found: Tensor = model.get_input_embeddings()(ids).detach()
    return found


def test_embeddings_of_the_tokens_that_are_held(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    ids, mask = prompts(30, 9)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    embeds = embeddings(tree, ids)
    given: dict[str, Any] = {"attention_mask": mask, cache_argument(): cache} | OPTIONS
    expected = own.generate(inputs_embeds=embeds, attention_mask=mask, **OPTIONS)
    other = embeds.clone()
    other[1, 27, 5] += 0.5
    words = r"^inputs_embeds: got others in column 27 of row 1 than those of token \d+.*cache\.reset\(\)"
    refused(words, cache, lambda: tree.generate(inputs_embeds=other, **given))
    refused(words, cache, lambda: tree.generate(ids, inputs_embeds=other, **given))
    words = r"^inputs_embeds: got prompts of 29 tokens, of which the cache holds 29"
    refused(
        words, cache, lambda: tree.generate(inputs_embeds=embeds[:, 1:], **given | {"attention_mask": None})
    )
    assert torch.equal(tree.generate(inputs_embeds=embeds, **given), expected)


def test_tokens_that_came_as_embeddings(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """Nothing identifies them: only new ids continue them."""
    ids, _ = prompts(30)
    embeds = embeddings(tree, ids[:, :20]) + 0.1
    caches = cache_of(tree), hf.DynamicCache(config=own.config)
    for model, cache in zip((tree, own), caches, strict=True):
        forward(model, cache, inputs_embeds=embeds)
    cache = caches[0]
    assert (cache.tokens() == MAX).all()
    words = r"does not know which it holds in column 0 of its row 0.*pass the new tokens alone as input_ids"
    refused(f"^input_ids: .*{words}", cache, lambda: generate(tree, ids, None, cache))
    prompt = {"inputs_embeds": embeddings(tree, ids), cache_argument(): cache}
    refused(f"^inputs_embeds: .*{words}", cache, lambda: tree.generate(**prompt, **OPTIONS))
    expected = generate(own, ids[:, 20:], torch.ones_like(ids), caches[1])
    assert torch.equal(generate(tree, ids[:, 20:], torch.ones_like(ids), cache), expected)
    assert torch.equal(cache.tokens()[:, 20:], torch.cat([ids[:, 20:], expected[:, 10:-1]], 1))


def test_positions_of_an_empty_cache_and_behind(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """Any that go up by one serve, and those behind them."""
    ids, mask = prompts(30, 9)
    cache = cache_of(tree)
    places = (mask.cumsum(1) - 1).clamp_min(0) + torch.tensor([[40], [7]])
    answers = generate(tree, ids, mask, cache, position_ids=places)
    assert torch.equal(answers, generate(own, ids, mask, position_ids=places))
    turn = torch.cat([answers, prompts(5, 5, seed=2)[0]], 1)
    mask = longer(mask, turn)
    words = r"^position_ids: got 41 for a new token of row 0, expected 81, one .*call cache\.reset\(\)"
    refused(words, cache, lambda: generate(tree, turn, mask, cache))
    places = (mask.cumsum(1) - 1).clamp_min(0) + torch.tensor([[40], [7]])
    changed = places.clone()
    changed[1, 25] += 1
    words = (
        r"^position_ids: got 12 in column 25 of row 1, expected 11, where row 1 of the cache holds its token"
    )
    refused(words, cache, lambda: generate(tree, turn, mask, cache, position_ids=changed))
    expected = generate(own, turn, mask, position_ids=places)
    assert torch.equal(generate(tree, turn, mask, cache, position_ids=places), expected)


@pytest.mark.parametrize("held", [0, 20])
def test_positions_of_forwards(own: PreTrainedModel, tree: PreTrainedModel, held: int) -> None:
    ids, _ = prompts(30, 30)
    cache = cache_of(tree)
    if held:
        forward(tree, cache, ids[:, :held])
    places = torch.arange(held, 30)[None]
    wrong = places.clone()
    wrong[0, 4] += 3
    new = ids[:, held:]
    words = rf"^position_ids: got {held + 7} for a new token of row 0, expected {held + 4}, one behind"
    refused(words, cache, lambda: forward(tree, cache, new, position_ids=wrong))
    if held:
        words = r"^position_ids: got 120 for a new token of row 0, expected 20, one .* holds 20 of the row"
        refused(words, cache, lambda: forward(tree, cache, new, position_ids=places + 100))
        refused(words, cache, lambda: forward(tree, cache, new[:, :1], position_ids=places[:, :1] + 100))
    expected = forward(own, None, ids)[:, held:]
    got = forward(tree, cache, new, position_ids=places)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_positions_that_count_padding(own: PreTrainedModel, tree: PreTrainedModel) -> None:
    """transformers' forwards do without position_ids, and `generate` does not."""
    ids, mask = prompts(30, 9)
    caches = cache_of(tree), hf.DynamicCache(config=own.config)
    logits = [
        forward(model, cache, part, attention_mask=mask[:, :end])
        for model, cache in zip((tree, own), caches, strict=True)
        for part, end in ((ids[:, :25], 25), (ids[:, 25:29], 29))
    ]
    for ours, theirs in zip(logits[:2], logits[2:], strict=True):
        real = mask[:, : ours.shape[1]].bool() if ours.shape[1] == 25 else slice(None)
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=0)
    words = r"^position_ids: got 8 for a new token of row 1, expected 29, one behind"
    refused(words, caches[0], lambda: generate(tree, ids, mask, caches[0]))


def test_two_caches(tree: PreTrainedModel) -> None:
    ids, _ = prompts(30)
    for other in cache_of(tree), hf.DynamicCache(config=tree.config):
        for one, two in (cache_of(tree), other), (other, cache_of(tree)):
            words = (
                rf"^past_key_values: got a {type(two).__name__} beside another cache, a {type(one).__name__}"
            )
            with pytest.raises(UnsupportedError, match=words):
                tree.generate(ids, cache=one, past_key_values=two)
            for cache in one, two:
                assert cache.get_seq_length() == 0


def test_a_mask_of_ones_over_rows_with_padding(tree: PreTrainedModel) -> None:
    """`generate` drops it, so that the attention gets none."""
    ids, mask = prompts(30, 9)
    cache = cache_of(tree)
    cache.prefill(tree, ids, mask)
    words = r"^attention_mask: got none, or nothing but ones, but rows of the cache have padding; pass"
    refused(words, cache, lambda: generate(tree, ids, torch.ones_like(mask), cache))
